//! A picture without transparency.

use std::path::Path;

use super::decode;
use super::error::PictureError;
use super::resize::resize;

/// Pixels of three channels: red, green, blue.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// From pixels, `[height, width, 3]`.
    ///
    /// # Panics
    ///
    /// When a side is 0, or `rgb` has another length.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0, "a picture has pixels");
        assert_eq!(rgb.len(), width * height * 3, "three bytes a pixel");
        Self { width, height, rgb }
    }

    /// Reads a PNG, JPEG or WebP file, whatever its name is.
    ///
    /// The picture is rotated and mirrored as its Exif orientation says, grey becomes three equal channels, 16 bits a channel become
    /// the upper 8, CMYK is taken as Adobe's programs write it, and what is transparent is laid over white. Colour
    /// profiles are not applied.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is of another kind, incomplete, animated, not what its format allows, or larger
    /// than [`MAX_BYTES`](crate::MAX_BYTES) and [`MAX_PIXELS`](crate::MAX_PIXELS).
    pub fn open(path: &Path) -> Result<Self, PictureError> {
        decode::open(path)
    }

    /// Decodes the content of such a file. Errors call it `name`.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), except for reading.
    pub fn decode(name: &str, file: &[u8]) -> Result<Self, PictureError> {
        decode::decode(name, file)
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows of pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The picture with other sides: Pillow's antialiasing bilinear filter, as [`Processor`](crate::Processor) resizes.
    ///
    /// # Panics
    ///
    /// When a side is 0.
    pub fn resized(&self, width: usize, height: usize) -> Self {
        assert!(width > 0 && height > 0, "a picture has pixels");
        resize(self, width, height)
    }

    /// The picture moved right and down (left and up where negative) by some pixels within its frame. What moves out
    /// is lost; what becomes free is white.
    pub fn shifted(&self, right: isize, down: isize) -> Self {
        let mut rgb = vec![255; self.rgb.len()];
        let (target, source, columns) = overlap(self.width, right);
        let (target_row, source_row, rows) = overlap(self.height, down);
        for row in 0..rows {
            let from = ((source_row + row) * self.width + source) * 3;
            let to = ((target_row + row) * self.width + target) * 3;
            rgb[to..to + columns * 3].copy_from_slice(&self.rgb[from..from + columns * 3]);
        }
        Self { rgb, ..*self }
    }

    /// From channels of 8 bits, `[height, width, channels]`: grey, grey and alpha, RGB, or RGB and alpha.
    pub(crate) fn from_channels(
        width: usize,
        height: usize,
        channels: usize,
        samples: Vec<u8>,
    ) -> Self {
        let rgb = match channels {
            1 => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
            2 => {
                let pixels = samples.chunks_exact(2);
                pixels
                    .flat_map(|pixel| [over_white(pixel[0], pixel[1]); 3])
                    .collect()
            }
            3 => samples,
            4 => {
                let pixels = samples.chunks_exact(4);
                let shown =
                    |pixel: &[u8]| [0, 1, 2].map(|channel| over_white(pixel[channel], pixel[3]));
                pixels.flat_map(shown).collect()
            }
            _ => unreachable!("decoders give one to four channels"),
        };
        Self::new(width, height, rgb)
    }
}

/// Where a line of `length` pixels, moved by some, is still within its frame: the first pixel there, the first pixel
/// of it, and the number of pixels.
fn overlap(length: usize, by: isize) -> (usize, usize, usize) {
    let distance = by.unsigned_abs().min(length);
    match by > 0 {
        true => (distance, 0, length - distance),
        false => (0, distance, length - distance),
    }
}

/// A value with this alpha over white, rounded as Pillow's `alpha_composite` does: with 7 more bits, and a division by
/// 255 done by shifts.
fn over_white(value: u8, alpha: u8) -> u8 {
    let alpha = u32::from(alpha);
    let sum = (u32::from(value) * alpha + 255 * (255 - alpha) + 128) << 7;
    (((sum >> 8) + sum) >> 15) as u8
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "Picture of {} × {} pixels",
            self.width, self.height
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_mixes_with_white() {
        for value in 0..=255 {
            assert_eq!(over_white(value, 255), value);
            assert_eq!(over_white(value, 0), 255);
            for alpha in 0..=255 {
                let share = f64::from(alpha) / 255.0;
                let exact = f64::from(value) * share + 255.0 * (1.0 - share);
                let error = (f64::from(over_white(value, alpha)) - exact).abs();
                assert!(error < 0.51, "{value} {alpha}");
            }
        }
    }

    #[test]
    fn shifted_pictures_keep_what_stays_within() {
        let rgb: Vec<u8> = (0..12).flat_map(|pixel| [pixel; 3]).collect();
        let picture = Picture::new(4, 3, rgb);
        let red =
            |picture: &Picture| -> Vec<u8> { picture.rgb().iter().copied().step_by(3).collect() };
        let white = 255;
        assert_eq!(
            red(&picture.shifted(1, -1)),
            [white, 4, 5, 6, white, 8, 9, 10, white, white, white, white]
        );
        assert_eq!(
            red(&picture.shifted(-3, 2)),
            [
                white, white, white, white, white, white, white, white, 3, white, white, white
            ]
        );
        assert_eq!(picture.shifted(0, 0), picture);
        assert_eq!(red(&picture.shifted(9, 0)), [white; 12]);
    }
}
