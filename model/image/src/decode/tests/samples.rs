//! Small files of every format.

use image_webp::{ColorType as WebPColor, WebPEncoder};
use png::{BitDepth, ColorType, Encoder, Info, chunk};

/// A PNG of packed rows, with a palette and with transparency where these are given.
pub(super) struct Png<'a> {
    pub(super) width: u32,
    pub(super) color: ColorType,
    pub(super) depth: BitDepth,
    pub(super) palette: &'a [u8],
    pub(super) transparency: &'a [u8],
    pub(super) exif: Option<Vec<u8>>,
}

impl Default for Png<'_> {
    fn default() -> Self {
        Self {
            width: 2,
            color: ColorType::Rgb,
            depth: BitDepth::Eight,
            palette: &[],
            transparency: &[],
            exif: None,
        }
    }
}

impl<'a> Png<'a> {
    fn info(&self, height: u32) -> Info<'a> {
        let mut info = Info::with_size(self.width, height);
        info.color_type = self.color;
        info.bit_depth = self.depth;
        let given = |bytes: &'a [u8]| (!bytes.is_empty()).then_some(bytes.into());
        info.palette = given(self.palette);
        info.trns = given(self.transparency);
        info.exif_metadata = self.exif.clone().map(Into::into);
        info
    }

    /// Of these packed rows.
    pub(super) fn file(&self, rows: &[u8]) -> Vec<u8> {
        let bits = self.color.samples() * self.depth as usize * self.width as usize;
        let mut file = Vec::new();
        let info = self.info((rows.len() / bits.div_ceil(8)) as u32);
        let mut writer = Encoder::with_info(&mut file, info)
            .unwrap()
            .write_header()
            .unwrap();
        writer.write_image_data(rows).unwrap();
        writer.finish().unwrap();
        file
    }

    /// Interlaced: its data as PNG lays it out for that, with a filter byte before each row of each pass.
    pub(super) fn interlaced(&self, height: u32, data: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut info = self.info(height);
        info.interlaced = true;
        let mut writer = Encoder::with_info(&mut file, info)
            .unwrap()
            .write_header()
            .unwrap();
        writer.write_chunk(chunk::IDAT, &zlib(data)).unwrap();
        // The writer has seen no rows, and so would not end the file.
        writer.write_chunk(chunk::IEND, &[]).unwrap();
        drop(writer);
        file
    }

    /// With two frames.
    pub(super) fn animated(&self, rows: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = Encoder::with_info(&mut file, self.info(1)).unwrap();
        encoder.set_animated(2, 0).unwrap();
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(rows).unwrap();
        writer.write_image_data(rows).unwrap();
        writer.finish().unwrap();
        file
    }
}

/// A zlib stream that is not compressed (RFC 1950, RFC 1951).
fn zlib(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_le_bytes();
    let inverted = (!(data.len() as u16)).to_le_bytes();
    let (mut low, mut high) = (1_u32, 0_u32);
    for &byte in data {
        low = (low + u32::from(byte)) % 65_521;
        high = (high + low) % 65_521;
    }
    let sum = (high << 16 | low).to_be_bytes();
    [&[0x78, 0x01, 0x01], &length[..], &inverted, data, &sum].concat()
}

/// A JPEG of one row of blocks, 8 × 8 pixels each, of one colour each.
#[derive(Default)]
pub(super) struct Jpeg<'a> {
    /// `[blocks, channels]`
    pub(super) blocks: &'a [&'a [u8]],
    /// What Adobe's marker says of the channels: 0 RGB or CMYK, 1 YCbCr, 2 YCCK.
    pub(super) adobe: Option<u8>,
    pub(super) is_progressive: bool,
    pub(super) exif: Option<Vec<u8>>,
}

impl Jpeg<'_> {
    pub(super) fn file(&self) -> Vec<u8> {
        let channels = self.blocks[0].len() as u8;
        let mut file = vec![0xFF, 0xD8];
        let mut segment = |marker: u8, content: &[u8]| {
            file.extend([0xFF, marker]);
            file.extend((content.len() as u16 + 2).to_be_bytes());
            file.extend(content);
        };
        if let Some(exif) = &self.exif {
            segment(0xE1, &[b"Exif\0\0", &exif[..]].concat());
        }
        if let Some(transform) = self.adobe {
            segment(
                0xEE,
                &[b"Adobe", &[0, 100, 0, 0, 0, 0, transform][..]].concat(),
            );
        }
        // A quantum of 8 makes the mean of a block its first coefficient.
        segment(0xDB, &[&[0], &[8; 64][..]].concat());
        let width = (self.blocks.len() * 8) as u16;
        let size = [&[8, 0, 8], &width.to_be_bytes()[..], &[channels]].concat();
        let components = (1..=channels).flat_map(|component| [component, 0x11, 0]);
        let frame = if self.is_progressive { 0xC2 } else { 0xC0 };
        segment(
            frame,
            &size.into_iter().chain(components).collect::<Vec<u8>>(),
        );
        // Twelve codes of four bits, for the number of bits of a difference; one of one bit, which ends a block.
        let lengths = [0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        segment(
            0xC4,
            &[
                &[0x00],
                &lengths[..],
                &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            ]
            .concat(),
        );
        let lengths = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        segment(0xC4, &[&[0x10], &lengths[..], &[0]].concat());
        let selectors = (1..=channels).flat_map(|component| [component, 0x00]);
        let last = if self.is_progressive { 0 } else { 63 };
        let scan = [channels].into_iter().chain(selectors).chain([0, last, 0]);
        segment(0xDA, &scan.collect::<Vec<u8>>());
        file.extend(self.pixels());
        file.extend([0xFF, 0xD9]);
        file
    }

    /// The coded differences of the blocks' means (ITU-T T.81, F.1.2.1).
    fn pixels(&self) -> Vec<u8> {
        let mut bits: Vec<bool> = Vec::new();
        let mut push = |value: u32, count: u32| {
            bits.extend((0..count).rev().map(|place| value >> place & 1 == 1));
        };
        let mut before = vec![128_i32; self.blocks[0].len()];
        for block in self.blocks {
            for (&value, before) in block.iter().zip(&mut before) {
                let difference = i32::from(value) - *before;
                *before = i32::from(value);
                let size = 32 - difference.unsigned_abs().leading_zeros();
                push(size, 4);
                let negative = if difference < 0 { -1 } else { 0 };
                push((difference + negative) as u32, size);
                if !self.is_progressive {
                    push(0, 1);
                }
            }
        }
        while !bits.len().is_multiple_of(8) {
            bits.push(true);
        }
        let bytes = bits
            .chunks(8)
            .map(|byte| byte.iter().fold(0, |byte, &bit| byte << 1 | u8::from(bit)));
        bytes
            .flat_map(|byte| {
                if byte == 0xFF {
                    vec![0xFF, 0]
                } else {
                    vec![byte]
                }
            })
            .collect()
    }
}

/// A lossless WebP, with Exif data where this is given.
pub(super) fn webp(width: u32, pixels: &[u8], color: WebPColor, exif: Option<Vec<u8>>) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = WebPEncoder::new(&mut file);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif);
    }
    let channels = if color == WebPColor::Rgba8 { 4 } else { 3 };
    let height = pixels.len() as u32 / width / channels;
    encoder.encode(pixels, width, height, color).unwrap();
    file
}

/// A WebP with one frame of an animation, of one pixel.
pub(super) fn animated_webp() -> Vec<u8> {
    let still = webp(1, &[1, 2, 3], WebPColor::Rgb8, None);
    let chunk = |name: &[u8], content: &[u8]| {
        let length = (content.len() as u32).to_le_bytes();
        [name, &length, content, &[0][..content.len() % 2]].concat()
    };
    // After "RIFF", its length and "WEBP" follows the one chunk of a still picture.
    let frame = [&[0; 16], &still[12..]].concat();
    let body = [
        &b"WEBP"[..],
        &chunk(b"VP8X", &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        &chunk(b"ANIM", &[0; 6]),
        &chunk(b"ANMF", &frame),
    ];
    chunk(b"RIFF", &body.concat())
}
