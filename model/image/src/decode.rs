//! From a file to pixels, within limits that are checked before anything of the picture's size is allocated.

mod jpeg;
mod png;
#[cfg(test)]
mod tests;
mod webp;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use firebox_console::durable::FileError;

use super::error::PictureError;
use super::format::Format;
use super::orientation::Orientation;
use super::picture::Picture;

/// The largest file that is read.
pub const MAX_BYTES: u64 = 64 << 20;

/// The most pixels of a picture, rows times columns. Decoding takes up to 12 bytes for each.
pub const MAX_PIXELS: u32 = 64_000_000;

/// A decoded picture as its file has it.
struct Decoded {
    width: u32,
    height: u32,
    /// 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
    channels: usize,
    /// `[height, width, channels]`
    samples: Vec<u8>,
    orientation: Option<Orientation>,
}

/// What is wrong with a file's content.
enum Fault {
    TooManyPixels(u32, u32),
    Animated,
    Truncated,
    Undecodable(String),
}

pub(crate) fn open(path: &Path) -> Result<Picture, PictureError> {
    let name = path.display().to_string();
    let mut file = Vec::new();
    File::open(path)
        .and_then(|opened| opened.take(MAX_BYTES + 1).read_to_end(&mut file))
        .map_err(FileError::of("read", path))?;
    decode(&name, &file)
}

pub(crate) fn decode(name: &str, file: &[u8]) -> Result<Picture, PictureError> {
    let name = || name.to_owned();
    if file.len() as u64 > MAX_BYTES {
        return Err(PictureError::TooManyBytes { name: name() });
    }
    let format = Format::of(file).map_err(|kind| PictureError::Foreign { name: name(), kind })?;
    let decoded = match format {
        Format::Png => png::decode(file),
        Format::Jpeg => jpeg::decode(file),
        Format::WebP => webp::decode(file),
    };
    let decoded = decoded.map_err(|fault| match fault {
        Fault::TooManyPixels(width, height) => PictureError::TooManyPixels {
            name: name(),
            width,
            height,
        },
        Fault::Animated => PictureError::Animated {
            name: name(),
            format,
        },
        Fault::Truncated => PictureError::Truncated {
            name: name(),
            format,
        },
        Fault::Undecodable(message) => PictureError::Undecodable {
            name: name(),
            format,
            message,
        },
    })?;
    let (width, height) = (decoded.width as usize, decoded.height as usize);
    let picture = Picture::from_channels(width, height, decoded.channels, decoded.samples);
    Ok(match decoded.orientation {
        Some(orientation) => orientation.apply(&picture),
        None => picture,
    })
}

/// Refuses sides of which a picture cannot be or must not be.
fn check_size(width: u32, height: u32) -> Result<(), Fault> {
    match u64::from(width) * u64::from(height) {
        0 => Err(Fault::Undecodable("it has no pixels".to_owned())),
        pixels if pixels > u64::from(MAX_PIXELS) => Err(Fault::TooManyPixels(width, height)),
        _ => Ok(()),
    }
}
