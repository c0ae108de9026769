//! How the rows and columns of a picture are rotated and mirrored to show it upright (Exif 2.32, tag 274).

use super::picture::Picture;

/// Exif's tag of the orientation.
const ORIENTATION: u16 = 0x0112;
/// Exif's type of 16-bit integers.
const SHORT: u16 = 3;

/// An orientation other than upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orientation {
    /// Whether rows and columns change places, before anything else.
    transpose: bool,
    /// Whether each row then runs backwards.
    mirror: bool,
    /// Whether the rows then run from below.
    flip: bool,
}

impl Orientation {
    /// What Exif data says: a TIFF header and its first directory, with or without the marker that JPEG puts before
    /// them. `None` where it says upright, nothing, or nothing that makes sense, as other programs have it.
    pub(crate) fn of_exif(exif: &[u8]) -> Option<Self> {
        let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
        let is_little = match tiff.get(..4)? {
            b"II*\0" => true,
            b"MM\0*" => false,
            _ => return None,
        };
        let short = |at: usize| -> Option<u16> {
            let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
            Some(match is_little {
                true => u16::from_le_bytes(bytes),
                false => u16::from_be_bytes(bytes),
            })
        };
        let (low, high) = if is_little { (4, 6) } else { (6, 4) };
        let directory = usize::from(short(high)?) << 16 | usize::from(short(low)?);
        let entries = (0..usize::from(short(directory)?)).map(|entry| directory + 2 + entry * 12);
        for entry in entries {
            if short(entry)? == ORIENTATION && short(entry + 2)? == SHORT {
                return Self::of_number(short(entry + 8)?);
            }
        }
        None
    }

    fn of_number(number: u16) -> Option<Self> {
        let (transpose, mirror, flip) = match number {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => return None,
        };
        Some(Self {
            transpose,
            mirror,
            flip,
        })
    }

    /// The picture as it is to be seen.
    pub(crate) fn apply(self, picture: &Picture) -> Picture {
        let (width, height) = match self.transpose {
            true => (picture.height(), picture.width()),
            false => (picture.width(), picture.height()),
        };
        let mut rgb = Vec::with_capacity(picture.rgb().len());
        for row in 0..height {
            let row = if self.flip { height - 1 - row } else { row };
            for column in 0..width {
                let column = if self.mirror {
                    width - 1 - column
                } else {
                    column
                };
                let pixel = match self.transpose {
                    true => column * picture.width() + row,
                    false => row * picture.width() + column,
                };
                rgb.extend_from_slice(&picture.rgb()[pixel * 3..pixel * 3 + 3]);
            }
        }
        Picture::new(width, height, rgb)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Exif data with this orientation, after an entry that does not matter.
    pub(crate) fn exif(number: u16, is_little: bool) -> Vec<u8> {
        let short = |value: u16| match is_little {
            true => value.to_le_bytes(),
            false => value.to_be_bytes(),
        };
        let long = |value: u32| match is_little {
            true => value.to_le_bytes(),
            false => value.to_be_bytes(),
        };
        let mut bytes = if is_little { b"II*\0" } else { b"MM\0*" }.to_vec();
        bytes.extend(long(8));
        bytes.extend(short(2));
        for (tag, value) in [(0x0100, 7), (ORIENTATION, number)] {
            bytes.extend(short(tag));
            bytes.extend(short(SHORT));
            bytes.extend(long(1));
            bytes.extend(short(value));
            bytes.extend(short(0));
        }
        bytes.extend(long(0));
        bytes
    }

    #[test]
    fn every_orientation_gives_the_upright_picture() {
        // Upright it reads 1 2 3 / 4 5 6. As Exif describes the eight, row 0 and column 0 of what is stored are these
        // sides of what is seen: top left, top right, bottom right, bottom left, left top, right top, right bottom,
        // left bottom.
        let stored: [(usize, [u8; 6]); 8] = [
            (3, [1, 2, 3, 4, 5, 6]),
            (3, [3, 2, 1, 6, 5, 4]),
            (3, [6, 5, 4, 3, 2, 1]),
            (3, [4, 5, 6, 1, 2, 3]),
            (2, [1, 4, 2, 5, 3, 6]),
            (2, [3, 6, 2, 5, 1, 4]),
            (2, [6, 3, 5, 2, 4, 1]),
            (2, [4, 1, 5, 2, 6, 3]),
        ];
        let picture = |width, reds: &[u8]| {
            Picture::new(
                width,
                6 / width,
                reds.iter().flat_map(|&red| [red, 0, 9]).collect(),
            )
        };
        for (number, (width, pixels)) in (1..).zip(stored) {
            for is_little in [true, false] {
                let found = Orientation::of_exif(&exif(number, is_little));
                assert_eq!(found.is_none(), number == 1);
                let stored = picture(width, &pixels);
                let seen = found.map_or_else(|| stored.clone(), |found| found.apply(&stored));
                assert_eq!(
                    seen.rgb(),
                    picture(3, &[1, 2, 3, 4, 5, 6]).rgb(),
                    "{number}"
                );
                assert_eq!((seen.width(), seen.height()), (3, 2));
            }
        }
    }

    #[test]
    fn broken_exif_says_nothing() {
        let whole = exif(6, true);
        for end in 0..whole.len() - 8 {
            let found = Orientation::of_exif(&whole[..end]);
            assert!(found.is_none() || end >= 32, "{end}");
        }
        for number in [0, 9, 65_535] {
            assert_eq!(Orientation::of_exif(&exif(number, true)), None);
        }
        assert_eq!(Orientation::of_exif(b"II*\0\xFF\xFF\xFF\xFF"), None);
        let marked = [b"Exif\0\0", &whole[..]].concat();
        assert_eq!(Orientation::of_exif(&marked), Orientation::of_number(6));
    }
}
