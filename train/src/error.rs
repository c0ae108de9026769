//! Why a run cannot go on.

use std::io;
use std::path::PathBuf;

use firebox_checkpoint::{CheckpointError, FolderError};
use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_runtime::device::DeviceError;
use firebox_runtime::failure::DeviceFailure;
use firebox_text::TokenizerError;

use crate::config::ConfigError;
use crate::data::DataError;

/// Why a run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The text cannot be read or prepared.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file of the run cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer's files cannot be written.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// There is no checkpoint to start from.
    #[error(transparent)]
    Init(#[from] FolderError),
    /// The configuration that the run was started with cannot be read.
    #[error("the run's own configuration cannot be used: {0}")]
    SavedConfig(#[source] ConfigError),
    /// A fresh run would overwrite another.
    #[error("{} already holds a run, at step {step}", folder.display())]
    RunExists {
        /// The run folder.
        folder: PathBuf,
        /// Its newest checkpoint.
        step: u64,
    },
    /// `--resume` without anything to resume.
    #[error("{} holds no checkpoint to resume from", folder.display())]
    NothingToResume {
        /// The run folder.
        folder: PathBuf,
    },
    /// `--resume` with another configuration.
    #[error("the configuration is not the one that {} was started with: {}", folder.display(), changes.join("; "))]
    ConfigChanged {
        /// The run folder.
        folder: PathBuf,
        /// Each as `key: old → new`.
        changes: Vec<String>,
    },
    /// `--resume` with other text.
    #[error("the text or the tokenizer changed since {} was started", folder.display())]
    DataChanged {
        /// The run folder.
        folder: PathBuf,
    },
    /// The loss or the gradient is not finite.
    #[error("step {step}: training diverged: the {what} is {value}; the step was discarded")]
    Diverged {
        /// The step that failed.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// The device failed.
    #[error("{}{failure}", step.map_or_else(String::new, |step| format!("step {step}: ")))]
    Computation {
        /// The step that was being computed, from 1; none before the first.
        step: Option<u64>,
        /// What happened.
        failure: Box<DeviceFailure>,
        /// The newest checkpoint, and the step after which it was written.
        checkpoint: Option<(PathBuf, u64)>,
    },
    /// Standard output cannot be written.
    #[error("standard output cannot be written")]
    Output(#[source] io::Error),
    /// Ctrl-C.
    #[error("interrupted after step {step}; the checkpoint is {}", checkpoint.display())]
    Interrupted {
        /// Optimizer steps done.
        step: u64,
        /// Where they are kept.
        checkpoint: PathBuf,
    },
}

// Files of the run, whose hint is that of its checkpoints.
impl From<FileError> for TrainError {
    fn from(error: FileError) -> Self {
        Self::Checkpoint(error.into())
    }
}

/// How a training needs less memory.
pub const LESS_MEMORY: &str =
    "lower train.micro_batch, which takes less memory for the same result";

impl Advise for TrainError {
    fn advice(&self) -> Advice {
        match self {
            Self::Device(error) => error.advice(),
            Self::Data(error) => error.advice(),
            Self::Tokenizer(error) => error.advice(),
            Self::Init(error) => error.advice(),
            // Of the run itself: nothing on the command line is at fault.
            Self::Checkpoint(error) => error.advice().exit_code(1),
            Self::SavedConfig(error) => error.advice().exit_code(1),
            Self::RunExists { .. } => {
                Advice::USAGE.hint("add --resume to go on with it, or --out DIR to start another")
            }
            Self::NothingToResume { .. } => Advice::USAGE.hint("leave --resume out to start it"),
            Self::ConfigChanged { .. } => Advice::USAGE
                .hint("resume with the old values, or start another run with --out DIR"),
            Self::DataChanged { .. } => Advice::USAGE
                .hint("resume where the old text is, or start another run with --out DIR"),
            Self::Diverged { .. } => Advice::FAILURE.hint(
                "lower optimizer.learning_rate or lengthen schedule.warmup_steps; the last checkpoint is intact",
            ),
            Self::Computation {
                failure,
                checkpoint,
                ..
            } => {
                let advice = failure.advice(LESS_MEMORY);
                match (checkpoint, &advice.hint) {
                    (Some((folder, step)), Some(hint)) => {
                        let folder = folder.display();
                        let resume = format!("{folder} is intact, and --resume goes on after step {step}");
                        Advice::FAILURE.hint(format!("{hint}; {resume}"))
                    }
                    _ => advice,
                }
            }
            Self::Output(_) => Advice::FAILURE,
            // As a shell has it for Ctrl-C.
            Self::Interrupted { .. } => Advice::FAILURE
                .exit_code(130)
                .hint("run the same command with --resume to go on"),
        }
    }
}
