//! Plans inference: what a layout of ranks needs and how fast it is, from a configuration and the hardware's numbers alone.
//!
//! The model of time is a roofline for each stage, which either reads its weights and caches or computes, whichever takes
//! longer, and a latency and a bandwidth for each message (α–β). Nothing is run.

mod error;
mod estimate;
mod hardware;
mod loads;
mod search;
mod source;
mod speculation;
mod stage;
#[cfg(test)]
mod tests;
mod text;

pub use error::PlanError;
pub use estimate::{Plan, Workload};
pub use hardware::{Hardware, Link, Price};
pub use search::{Bounds, cheapest, fewest_stages};
pub use source::open_model;
pub use speculation::{Speculation, speculate};
pub use text::{ByBatch, Report};

/// Share of a layer's experts that at least one of `tokens` tokens visits, where each visits `top_k` of `experts` that are
/// chosen evenly: `1 − (1 − k/E)^T`.
pub fn expert_utilization(top_k: usize, experts: usize, tokens: f64) -> f64 {
    1.0 - (1.0 - top_k as f64 / experts as f64).powf(tokens)
}
