//! What can be wrong with a checkpoint.

use std::io::ErrorKind;
use std::path::PathBuf;

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_kernels::dtype::WeightDtype;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder cannot be read, written, created or removed.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The folder holds no checkpoint.
    #[error("{} is no checkpoint: it has no {missing}", folder.display())]
    NotACheckpoint {
        /// The folder.
        folder: PathBuf,
        /// The file that it lacks.
        missing: &'static str,
    },
    /// The file is not of its format, or was cut off.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A field of config.json that Firebox cannot honour.
    #[error("{}: {key} = {value}: {rule}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field.
        key: String,
        /// Its value.
        value: String,
        /// What is allowed.
        rule: String,
    },
    /// The tensors are not those of the model.
    #[error("{}: the tensors are not those of the model: {differences}", place.display())]
    Mismatch {
        /// The file or folder.
        place: PathBuf,
        /// Names and shapes of what is missing, superfluous or of another shape.
        differences: String,
    },
    /// The index of a sharded checkpoint does not agree with what is there.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Weights twice.
    #[error("{} has both model.safetensors and model.safetensors.index.json; keep only one of them", folder.display())]
    TwoSets {
        /// The folder.
        folder: PathBuf,
    },
    /// An output head that is not the embedding, where the configuration says so.
    #[error("{}: config.json has tie_word_embeddings = true, but lm_head.weight is not model.embed_tokens.weight", folder.display())]
    HeadNotTied {
        /// The folder.
        folder: PathBuf,
    },
    /// A tensor of a type that Firebox does not read.
    #[error("{}: tensor {name} is {dtype}; F32, F16 and BF16 are read", file.display())]
    DataType {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A weight that is infinite or no number.
    #[error("{}: tensor {name} holds a value that is not finite", file.display())]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// A weight that a type has no number for.
    #[error("tensor {name} has a value beyond the range of {dtype}")]
    OutOfRange {
        /// The tensor's name.
        name: String,
        /// The type.
        dtype: WeightDtype,
    },
    /// A device that has no numbers of a type.
    #[error("--dtype {dtype}: this device cannot hold numbers of that type")]
    Device {
        /// The type.
        dtype: WeightDtype,
    },
    /// Weights that are to be trained, in a type that is too coarse for that.
    #[error("weights in {dtype} cannot be trained: steps are smaller than what it rounds away")]
    Training {
        /// The type.
        dtype: WeightDtype,
    },
}

impl Advise for CheckpointError {
    fn advice(&self) -> Advice {
        match self {
            Self::NotACheckpoint { .. } => Advice::USAGE.hint(
                "a checkpoint is a folder with config.json and model.safetensors, such as runs/NAME/checkpoints/step-0000100",
            ),
            Self::Device { .. } => Advice::USAGE.hint(
                "leave --dtype out for f32, which every device has, or try the other of bf16 and f16",
            ),
            Self::Damaged { .. } => Advice::FAILURE
                .hint("the file may have been cut while it was copied; use another checkpoint"),
            Self::Mismatch { .. } => Advice::FAILURE.hint(
                "config.json and the weights are of different models, or of a family that Firebox does not read",
            ),
            Self::Index { .. } => Advice::FAILURE
                .hint("copy all shards and their index anew, from the same place"),
            Self::TwoSets { .. } => Advice::FAILURE.hint("move one of the two away"),
            Self::HeadNotTied { .. } => Advice::FAILURE
                .hint("set tie_word_embeddings = false if the two were trained apart"),
            Self::OutOfRange { .. } => Advice::FAILURE.hint("bf16 has the range of f32"),
            Self::Training { .. } => Advice::FAILURE.hint("load them in f32"),
            Self::Io(error) if error.source.kind() == ErrorKind::StorageFull => Advice::FAILURE
                .hint("free some space; the checkpoints before this one are intact"),
            Self::Io(_)
            | Self::Config { .. }
            | Self::DataType { .. }
            | Self::NotFinite { .. } => Advice::FAILURE,
        }
    }
}
