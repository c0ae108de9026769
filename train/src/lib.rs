//! Training of Firebox models: reads text, writes checkpoints.

pub mod bench;
pub mod check;
pub mod cli;
pub mod compare;
pub mod config;
pub mod data;
pub mod error;
pub mod gradient;
pub mod metrics;
pub mod optimizer;
mod progress;
pub mod run_folder;
pub mod schedule;
pub mod start;
pub mod state;
pub mod step;
pub mod trainer;
