//! What can be wrong with a checkpoint.

use std::io;
use std::path::PathBuf;

use firebox_kernels::dtype::WeightDtype;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Read, write, create …
        action: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
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
    /// A field of config.json that its family does not have.
    #[error("{}: {key} = {value}: {family} has no such field{}", path.display(), owners(others))]
    ForeignField {
        /// The file.
        path: PathBuf,
        /// The field.
        key: String,
        /// Its value.
        value: String,
        /// The file's `model_type`.
        family: &'static str,
        /// Families that have it.
        others: Vec<&'static str>,
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
    #[error("{} has both model.safetensors and model.safetensors.index.json, and which of them counts is not said", folder.display())]
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

fn owners(others: &[&str]) -> String {
    match others {
        [] => ", as far as Firebox knows".to_owned(),
        others => format!(", which is one of {}", others.join(", ")),
    }
}

impl CheckpointError {
    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotACheckpoint { .. } => Some(
                "a checkpoint is a folder with config.json and model.safetensors, such as runs/NAME/checkpoints/step-0000100".to_owned(),
            ),
            Self::Damaged { .. } => {
                Some("the file may have been cut while it was copied; use another checkpoint".to_owned())
            }
            Self::ForeignField { others, .. } => Some(match others.as_slice() {
                [] => "if it says nothing of what the network computes, remove it".to_owned(),
                others => format!(
                    "remove it if the weights do not depend on it, or set model_type to {} if they are of that family",
                    others.join(" or ")
                ),
            }),
            Self::Mismatch { .. } => {
                Some("config.json and the weights are of different models, or of a family that Firebox does not read".to_owned())
            }
            Self::Index { .. } => {
                Some("copy all shards and their index anew, from the same place".to_owned())
            }
            Self::TwoSets { .. } => Some("move one of the two away".to_owned()),
            Self::HeadNotTied { .. } => {
                Some("set tie_word_embeddings = false if the two were trained apart".to_owned())
            }
            Self::OutOfRange { .. } => Some("bf16 has the range of f32".to_owned()),
            Self::Device { .. } => {
                Some("leave --dtype out for f32, which every device has, or try the other of bf16 and f16".to_owned())
            }
            Self::Training { .. } => Some("load them in f32".to_owned()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space; the checkpoints before this one are intact".to_owned())
            }
            _ => None,
        }
    }

    /// An [`Io`](Self::Io) error of some action on some path.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
