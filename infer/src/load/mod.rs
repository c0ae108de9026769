//! `cargo infer bench --serve`: a load on a running server with OpenAI's interface, and what its clients see.
//!
//! Requests come at a rate, whether others are answered or not (an open loop, with the gaps of a Poisson process), or so many
//! are under way at once (a closed loop). Each is a stream, so that the time of every token is seen. Where the server counts
//! what Firebox's does, that is read before and after each load.

mod ask;
mod error;
mod page;
mod report;
mod run;
mod server_side;
mod statistics;
#[cfg(test)]
mod tests;
mod workload;

use serde::{Serialize, Serializer};

pub use ask::{Fault, Record};
pub use error::LoadError;
pub use report::{Faults, LoadReport, LoadResult};
pub use run::{LoadOptions, measure};
pub use server_side::{ExpertUse, ServerSide};
pub use statistics::{Goodput, Quantiles};
pub use workload::{Lengths, Prompts};

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many are under way at once.
    Concurrency(usize),
    /// So many come per second, on average; infinity: all at once.
    Rate(f64),
}

impl std::fmt::Display for Load {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Concurrency(requests) => write!(formatter, "{requests} at once"),
            Self::Rate(f64::INFINITY) => formatter.write_str("all at once"),
            Self::Rate(rate) => write!(formatter, "{rate}/s"),
        }
    }
}

impl Serialize for Load {
    /// An object with `concurrency`, or with `rate`, which is `"inf"` where all come at once.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = match self {
            Self::Concurrency(requests) => serde_json::json!({ "concurrency": requests }),
            Self::Rate(f64::INFINITY) => serde_json::json!({ "rate": "inf" }),
            Self::Rate(rate) => serde_json::json!({ "rate": rate }),
        };
        value.serialize(serializer)
    }
}
