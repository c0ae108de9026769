//! Kinds of files, told by their first bytes: a file's name says nothing certain.

use std::fmt;

/// A format of pictures that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Portable Network Graphics.
    Png,
    /// JPEG, baseline or progressive.
    Jpeg,
    /// WebP, lossy or lossless.
    WebP,
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
        })
    }
}

/// A kind of file that somebody may take for a picture that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// Nothing at all.
    Empty,
    /// A picture in another format: its name.
    Picture(&'static str),
    /// An SVG drawing.
    Svg,
    /// A web page, such as a server sends in place of a picture.
    Html,
    /// What Git LFS leaves in place of a file that it has not downloaded.
    LfsPointer,
    /// None of these.
    Unknown,
}

/// First bytes of formats that are not read. None is the beginning of another.
const MAGIC: &[(&[u8], &str)] = &[
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\0\0\x01\0", "an icon"),
    (b"8BPS", "a Photoshop picture"),
    (b"\xFF\x0A", "a JPEG XL picture"),
    (b"\0\0\0\x0CJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0CjP  ", "a JPEG 2000 picture"),
    (b"qoif", "a QOI picture"),
    (b"%PDF-", "a PDF"),
];

impl Format {
    /// The format of a file, or what else it is.
    pub(crate) fn of(file: &[u8]) -> Result<Self, Foreign> {
        if file.starts_with(b"\x89PNG\r\n\x1A\n") {
            return Ok(Self::Png);
        }
        if file.starts_with(b"\xFF\xD8\xFF") {
            return Ok(Self::Jpeg);
        }
        if file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP") {
            return Ok(Self::WebP);
        }
        Err(Foreign::of(file))
    }
}

impl Foreign {
    fn of(file: &[u8]) -> Self {
        if file.is_empty() {
            return Self::Empty;
        }
        if let Some(&(_, name)) = MAGIC.iter().find(|(magic, _)| file.starts_with(magic)) {
            return Self::Picture(name);
        }
        match (file.get(4..8), file.get(8..12)) {
            (Some(b"ftyp"), Some(b"avif" | b"avis")) => return Self::Picture("an AVIF picture"),
            (Some(b"ftyp"), Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1")) => {
                return Self::Picture("a HEIC picture");
            }
            _ => {}
        }
        if file.starts_with(b"version https://git-lfs.github.com/spec/") {
            return Self::LfsPointer;
        }
        let head = String::from_utf8_lossy(&file[..file.len().min(1024)]).to_ascii_lowercase();
        let head = head.trim_start_matches(['\u{FEFF}', ' ', '\t', '\r', '\n']);
        match head {
            _ if head.starts_with("<!doctype html") || head.starts_with("<html") => Self::Html,
            _ if head.starts_with('<') && head.contains("<svg") => Self::Svg,
            _ => Self::Unknown,
        }
    }

    /// What the file is, after "is".
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Picture(name) => name,
            Self::Svg => "an SVG drawing",
            Self::Html => "a web page",
            Self::LfsPointer => "a pointer of Git LFS, not the file itself",
            Self::Unknown => "of an unknown kind",
        }
    }

    /// How to get at a picture that is read.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::Picture(_) => {
                "save it as PNG; `magick` of ImageMagick converts many files at once"
            }
            Self::Svg => {
                "draw it as PNG at the size that the model is to see, for example with `rsvg-convert`"
            }
            Self::Html => {
                "open it in a browser: a server answered with a page in place of the picture"
            }
            Self::LfsPointer => "`git lfs pull` downloads the file",
            Self::Empty | Self::Unknown => "copy or download it again, or save it as PNG",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_content() {
        assert_eq!(Format::of(b"\x89PNG\r\n\x1A\n..."), Ok(Format::Png));
        assert_eq!(Format::of(b"\xFF\xD8\xFF\xE0"), Ok(Format::Jpeg));
        assert_eq!(Format::of(b"RIFF....WEBPVP8 "), Ok(Format::WebP));
        for (file, expected) in [
            (&b""[..], "empty"),
            (b"GIF89a", "a GIF"),
            (b"RIFF....WAVE", "of an unknown kind"),
            (b"\0\0\0\x18ftypheic", "a HEIC picture"),
            (b"\0\0\0\x18ftypavif", "an AVIF picture"),
            (b"\0\0\0\x18ftypmp42", "of an unknown kind"),
            (
                b"\xEF\xBB\xBF\n<?xml version=\"1.0\"?>\n<svg xmlns=\"",
                "an SVG drawing",
            ),
            (b"<!DOCTYPE html><svg>", "a web page"),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "a pointer of Git LFS, not the file itself",
            ),
            (b"\x89PNG\n", "of an unknown kind"),
        ] {
            assert_eq!(Format::of(file).unwrap_err().describe(), expected);
        }
    }
}
