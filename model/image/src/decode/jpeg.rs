//! JPEG: baseline and progressive; grey, YCbCr, RGB, CMYK and YCCK.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Decoded, Fault, check_size};
use crate::orientation::Orientation;

pub(super) fn decode(file: &[u8]) -> Result<Decoded, Fault> {
    // The decoder makes up what is missing at the end, so that is looked at first.
    if !has_end(file) {
        return Err(Fault::Truncated);
    }
    // Strict: what cannot be decoded is an error, not grey.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers()?;
    let info = decoder.info().ok_or_else(no_header)?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    check_size(width, height)?;
    let (space, channels) = match decoder.input_colorspace().ok_or_else(no_header)? {
        ColorSpace::Luma => (ColorSpace::Luma, 1),
        // The decoder takes CMYK for Adobe's, whose inks are stored inverted.
        _ => (ColorSpace::RGB, 3),
    };
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let samples = decoder.decode()?;
    if samples.len() != width as usize * height as usize * channels {
        return Err(Fault::Undecodable("it has too few pixels".to_owned()));
    }
    let exif = decoder.exif();
    Ok(Decoded {
        width,
        height,
        channels,
        samples,
        orientation: exif.and_then(|exif| Orientation::of_exif(exif)),
    })
}

fn no_header() -> Fault {
    Fault::Undecodable("it has no frame".to_owned())
}

/// Whether the marker that ends a picture follows the one that begins its pixels. Segments before that are passed
/// over as a whole: a preview in one of them has an end of its own. Among the pixels, a byte of 255 that is no marker
/// is followed by 0.
fn has_end(file: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    const END: [u8; 2] = [0xFF, 0xD9];
    let mut rest = &file[2..];
    loop {
        // Bytes between segments are the decoder's business.
        let Some(at) = rest.iter().position(|&byte| byte == 0xFF) else {
            return false;
        };
        let (marker, after) = match &rest[at + 1..] {
            [0xFF, ..] => {
                rest = &rest[at + 1..];
                continue;
            }
            [marker, after @ ..] => (*marker, after),
            [] => return false,
        };
        match (marker, after) {
            (START_OF_SCAN, _) => return after.windows(2).any(|pair| pair == END),
            // Without a length.
            (0x00 | 0x01 | 0xD0..=0xD9, _) => rest = after,
            (_, [high, low, ..]) => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                match after.get(length.max(2)..) {
                    Some(next) => rest = next,
                    None => return false,
                }
            }
            _ => return false,
        }
    }
}

impl From<DecodeErrors> for Fault {
    fn from(error: DecodeErrors) -> Self {
        match error {
            DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => Self::Truncated,
            error => Self::Undecodable(error.to_string()),
        }
    }
}
