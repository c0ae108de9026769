//! What can be wrong with a checkpoint.

use std::io;
use std::path::PathBuf;

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
    /// A parameter that no tensor fills.
    #[error("{}: no tensor {name}, which {path} {shape:?} is read from; not used so far: {unused}", file.display())]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// The parameter's path in the model.
        path: String,
        /// The shape that the file should have.
        shape: Box<[usize]>,
        /// Names with shapes that the file has and nothing has asked for.
        unused: String,
    },
    /// A tensor of another shape.
    #[error("{}: tensor {name} has shape {found:?}; {path} needs {expected:?}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// The parameter's path in the model.
        path: String,
        /// As in the file.
        found: Box<[usize]>,
        /// As the configuration says.
        expected: Box<[usize]>,
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
    /// Tensors that nothing reads.
    #[error("{}: {count} tensor(s) that this model has no use for: {names}", file.display())]
    UnusedTensors {
        /// The file.
        file: PathBuf,
        /// How many.
        count: usize,
        /// Their names with shapes, shortened when there are many.
        names: String,
    },
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
            Self::MissingTensor { .. } | Self::Shape { .. } | Self::UnusedTensors { .. } => {
                Some("config.json and the weights are of different models, or of a family that Firebox does not read".to_owned())
            }
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
