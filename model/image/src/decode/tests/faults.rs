//! Files that are refused, with what is said of them.

use std::fs::{self, File};

use firebox_console::advice::Advise;
use image_webp::ColorType as WebPColor;
use png::{BitDepth, ColorType};

use super::super::{MAX_BYTES, decode, open};
use super::samples::{Jpeg, Png, animated_webp, webp};
use crate::error::PictureError;
use crate::orientation::tests::exif;

/// Whole files of every format.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let blocks: &[&[u8]] = &[&[50, 60, 70], &[200, 1, 255]];
    let jpeg = |is_progressive| {
        let jpeg = Jpeg {
            blocks,
            is_progressive,
            exif: Some(exif(3, false)),
            ..Jpeg::default()
        };
        jpeg.file()
    };
    let palette = Png {
        width: 9,
        color: ColorType::Indexed,
        depth: BitDepth::Four,
        palette: &[1, 2, 3, 4, 5, 6],
        transparency: &[128],
        exif: Some(exif(5, true)),
    };
    let pixels: Vec<u8> = (0..4 * 4 * 5).map(|value| value * 7).collect();
    vec![
        (
            "PNG",
            palette.file(&[0x01, 0x10, 0x11, 0x01, 0x10, 0x11, 0, 0, 0, 0]),
        ),
        ("JPEG", jpeg(false)),
        ("JPEG", jpeg(true)),
        ("WebP", webp(4, &pixels, WebPColor::Rgba8, None)),
        (
            "WebP",
            webp(4, &pixels, WebPColor::Rgba8, Some(exif(8, true))),
        ),
    ]
}

#[test]
fn a_file_without_its_end_is_refused() {
    for (format, file) in files() {
        let whole = decode("whole", &file).unwrap();
        let mut truncated = 0;
        for end in 0..file.len() {
            match decode("part", &file[..end]) {
                Ok(picture) => panic!(
                    "{format} up to byte {end} of {}: {picture:?}, {whole:?}",
                    file.len()
                ),
                Err(PictureError::Truncated { .. }) => truncated += 1,
                Err(_) => {}
            }
        }
        assert!(
            truncated * 4 > file.len() * 3,
            "{format}: {truncated} of {}",
            file.len()
        );
    }
}

#[test]
fn damage_is_an_error_or_another_picture() {
    for (_, file) in files() {
        for place in 0..file.len() {
            for flip in [0x01, 0x80, 0xFF] {
                let mut damaged = file.clone();
                damaged[place] ^= flip;
                let _ = decode("damaged", &damaged);
            }
        }
    }
}

fn refused(file: &[u8]) -> String {
    let error = decode("cat.png", file).unwrap_err();
    let hint = error.hint().unwrap_or_default();
    format!("{error}\nhint: {hint}")
}

#[test]
fn what_is_said_of_files_that_are_no_pictures() {
    assert_eq!(
        refused(b"GIF89a"),
        "cat.png is a GIF, and pictures are PNG, JPEG or WebP\n\
         hint: save it as PNG; `magick` of ImageMagick converts many files at once"
    );
    assert_eq!(
        refused(b"<html>404"),
        "cat.png is a web page, and pictures are PNG, JPEG or WebP\n\
         hint: open it in a browser: a server answered with a page in place of the picture"
    );
    let (_, file) = files().swap_remove(1);
    assert_eq!(
        refused(&file[..file.len() - 3]),
        "cat.png is a JPEG that ends too soon: it is incomplete\nhint: copy or download it again"
    );
    let animated = "hint: save one of its frames as a picture";
    assert_eq!(
        refused(&Png::default().animated(&[1, 2, 3, 4, 5, 6])),
        format!("cat.png is an animated PNG, and only still pictures are read\n{animated}")
    );
    assert_eq!(
        refused(&animated_webp()),
        format!("cat.png is an animated WebP, and only still pictures are read\n{animated}")
    );
    let missing = open("no/such.png".as_ref()).unwrap_err();
    assert!(
        missing.to_string().starts_with("cannot read no/such.png: "),
        "{missing}"
    );
}

#[test]
fn large_pictures_are_refused_before_they_are_decoded() {
    let scale = "\nhint: scale it down: a model sees no more than its tiles hold, however large the picture is";
    // Headers alone: a decoder that went on would miss the rest.
    let png = Png {
        width: 1,
        color: ColorType::Grayscale,
        ..Png::default()
    };
    let mut file = png.file(&[0]);
    file[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let check = [0x49, 0xEF, 0x6F, 0x3F];
    file[29..33].copy_from_slice(&check);
    let too_many = "pixels, and a picture may have 64,000,000 in all";
    assert_eq!(
        refused(&file),
        format!("cat.png has 65,536 × 65,536 {too_many}{scale}")
    );

    let blocks: &[&[u8]] = &[&[50]];
    let mut file = Jpeg {
        blocks,
        ..Jpeg::default()
    }
    .file();
    let frame = file
        .windows(2)
        .position(|pair| pair == [0xFF, 0xC0])
        .unwrap();
    file[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF]);
    assert_eq!(
        refused(&file),
        format!("cat.png has 65,535 × 65,535 {too_many}{scale}")
    );

    let mut file = webp(1, &[1, 2, 3], WebPColor::Rgb8, None);
    // Of 14 bits each, less one, after the signature of the chunk.
    file[21..25].copy_from_slice(&(0x3FFE << 14 | 0x3FFE_u32).to_le_bytes());
    assert_eq!(
        refused(&file),
        format!("cat.png has 16,383 × 16,383 {too_many}{scale}")
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.png");
    fs::write(&path, b"\x89PNG\r\n\x1A\n").unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(MAX_BYTES + 1)
        .unwrap();
    let error = open(&path).unwrap_err();
    let most = "has more than 64 MiB, the most that a picture's file may have";
    assert!(error.to_string().contains(most), "{error}");
}
