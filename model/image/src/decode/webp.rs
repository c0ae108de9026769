//! WebP: lossy and lossless, with and without transparency.

use std::io::{Cursor, ErrorKind};

use image_webp::{DecodingError, WebPDecoder};

use super::{Decoded, Fault, MAX_PIXELS, check_size};
use crate::orientation::Orientation;

pub(super) fn decode(file: &[u8]) -> Result<Decoded, Fault> {
    // The decoder takes a file without its last chunks for a smaller one.
    let size = file.get(4..8).and_then(|size| size.try_into().ok());
    if size.is_none_or(|size| u32::from_le_bytes(size) as usize + 8 > file.len()) {
        return Err(Fault::Truncated);
    }
    let mut decoder = WebPDecoder::new(Cursor::new(file))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    if decoder.is_animated() {
        return Err(Fault::Animated);
    }
    decoder.set_memory_limit(MAX_PIXELS as usize * 4);
    let size = decoder.output_buffer_size();
    let mut samples = vec![0; size.ok_or(Fault::TooManyPixels(width, height))?];
    decoder.read_image(&mut samples)?;
    let exif = decoder.exif_metadata()?;
    Ok(Decoded {
        width,
        height,
        channels: if decoder.has_alpha() { 4 } else { 3 },
        samples,
        orientation: exif.and_then(|exif| Orientation::of_exif(&exif)),
    })
}

impl From<DecodingError> for Fault {
    fn from(error: DecodingError) -> Self {
        match error {
            DecodingError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Self::Truncated
            }
            error => Self::Undecodable(error.to_string()),
        }
    }
}
