//! PNG: every colour type and depth, interlaced or not.

use std::io::{Cursor, ErrorKind};

use ::png::{Decoder, DecodingError, Limits, Transformations};

use super::{Decoded, Fault, check_size};
use crate::orientation::Orientation;

/// Bytes that the decoder may allocate besides the pixels: for one row, and for chunks.
const WORK: usize = 64 << 20;

pub(super) fn decode(file: &[u8]) -> Result<Decoded, Fault> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(file), Limits { bytes: WORK });
    // Palettes become colours, fewer than 8 bits become 8, transparent colours become alpha; of 16 bits the upper 8 stay.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info()?;
    let (width, height) = (header.width, header.height);
    check_size(width, height)?;
    let mut reader = decoder.read_info()?;
    if reader.info().animation_control.is_some() {
        return Err(Fault::Animated);
    }
    let size = reader.output_buffer_size();
    let mut samples = vec![0; size.ok_or(Fault::TooManyPixels(width, height))?];
    reader.next_frame(&mut samples)?;
    // Chunks after the pixels, the end among them: Exif data may be there.
    reader.finish()?;
    let exif = reader.info().exif_metadata.as_deref();
    Ok(Decoded {
        width,
        height,
        channels: reader.output_color_type().0.samples(),
        samples,
        orientation: exif.and_then(Orientation::of_exif),
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
