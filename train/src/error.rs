//! Errors of a training run.

use std::io;
use std::path::{Path, PathBuf};

use firebox_checkpoint::{CheckpointError, FolderError};
use firebox_comm::Failure;
use firebox_comm::mpi::ProgramError;
use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_kernels::Precision;
use firebox_runtime::device::DeviceError;
use firebox_runtime::failure::DeviceFailure;
use firebox_text::TokenizerError;

use crate::config::ConfigError;
use crate::data::DataError;
use crate::ranks::LayoutError;

/// Why a run cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A model that sees pictures.
    #[error("model.vision: `cargo train bench` measures with random tokens, and has no pictures")]
    Pictures,
    /// The device has no products of the configured precision.
    #[error(
        "train.precision = {precision}: the device {device} does not compute products in {precision}"
    )]
    Precision {
        /// `train.precision`
        precision: Precision,
        /// The device's name.
        device: String,
    },
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
    /// The configuration of the run, or of one that it starts from, is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration that the run was started with cannot be read.
    #[error("the configuration saved with the run is invalid: {0}")]
    SavedConfig(#[source] ConfigError),
    /// A new run would overwrite an existing one.
    #[error("{} already contains a run, at step {step}", folder.display())]
    RunExists {
        /// The run folder.
        folder: PathBuf,
        /// Its newest checkpoint.
        step: u64,
    },
    /// `--resume` without a checkpoint to resume from.
    #[error("{} contains no checkpoint to resume from", folder.display())]
    NothingToResume {
        /// The run folder.
        folder: PathBuf,
    },
    /// Another process trains in the same run folder.
    #[error(
        "{} is in use: {} trains in it",
        folder.display(),
        owner.as_deref().unwrap_or("another process")
    )]
    InUse {
        /// The run folder.
        folder: PathBuf,
        /// The process and its host, if known.
        owner: Option<String>,
    },
    /// `--resume` with more steps than there is text for.
    #[error(
        "train.steps = {steps} needs {needed} sequences, and the data that {} was started with has {available}, all \
         epochs together",
        folder.display()
    )]
    NoTextForMoreSteps {
        /// The run folder.
        folder: PathBuf,
        /// The steps that were asked for.
        steps: u64,
        /// Sequences that they need.
        needed: u64,
        /// Sequences that there are.
        available: u64,
    },
    /// `--resume` with another configuration.
    #[error("the configuration differs from the one that {} was started with: {}", folder.display(), changes.join("; "))]
    ConfigChanged {
        /// The run folder.
        folder: PathBuf,
        /// One `key: old → new` per changed key.
        changes: Vec<String>,
    },
    /// `train.init` names a configuration that differs from the one its run was started with.
    #[error(
        "{} differs from the configuration that {} was started with: {}",
        file.display(),
        folder.display(),
        changes.join("; ")
    )]
    FirstRunChanged {
        /// The configuration file.
        file: PathBuf,
        /// The run folder.
        folder: PathBuf,
        /// One `key: old → new` per changed key.
        changes: Vec<String>,
    },
    /// A run has the folder of another one that it starts from.
    #[error("the run of {}, which comes first, would have the same folder: {}", file.display(), folder.display())]
    SameFolder {
        /// The configuration of the run that comes first.
        file: PathBuf,
        /// The folder of both.
        folder: PathBuf,
    },
    /// A resume has to prepare its tokens again, and the source text is no longer the same.
    #[error(
        "the text or the tokenizer has changed since {} was started, and its prepared tokens no longer exist",
        folder.display()
    )]
    DataChanged {
        /// The run folder.
        folder: PathBuf,
    },
    /// The loss, the gradient norm or the held-out loss is NaN or infinite.
    #[error("step {step}: training diverged: the {what} is {value}; the step was discarded")]
    Diverged {
        /// The step that failed.
        step: u64,
        /// `loss`, `gradient norm` or `held-out loss`.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// The weights of one of several ranks are no longer those that a step left there.
    #[error("the weights of rank {rank} have changed after step {step}, by themselves")]
    WeightsChanged {
        /// The last step.
        step: u64,
        /// The rank.
        rank: usize,
    },
    /// The device failed.
    #[error("{}{failure}", step.map_or_else(String::new, |step| format!("step {step}: ")))]
    Computation {
        /// The step that was being computed, from 1; `None` before the first.
        step: Option<u64>,
        /// What happened.
        failure: Box<DeviceFailure>,
        /// The newest checkpoint and its step.
        checkpoint: Option<(PathBuf, u64)>,
    },
    /// A rank sees another run than the first one.
    #[error("{} has another {what} here than the first rank sees", folder.display())]
    OtherRun {
        /// The run folder.
        folder: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// Ranks begin with different weights.
    #[error("rank {rank} has read other weights than rank {other}")]
    OtherWeights {
        /// The rank.
        rank: usize,
        /// One that should have the same.
        other: usize,
    },
    /// A run cannot be divided among ranks so.
    #[error("{}: {source}", file.display())]
    Divided {
        /// The configuration file of the run.
        file: PathBuf,
        /// What does not fit.
        source: LayoutError,
    },
    /// The ranks cannot be started so.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A rank has failed.
    #[error("{}", .0.told())]
    Rank(Box<Failure>),
    /// MPI cannot be used, or a rank has failed and been reported.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The user pressed Ctrl-C.
    #[error("interrupted after step {step}; checkpoint: {}", checkpoint.display())]
    Interrupted {
        /// Number of completed optimizer steps.
        step: u64,
        /// The checkpoint of that step.
        checkpoint: PathBuf,
    },
}

// Files of the run, whose hint is that of its checkpoints.
impl From<FileError> for TrainError {
    fn from(error: FileError) -> Self {
        Self::Checkpoint(error.into())
    }
}

/// How to start another run from the weights of the one in a folder, and what it costs.
fn from_weights(folder: &Path) -> String {
    format!(
        "--out DIR --set train.init={} starts from these weights, with fresh optimizer moments, a new learning-rate \
         schedule, and the data from its beginning",
        folder.display()
    )
}

/// Advice for a training run that is out of memory.
pub const LESS_MEMORY: &str =
    "lower train.micro_batch, which needs less memory for the same result";

impl Advise for TrainError {
    fn advice(&self) -> Advice {
        match self {
            Self::Device(error) => error.advice(),
            Self::Pictures => Advice::USAGE.hint(
                "`cargo train run` logs how many tokens of captions it trains on in a second",
            ),
            Self::Precision { .. } => Advice::USAGE
                .hint("use --device flex, or --set train.precision=f32, which every device computes"),
            Self::Data(error) => error.advice(),
            Self::Tokenizer(error) => error.advice(),
            Self::Init(error) => error.advice(),
            Self::Config(error) => error.advice(),
            // Of the run itself: nothing on the command line is at fault.
            Self::Checkpoint(error) => error.advice().exit_code(1),
            Self::SavedConfig(error) => error.advice().exit_code(1),
            Self::RunExists { .. } => Advice::USAGE.hint(
                "add --resume to continue it, or use --out DIR to start another run; a job that may be restarted \
                 takes --resume=auto",
            ),
            Self::NothingToResume { .. } => Advice::USAGE.hint(
                "omit --resume to start the run; --resume=auto starts it if there is no checkpoint, and continues it \
                 if there is one",
            ),
            Self::InUse { .. } => Advice::FAILURE.hint(
                "wait until it has ended or stop it, or use --out DIR to start another run; the lock ends with its \
                 process, even if that is killed",
            ),
            Self::NoTextForMoreSteps { folder, .. } => Advice::USAGE.hint(format!(
                "lower train.steps; more text or epochs would change the order of the data, so they need another run: \
                 {}",
                from_weights(folder)
            )),
            Self::ConfigChanged { folder, .. } => Advice::USAGE.hint(format!(
                "resume with the old values (train.steps may grow, and train.micro_batch may change), or start another run: {}",
                from_weights(folder)
            )),
            Self::FirstRunChanged { folder, .. } => Advice::USAGE.hint(format!(
                "--set train.init={0} starts from that run as it is; or restore the old values; or remove {0}, so that the run \
                 is done again",
                folder.display()
            )),
            Self::SameFolder { .. } => Advice::USAGE
                .hint("use --out DIR, or give one of the two configuration files another name"),
            Self::DataChanged { .. } => Advice::USAGE.hint(
                "restore the old text or its prepared tokens (data.cache), or use --out DIR to start another run",
            ),
            Self::Diverged { .. } => Advice::FAILURE.hint(
                "lower optimizer.learning_rate or lengthen schedule.warmup_steps; the last checkpoint is intact",
            ),
            Self::WeightsChanged { .. } => Advice::FAILURE.hint(
                "the memory of that rank's machine or device is at fault; --resume continues from the last checkpoint, elsewhere",
            ),
            Self::Computation {
                failure,
                checkpoint,
                ..
            } => {
                let advice = failure.advice(LESS_MEMORY);
                match (checkpoint, &advice.hint) {
                    (Some((folder, step)), Some(hint)) => Advice::FAILURE.hint(format!(
                        "{hint}; {} is intact, and --resume continues after step {step}",
                        folder.display()
                    )),
                    _ => advice,
                }
            }
            Self::OtherRun { .. } | Self::OtherWeights { .. } => Advice::USAGE.hint(
                "all ranks read the same run folder, data.cache and text: put them on a file system that every machine has, \
                 and give all processes the same arguments and working folder",
            ),
            Self::Divided { source, .. } => source.advice(),
            Self::Layout(error) => error.advice(),
            Self::Rank(failure) => {
                let advice = failure.advice();
                match advice.hint {
                    Some(_) => advice,
                    None => advice.hint("no checkpoint is damaged; --resume continues from the last one"),
                }
            }
            Self::Program(error) => error.advice(),
            Self::Output(_) => Advice::FAILURE,
            // As shells report SIGINT.
            Self::Interrupted { .. } => Advice::FAILURE
                .exit_code(130)
                .hint("run the same command with --resume to continue"),
        }
    }
}
