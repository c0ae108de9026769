//! Evaluates, samples, benchmarks and compares Firebox checkpoints on any Burn backend.
//!
//! [`engine`] opens a checkpoint on a device; [`eval`] measures its loss on text and on captions of [`pictures`], [`generate`] continues one prompt or many,
//! [`mod@serve`] does so over HTTP, [`mod@bench`] measures prefill and decode speed and [`load`] a server under load, [`trace`] writes intermediate values to a file, [`compare`] reports the
//! differences between devices, [`export`] converts it to another dtype, into shards or to GGUF, and [`sharded`] shows how it is divided
//! among ranks. [`plan`] estimates bytes, speed and cost of a model on many ranks, and [`ranks`] runs a command on them.
//! [`cli`] is the command line on top of them.
//!
//! ```no_run
//! use firebox_infer::engine::Engine;
//! use firebox_infer::generate::{Request, Speculation, generate};
//! use firebox_kernels::dtype::WeightDtype;
//! use firebox_model::sampling::Sampling;
//!
//! let engine = Engine::open("runs/quickstart".as_ref(), &[], "flex", WeightDtype::F32)?;
//! let request = Request {
//!     prompt: "pub fn ".to_owned(),
//!     max_tokens: 100,
//!     sampling: Sampling::greedy(),
//!     pictures: Vec::new(),
//! };
//! let speculation = Speculation::default();
//! let generated = generate(&engine, &request, &speculation, &mut std::io::stdout(), || false)?;
//! println!("{} tokens", generated.statistics.tokens);
//! # Ok::<(), firebox_infer::InferError>(())
//! ```

pub mod bench;
pub mod cli;
pub mod compare;
pub mod devices;
pub mod engine;
mod error;
pub mod eval;
pub mod export;
pub mod generate;
mod gguf;
pub mod load;
pub mod pictures;
pub mod plan;
mod processes;
pub mod ranks;
pub mod replicas;
pub mod route;
pub mod serve;
pub mod sharded;
pub mod tasks;
#[cfg(test)]
mod testing;
pub mod timeline;
pub mod trace;
mod trace_input;

pub use error::InferError;
