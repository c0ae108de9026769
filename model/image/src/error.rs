//! What can be wrong with a picture's file.

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_console::numbers::grouped;

use super::decode::{MAX_BYTES, MAX_PIXELS};
use super::format::{Foreign, Format};

/// Why a picture cannot be read. `name` is the file's path, or what the caller calls the bytes.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// It is of another kind.
    #[error("{name} is {}, and pictures are PNG, JPEG or WebP", kind.describe())]
    Foreign {
        /// The file.
        name: String,
        /// What it is.
        kind: Foreign,
    },
    /// It is larger than any picture that is read.
    #[error(
        "{name} has more than {} MiB, the most that a picture's file may have",
        MAX_BYTES >> 20
    )]
    TooManyBytes {
        /// The file.
        name: String,
    },
    /// Decoded, it would take too much memory.
    #[error(
        "{name} has {} × {} pixels, and a picture may have {} in all",
        grouped(*width), grouped(*height), grouped(MAX_PIXELS)
    )]
    TooManyPixels {
        /// The file.
        name: String,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
    },
    /// It is an animation.
    #[error("{name} is an animated {format}, and only still pictures are read")]
    Animated {
        /// The file.
        name: String,
        /// Its format.
        format: Format,
    },
    /// Its end is missing.
    #[error("{name} is a {format} that ends too soon: it is incomplete")]
    Truncated {
        /// The file.
        name: String,
        /// Its format.
        format: Format,
    },
    /// It breaks the rules of its format, or uses a part of it that is not read.
    #[error("{name} is a {format} that cannot be decoded: {message}")]
    Undecodable {
        /// The file.
        name: String,
        /// Its format.
        format: Format,
        /// The decoder's message.
        message: String,
    },
}

impl Advise for PictureError {
    fn advice(&self) -> Advice {
        Advice::FAILURE.hint(match self {
            Self::Io(_) => return Advice::FAILURE,
            Self::Foreign { kind, .. } => kind.hint(),
            Self::TooManyBytes { .. } | Self::TooManyPixels { .. } => {
                "scale it down: a model sees no more than its tiles hold, however large the picture is"
            }
            Self::Animated { .. } => "save one of its frames as a picture",
            Self::Truncated { .. } => "copy or download it again",
            Self::Undecodable { .. } => {
                "if other programs show it, save it again from one of them; if not, copy or download it again"
            }
        })
    }
}
