//! Plans inference: what a layout of ranks needs and how fast it is, from a configuration and the hardware's numbers alone.
//!
//! The model of time is a roofline for each stage, which either reads its weights and caches or computes, whichever takes
//! longer, and a latency and a bandwidth for each message (α–β). Nothing is run.

mod batches;
#[cfg(test)]
mod by_hand;
mod error;
mod estimate;
mod hardware;
mod loads;
pub mod measure;
mod memory;
mod search;
mod source;
mod speculation;
mod stage;
#[cfg(test)]
mod tests;
mod text;

pub use batches::{Beside, ByBatch, Comparison};
pub use error::PlanError;
pub use estimate::{Plan, Widths, Workload};
pub use hardware::{Hardware, Link, Price, Shared};
pub use search::{Bounds, cheapest};
pub use source::{Model, open_model};
pub use speculation::{Drafting, Speculation, speculate};
pub use text::Report;

/// What is wrong with a TOML text, and in which line.
fn toml_fault(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| {
        text[..span.start.min(text.len())].matches('\n').count() + 1
    });
    format!("{} (line {line})", error.message())
}
