//! What can go wrong between a command line and its answer.

use std::io;
use std::path::PathBuf;

use firebox_checkpoint::{CheckpointError, FolderError};
use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_runtime::device::DeviceError;
use firebox_runtime::failure::DeviceFailure;
use firebox_text::TokenizerError;
use firebox_text::packing::PackingError;

use crate::devices;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A path that was given leads nowhere.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A path leads to no checkpoint.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A folder where text is wanted.
    #[error("{} is a folder, and --data takes files", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// The checkpoint does not say what its token ids mean.
    #[error("{} has no tokenizer.json, so text cannot be turned into tokens", folder.display())]
    NoTokenizer {
        /// The checkpoint.
        folder: PathBuf,
    },
    /// The tokenizer cannot be read or used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer gave an id that the model has no embedding for.
    #[error(
        "token id {id} is beyond the model's vocabulary: tokenizer.json has {tokenizer} ids, config.json {model}"
    )]
    Vocabulary {
        /// The id.
        id: u32,
        /// Ids of the tokenizer.
        tokenizer: usize,
        /// Ids of the model.
        model: usize,
    },
    /// The text cannot be read or encoded, or there is none.
    #[error(transparent)]
    Text(#[from] PackingError),
    /// What a trace should be made of is no input.
    #[error("{}: {reason}", file.display())]
    TraceInput {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file that the command line names cannot be read.
    #[error(transparent)]
    Read(FileError),
    /// A file or folder cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
    /// A sequence that the model cannot take.
    #[error("--context {context} is more than the {largest} tokens of the model's context")]
    Context {
        /// Tokens of the sequence.
        context: usize,
        /// The most that the model takes.
        largest: usize,
    },
    /// Prompt and new tokens exceed the model's context.
    #[error("prompt and new tokens are {tokens} tokens, and the model's context has {largest}")]
    BenchTooLong {
        /// Of both.
        tokens: usize,
        /// The most that the model takes.
        largest: usize,
    },
    /// A folder that should be written is not empty.
    #[error("{} exists and is not empty", folder.display())]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
    },
    /// The device failed.
    #[error(transparent)]
    Computation(#[from] DeviceFailure),
    /// The arithmetic broke down.
    #[error("the loss on {device} is not finite ({nats})")]
    NotFinite {
        /// The device's name.
        device: String,
        /// The mean loss of a token.
        nats: f64,
    },
    /// A device of a comparison could not be measured.
    #[error("{name} failed: {reason}")]
    DeviceFailed {
        /// The device, and the type of its weights.
        name: String,
        /// Why, in a sentence.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A device of a comparison computes something else.
    #[error("{name} differs from {reference} in {fault}{}", and_more(*more))]
    Differs {
        /// The device, and the type of its weights.
        name: String,
        /// What it is compared with.
        reference: String,
        /// Where, by how much, and how much is allowed.
        fault: String,
        /// Places beside that one that exceed their tolerance, of all devices.
        more: usize,
    },
    /// A process cannot be started or read.
    #[error("cannot run a process for a device: {0}")]
    Process(io::Error),
    /// Standard input cannot be read as text.
    #[error("the prompt cannot be read from standard input: {0}")]
    Input(io::Error),
    /// Standard output cannot be written.
    #[error("standard output cannot be written: {0}")]
    Output(io::Error),
}

// Boxed: a checkpoint's error names files, tensors and shapes, and would make every result large.
impl From<CheckpointError> for InferError {
    fn from(error: CheckpointError) -> Self {
        Self::Checkpoint(Box::new(error))
    }
}

/// How a command needs less memory.
pub const LESS_MEMORY: &str =
    "take fewer sequences at once (--batch) or shorter ones, or hold the weights in --dtype bf16";
fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        1 => " (and in one more place)".to_owned(),
        more => format!(" (and in {more} more places)"),
    }
}

impl Advise for InferError {
    fn advice(&self) -> Advice {
        let usage = |hint: &str| Advice::USAGE.hint(hint);
        let failure = |hint: &str| Advice::FAILURE.hint(hint);
        match self {
            Self::Device(DeviceError::NotCompiled { backend, .. }) => {
                Advice::USAGE.hint(devices::build_hint(backend))
            }
            Self::Device(error) => error.advice(),
            Self::Computation(failure) => failure.advice(LESS_MEMORY),
            Self::Checkpoint(error) => error.advice(),
            Self::Folder(error) => error.advice(),
            Self::Tokenizer(error) => error.advice(),
            Self::Text(error) => error.advice(),
            Self::NotAFile { .. } => usage(
                "name the files, such as --data FOLDER/*.txt; each is a document, and a .jsonl file has one a line",
            ),
            Self::NoTokenizer { .. } => {
                failure("copy the tokenizer.json that the model was trained with into the folder")
            }
            Self::Vocabulary { .. } => failure(
                "tokenizer.json is of another model; use the one that this model was trained with",
            ),
            Self::NotFinite { .. } => failure(
                "evaluate on another device, such as --device flex, to see whether the weights or the device are at fault",
            ),
            Self::TraceInput { .. } => usage(
                "a trace reads input_ids [batch, sequence] and, for padding, attention_mask of the same shape from a safetensors file",
            ),
            Self::Context { .. } => usage("leave --context out for the model's own, up to 2048"),
            Self::BenchTooLong { .. } => usage("lower --prompt-tokens or --new-tokens"),
            Self::NotEmpty { .. } => usage("give another folder, or empty this one"),
            Self::DeviceFailed { hint, .. } => Advice {
                hint: hint.clone(),
                ..Advice::FAILURE
            },
            Self::Differs { .. } => failure(
                "the first part that differs by itself is the one to look at; what comes later may follow from it; --html FILE shows all layers, and --tolerance allows more",
            ),
            Self::Missing { .. } | Self::Read(_) => Advice::USAGE,
            Self::Process(_) | Self::Write(_) | Self::Input(_) | Self::Output(_) => Advice::FAILURE,
        }
    }
}
