//! Pictures: files decoded within limits, laid over white, and made into what a vision model reads.
//!
//! [`Picture`] is the pixels of a PNG, JPEG or WebP file; [`Processor`] resizes one, cuts it into tiles and normalises
//! them as the `preprocessor_config.json` of an Mllama checkpoint says.
//!
//! ```
//! use firebox_image::{Picture, Processor};
//!
//! // A black picture of 40 × 60 pixels, for a model with at most four tiles of 28 × 28.
//! let picture = Picture::new(60, 40, vec![0; 60 * 40 * 3]);
//! let processor = Processor::new(28, 4);
//! let tiles = processor.process(&picture);
//! assert_eq!(processor.shape(), [4, 3, 28, 28]);
//! assert_eq!((tiles.aspect_ratio_id, tiles.used), (6, 4));
//! ```

mod arrangement;
mod decode;
mod encode;
mod error;
mod format;
mod orientation;
mod picture;
mod preprocessor;
mod processor;
mod resize;

pub use decode::{MAX_BYTES, MAX_PIXELS};
pub use encode::encode_png;
pub use error::PictureError;
pub use format::Format;
pub use picture::Picture;
pub use preprocessor::{PREPROCESSOR_FILE, ProcessorError};
pub use processor::{Fitted, Processor, Tiles};
