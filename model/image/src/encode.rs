//! Pictures as files, for pages that show them.

use png::{BitDepth, ColorType, Encoder};

/// A PNG file of pixels, `[height, width, 4]`: red, green, blue and alpha.
///
/// # Panics
///
/// When a side is 0, or there are more or fewer bytes.
pub fn encode_png(width: usize, height: usize, rgba: &[u8]) -> Vec<u8> {
    assert!(width > 0 && height > 0, "a picture has pixels");
    assert_eq!(rgba.len(), width * height * 4, "four bytes a pixel");
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(ColorType::Rgba);
    encoder.set_depth(BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(rgba)?;
        writer.finish()
    });
    written.expect("memory takes all bytes of a picture of this size");
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Picture;

    #[test]
    fn what_is_written_is_read_again() {
        let pixels = [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 0]];
        let file = encode_png(3, 1, pixels.as_flattened());
        let read = Picture::decode("a picture", &file).unwrap();
        // What is transparent is laid over white.
        assert_eq!(read.rgb(), [255, 0, 0, 0, 255, 0, 255, 255, 255]);
    }
}
