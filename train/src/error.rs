//! Why a run cannot go on.

use std::io;
use std::path::PathBuf;

use firebox_checkpoint::{CheckpointError, FolderError};
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
    /// A resume that needs the source text, which is another one.
    #[error(
        "the text or the tokenizer changed since {} was started, and its prepared tokens are gone",
        folder.display()
    )]
    DataChanged {
        /// The run folder.
        folder: PathBuf,
    },
    /// The loss or the gradient is no number any more.
    #[error("step {step}: the {what} is {value}; nothing of this step was kept")]
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

/// How a training needs less memory.
pub const LESS_MEMORY: &str =
    "lower train.micro_batch, which takes less memory for the same result";

impl TrainError {
    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Device(error) => Some(error.hint()),
            Self::Data(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Init(error) => error.hint(),
            Self::SavedConfig(error) => error.hint(),
            Self::RunExists { .. } => Some(
                "add --resume to go on with it, or --out DIR to start another; a job that may be restarted takes \
                 --resume=auto"
                    .to_owned(),
            ),
            Self::NothingToResume { .. } => Some(
                "leave --resume out to start the run; --resume=auto starts it where there is no checkpoint, and goes \
                 on with it where there is one"
                    .to_owned(),
            ),
            Self::ConfigChanged { .. } => {
                Some("resume with the old values, or start another run with --out DIR".to_owned())
            }
            Self::DataChanged { .. } => {
                Some("restore the old text or its prepared tokens (data.cache), or start another run with --out DIR".to_owned())
            }
            Self::Diverged { .. } => Some(
                "lower optimizer.learning_rate or lengthen schedule.warmup_steps; the last checkpoint is intact".to_owned(),
            ),
            Self::Computation {
                failure,
                checkpoint,
                ..
            } => {
                let hint = failure.hint(LESS_MEMORY);
                Some(match checkpoint {
                    Some((folder, step)) => format!(
                        "{hint}; {} is intact, and --resume goes on after step {step}",
                        folder.display()
                    ),
                    None => hint,
                })
            }
            Self::Output(_) => None,
            Self::Interrupted { .. } => Some("run the same command with --resume to go on".to_owned()),
        }
    }

    /// The process's exit code: 2 for wrong usage or configuration, 130 after Ctrl-C (as a shell has it),
    /// otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Data(error) if error.is_usage() => 2,
            Self::Init(error) if error.is_usage() => 2,
            Self::Device(_)
            | Self::RunExists { .. }
            | Self::NothingToResume { .. }
            | Self::ConfigChanged { .. }
            | Self::DataChanged { .. } => 2,
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }
}
