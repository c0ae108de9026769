//! Why nothing can be planned.

use std::path::PathBuf;

use firebox_checkpoint::{CheckpointError, FolderError};
use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_console::numbers::brief;
use firebox_model::parallel::LayoutError;

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The model cannot be laid out so.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// There is no such hardware.
    #[error("--hardware {name} is neither a file nor one of {known}")]
    UnknownHardware {
        /// What was given.
        name: String,
        /// Known names.
        known: String,
    },
    /// A file does not describe hardware.
    #[error("{file} does not describe hardware: {reason}")]
    Hardware {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A file does not describe a model.
    #[error("{} does not describe a model: {reason}", file.display())]
    Model {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A text is longer than the model's context.
    #[error("a prompt of {prompt} and an output of {output} tokens exceed the context of {largest} of {}", model.display())]
    Context {
        /// Tokens of a prompt.
        prompt: usize,
        /// Tokens that are generated.
        output: usize,
        /// The context.
        largest: usize,
        /// The model.
        model: PathBuf,
    },
    /// A model of text alone is to see pictures.
    #[error("--pictures {pictures}: {} sees no pictures", model.display())]
    Blind {
        /// Pictures of a text.
        pictures: usize,
        /// The model.
        model: PathBuf,
    },
    /// A prompt has fewer tokens than pictures.
    #[error(
        "--pictures {pictures}: a prompt of {prompt} tokens has no room for a token for each of them"
    )]
    Pictures {
        /// Pictures of a text.
        pictures: usize,
        /// Tokens of a prompt.
        prompt: usize,
    },
    /// The model beside cannot be laid out so.
    #[error("{} cannot have the {tensor} tensor ranks of the model that it is beside: {error}", model.display())]
    Beside {
        /// The model.
        model: PathBuf,
        /// Tensor ranks of a stage.
        tensor: usize,
        /// Why.
        error: LayoutError,
    },
    /// No layout keeps the bounds.
    #[error("{}", nothing_fits(*ranks, *latency))]
    NothingFits {
        /// The largest number of ranks.
        ranks: usize,
        /// The longest time of a token, in seconds.
        latency: Option<f64>,
    },
    /// Ranks that are processes are not measured.
    #[error("--measure runs ranks as threads of one process, and MPI has started this one")]
    Launched,
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// The checkpoint's config.json cannot be read.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// A path does not lead to a checkpoint.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl From<CheckpointError> for PlanError {
    fn from(error: CheckpointError) -> Self {
        Self::Checkpoint(Box::new(error))
    }
}

fn nothing_fits(ranks: usize, latency: Option<f64>) -> String {
    let fits = format!("the model and its KV cache do not fit on {ranks} ranks in any layout");
    match latency {
        Some(seconds) => format!(
            "{fits} that takes at most {} ms per token",
            brief(seconds * 1e3)
        ),
        None => fits,
    }
}

impl Advise for PlanError {
    fn advice(&self) -> Advice {
        match self {
            Self::Layout(error) => Advice::USAGE.hint(error.hint.clone()),
            Self::UnknownHardware { .. } => {
                Advice::USAGE.hint("write a file like configs/hardware/a100.toml and name it")
            }
            Self::Hardware { .. } => Advice::USAGE
                .hint("configs/hardware/a100.toml has every key, with its unit"),
            Self::Model { hint, .. } => Advice {
                hint: hint.clone(),
                ..Advice::USAGE
            },
            Self::Context { .. } => Advice::USAGE.hint("lower --prompt or --output"),
            Self::Blind { .. } => Advice::USAGE
                .hint("remove --pictures, or name a model with a vision tower"),
            Self::Pictures { .. } => Advice::USAGE.hint("lower --pictures, or raise --prompt"),
            Self::Beside { .. } => Advice::USAGE.hint(
                "plan the first model with fewer tensor ranks (--tensor), or this one by itself",
            ),
            Self::NothingFits { .. } => Advice::USAGE.hint(
                "allow more ranks (--max-ranks) or more time (--latency), or lower --batch, --prompt or --output",
            ),
            Self::Launched => Advice::USAGE.hint("run the command without mpirun"),
            Self::Read(_) => Advice::USAGE,
            Self::Checkpoint(error) => error.advice(),
            Self::Folder(error) => error.advice(),
        }
    }
}
