//! Trains Firebox models: text in, checkpoints out.
//!
//! [`config`] reads and checks a run's configuration, [`data`] prepares its text, [`trainer`] is the loop: a [`step`] is
//! a [`gradient`] and an update by the [`optimizer`], and [`run_folder`] and [`state`] are what is left of it on the disk.
//! [`chain`] does runs that start from each other.
//! [`check`] says what a run costs before it starts, [`mod@bench`] measures the machine, [`compare`] the devices,
//! [`report`] shows what runs have recorded, and [`study`] trains variants of a run with several seeds. [`cli`] is the
//! command line around them.
//!
//! ```
//! use firebox_train::check::Report;
//! use firebox_train::config::load;
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("run.toml");
//! std::fs::write(&file, r#"
//!     [model]
//!     layers = 2
//!     d_model = 64
//!     heads = 4
//!     context_length = 32
//!     [model.experts]
//!     count = 8
//!     top_k = 2
//!     d_ff = 48
//!     [tokenizer]
//!     kind = "bytes"
//!     [[data.source]]
//!     name = "notes"
//!     files = ["notes/*.md"]
//!     [train]
//!     steps = 100
//!     [optimizer]
//!     learning_rate = 1e-3
//!     [schedule]
//!     batch_tokens = 256
//! "#)?;
//! let config = load(&file, &["train.steps=200".to_owned()])?; // as with --set
//! let report = Report::of(&config);
//! assert_eq!(report.training.tokens, 200 * 256);
//! assert!(report.model.active < report.model.total);
//!
//! let error = load(&file, &["model.experts.top_k=9".to_owned()]).unwrap_err();
//! assert!(error.to_string().contains("must lie between 1 and experts.count = 8"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bench;
pub mod chain;
pub mod check;
pub mod cli;
pub mod compare;
pub mod config;
pub mod data;
pub mod error;
mod extension;
pub mod gradient;
pub mod learned;
mod lock;
pub mod looking;
pub mod metrics;
pub mod optimizer;
mod progress;
pub mod ranks;
pub mod report;
pub mod rows;
pub mod run_folder;
pub mod schedule;
pub mod start;
pub mod state;
pub mod step;
pub mod study;
#[cfg(test)]
mod testing;
pub mod trainer;
