//! What is read, and as which pixels.

use image_webp::ColorType as WebPColor;
use png::{BitDepth, ColorType};

use super::super::decode;
use super::samples::{Jpeg, Png, webp};
use crate::orientation::tests::exif;
use crate::picture::Picture;

fn pixels(file: &[u8]) -> Vec<u8> {
    decode("a picture", file).unwrap().rgb().to_vec()
}

/// Two pixels of these greys.
fn greys(first: u8, second: u8) -> Vec<u8> {
    [[first; 3], [second; 3]].concat()
}

#[test]
fn png_of_every_color_type_and_depth() {
    use BitDepth::{Eight, Four, One, Sixteen, Two};
    use ColorType::{Grayscale, GrayscaleAlpha, Rgb, Rgba};
    let file = |color, depth, rows: &[u8]| {
        let png = Png {
            color,
            depth,
            ..Png::default()
        };
        pixels(&png.file(rows))
    };
    assert_eq!(file(Grayscale, One, &[0b0100_0000]), greys(0, 255));
    assert_eq!(file(Grayscale, Two, &[0b0110_0000]), greys(85, 170));
    assert_eq!(file(Grayscale, Four, &[0x3F]), greys(51, 255));
    assert_eq!(file(Grayscale, Eight, &[3, 200]), greys(3, 200));
    assert_eq!(file(Grayscale, Sixteen, &[3, 255, 200, 0]), greys(3, 200));
    assert_eq!(file(GrayscaleAlpha, Eight, &[9, 255, 0, 51]), greys(9, 204));
    assert_eq!(
        file(GrayscaleAlpha, Sixteen, &[9, 1, 255, 1, 0, 0, 51, 0]),
        greys(9, 204)
    );
    let colors = [1, 2, 3, 4, 5, 6];
    assert_eq!(file(Rgb, Eight, &colors), colors);
    let doubled: Vec<u8> = colors.iter().flat_map(|&value| [value, 128]).collect();
    assert_eq!(file(Rgb, Sixteen, &doubled), colors);
    let transparent = [1, 2, 3, 255, 4, 5, 6, 0];
    assert_eq!(file(Rgba, Eight, &transparent), [1, 2, 3, 255, 255, 255]);
    let doubled: Vec<u8> = transparent.iter().flat_map(|&value| [value, 128]).collect();
    assert_eq!(file(Rgba, Sixteen, &doubled), [1, 2, 3, 255, 255, 255]);
}

#[test]
fn png_with_palette_and_transparent_colors() {
    let palette = [10, 20, 30, 0, 0, 0, 70, 80, 90];
    for (depth, row) in [
        (BitDepth::Two, [0b1000_0000].as_slice()),
        (BitDepth::Four, &[0x20]),
        (BitDepth::Eight, &[2, 0]),
    ] {
        let mut png = Png {
            color: ColorType::Indexed,
            depth,
            palette: &palette,
            ..Png::default()
        };
        assert_eq!(pixels(&png.file(row)), [70, 80, 90, 10, 20, 30]);
        png.transparency = &[0];
        assert_eq!(pixels(&png.file(row)), [70, 80, 90, 255, 255, 255]);
    }
    let one = Png {
        color: ColorType::Indexed,
        depth: BitDepth::One,
        palette: &palette[..6],
        transparency: &[255, 51],
        ..Png::default()
    };
    assert_eq!(
        pixels(&one.file(&[0b0100_0000])),
        [10, 20, 30, 204, 204, 204]
    );
    let grey = Png {
        color: ColorType::Grayscale,
        transparency: &[0, 7],
        ..Png::default()
    };
    assert_eq!(pixels(&grey.file(&[7, 8])), greys(255, 8));
}

#[test]
fn png_interlaced() {
    let png = Png {
        width: 3,
        color: ColorType::Grayscale,
        ..Png::default()
    };
    // Of 3 × 3 pixels, the first pass has the first one, the fourth the third of the first row, the fifth two of the
    // third row, the sixth the middle ones of these rows, the last the second row (PNG specification, 8.2).
    let passes = [0, 1, 0, 3, 0, 7, 9, 0, 2, 0, 8, 0, 4, 5, 6];
    let expected: Vec<u8> = (1..=9).flat_map(|grey| [grey; 3]).collect();
    assert_eq!(pixels(&png.interlaced(3, &passes)), expected);
}

#[test]
fn jpeg_of_every_color_space() {
    let first = |jpeg: &Jpeg| pixels(&jpeg.file())[..3].to_vec();
    for is_progressive in [false, true] {
        let jpeg = |block: &[u8], adobe| {
            first(&Jpeg {
                blocks: &[block],
                adobe,
                is_progressive,
                ..Jpeg::default()
            })
        };
        assert_eq!(jpeg(&[77], None), [77; 3]);
        assert_eq!(jpeg(&[77, 128, 128], None), [77; 3]);
        // Full red by JFIF's matrix.
        assert_eq!(jpeg(&[76, 85, 255], None), [254, 0, 0]);
        assert_eq!(jpeg(&[10, 20, 30], Some(0)), [10, 20, 30]);
        // Adobe stores inks inverted: 255 is none.
        assert_eq!(jpeg(&[255, 255, 255, 255], Some(0)), [255; 3]);
        assert_eq!(jpeg(&[0, 255, 255, 255], Some(0)), [0, 255, 255]);
        assert_eq!(jpeg(&[255, 128, 255, 128], Some(0)), [128, 64, 128]);
        // The inks as YCbCr: no ink but black.
        assert_eq!(jpeg(&[0, 128, 128, 100], Some(2)), [100; 3]);
    }
}

#[test]
fn webp_with_and_without_alpha() {
    let colors = [1, 2, 3, 4, 5, 6];
    assert_eq!(pixels(&webp(2, &colors, WebPColor::Rgb8, None)), colors);
    let transparent = [1, 2, 3, 255, 4, 5, 6, 0];
    let file = webp(2, &transparent, WebPColor::Rgba8, None);
    assert_eq!(pixels(&file), [1, 2, 3, 255, 255, 255]);
}

#[test]
fn pictures_are_turned_as_exif_says() {
    // Stored as a row, seen as a column: the first pixel is above.
    let upright = |file: &[u8]| -> Picture { decode("a picture", file).unwrap() };
    let colors = [1, 2, 3, 4, 5, 6];
    let exif = || Some(exif(6, true));
    let png = Png {
        exif: exif(),
        ..Png::default()
    };
    let column = Picture::new(1, 2, colors.to_vec());
    assert_eq!(upright(&png.file(&colors)), column);
    assert_eq!(upright(&webp(2, &colors, WebPColor::Rgb8, exif())), column);
    let jpeg = Jpeg {
        blocks: &[&[50], &[200]],
        exif: exif(),
        ..Jpeg::default()
    };
    let seen = upright(&jpeg.file());
    assert_eq!((seen.width(), seen.height()), (8, 16));
    assert_eq!(seen.rgb(), [[50; 8 * 8 * 3], [200; 8 * 8 * 3]].concat());
}
