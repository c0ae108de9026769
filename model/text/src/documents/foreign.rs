//! Files that are not the text that somebody takes them for, told by their first bytes, and how to get at their text.

use std::path::Path;

/// Bytes of a file that decide its kind.
pub(super) const HEAD: usize = 512;

/// A kind of file that contains no text as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// Compressed: its name, the usual extension, and the command that decompresses to standard output.
    Compressed(&'static str, &'static str, &'static str),
    /// An archive: its name, and the command that unpacks it.
    Archive(&'static str, &'static str),
    /// Text in another encoding: its name, and iconv's.
    Encoded(&'static str, &'static str),
    /// Parquet.
    Parquet,
    /// An Arrow file, also called Feather.
    ArrowFile,
    /// A stream of Arrow messages, as Hugging Face's datasets caches them.
    ArrowStream,
    /// PDF.
    Pdf,
    /// An SQLite database.
    Sqlite,
    /// What Git LFS leaves in place of a file that it has not downloaded.
    LfsPointer,
    /// Tokens, as llm.c stores them.
    Tokens,
    /// Any other known format without text: its name.
    Binary(&'static str),
    /// An array of JSON values, where JSON lines are expected.
    JsonArray,
    /// One JSON value over several lines, where JSON lines are expected.
    JsonDocument,
}

const BZIP2: Foreign = Foreign::Compressed("bzip2", "bz2", "bzcat");
const XZ: Foreign = Foreign::Compressed("xz", "xz", "xzcat");
const LZ4: Foreign = Foreign::Compressed("lz4", "lz4", "lz4 -dc");
const ZIP: Foreign = Foreign::Archive("a zip archive", "unzip");
const UTF16: Foreign = Foreign::Encoded("UTF-16", "utf-16");
const UTF32: Foreign = Foreign::Encoded("UTF-32", "utf-32");

/// First bytes, longer ones before those that they begin with. None is the beginning of a text: it is not UTF-8, has a
/// control character, or is long enough.
const MAGIC: &[(&[u8], Foreign)] = &[
    (b"\xFD7zXZ\0", XZ),
    (b"\x04\x22\x4D\x18", LZ4),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (
        b"7z\xBC\xAF\x27\x1C",
        Foreign::Archive("a 7z archive", "7z x"),
    ),
    (
        b"Rar!\x1A\x07",
        Foreign::Archive("a RAR archive", "unrar x"),
    ),
    // Thrift's first byte follows, in an empty file too.
    (b"PAR1\x15", Foreign::Parquet),
    (b"ARROW1\0\0", Foreign::ArrowFile),
    (b"FEA1\0", Foreign::ArrowFile),
    (b"\xFF\xFF\xFF\xFF", Foreign::ArrowStream),
    (b"SQLite format 3\0", Foreign::Sqlite),
    (
        b"version https://git-lfs.github.com/spec/",
        Foreign::LfsPointer,
    ),
    (b"\x88\xD8\x34\x01\x01\0\0\0", Foreign::Tokens),
    (b"\xA1\xD9\x34\x01\x07\0\0\0", Foreign::Tokens),
    (b"\x89PNG\r\n\x1A\n", Foreign::Binary("a PNG image")),
    (b"\xFF\xD8\xFF", Foreign::Binary("a JPEG image")),
    (b"\x93NUMPY", Foreign::Binary("a NumPy array")),
    (b"\x89HDF\r\n\x1A\n", Foreign::Binary("an HDF5 file")),
    (b"\x7FELF", Foreign::Binary("a program")),
    (b"\xFF\xFE\0\0", UTF32),
    (b"\0\0\xFE\xFF", UTF32),
    (b"\xFF\xFE", UTF16),
    (b"\xFE\xFF", UTF16),
];

impl Foreign {
    /// The kind of a file that begins with these bytes, at least [`HEAD`] of them if there are so many.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let magic = MAGIC.iter().find(|(magic, _)| head.starts_with(magic));
        if let Some(&(_, kind)) = magic {
            return Some(kind);
        }
        match head {
            [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..]
                if rest.starts_with(b"1AY&SY") || rest.starts_with(b"\x17rE8P\x90") =>
            {
                Some(BZIP2)
            }
            [b'%', b'P', b'D', b'F', b'-', b'0'..=b'9', b'.', ..] => Some(Self::Pdf),
            _ if head.get(257..262) == Some(b"ustar") => {
                Some(Self::Archive("a tar archive", "tar -xf"))
            }
            _ => unmarked(head),
        }
    }

    /// What the file is, after "is".
    pub(super) fn describe(self) -> String {
        match self {
            Self::Compressed(name, ..) => format!("compressed with {name}, not text"),
            Self::Archive(name, _) | Self::Binary(name) => format!("{name}, not text"),
            Self::Encoded(name, _) => format!("{name}, not UTF-8"),
            Self::Parquet => "a Parquet file, not text".to_owned(),
            Self::ArrowFile | Self::ArrowStream => "an Arrow file, not text".to_owned(),
            Self::Pdf => "a PDF, not text".to_owned(),
            Self::Sqlite => "an SQLite database, not text".to_owned(),
            Self::Tokens => "a token file of llm.c, not text".to_owned(),
            Self::LfsPointer => "a pointer of Git LFS, not the file itself".to_owned(),
            Self::JsonArray => "one JSON array, not JSON lines".to_owned(),
            Self::JsonDocument => "one JSON value over several lines, not JSON lines".to_owned(),
        }
    }

    /// How to get at its text.
    pub(super) fn hint(self, path: &Path) -> String {
        let file = quoted(path);
        let lines = quoted(&beside(path, "jsonl"));
        let python = |code: String| format!("`python -c {}` converts it", double_quoted(&code));
        let to_json = "orient='records', lines=True, force_ascii=False";
        let literal = |path: &Path| python_literal(&path.display().to_string());
        let (source, target) = (literal(path), literal(&beside(path, "jsonl")));
        match self {
            Self::Compressed(_, usual, command) => {
                let is_usual = |extension: &std::ffi::OsStr| extension.eq_ignore_ascii_case(usual);
                match path.extension().is_some_and(is_usual) {
                    true => {
                        let plain = quoted(&path.with_extension(""));
                        format!("`{command} {file} > {plain}` decompresses it")
                    }
                    false => {
                        let plain = quoted(&renamed(path, "plain"));
                        format!("`{command} < {file} > {plain}` decompresses it")
                    }
                }
            }
            Self::Archive(_, command) => format!("`{command} {file}` unpacks it"),
            Self::Encoded(_, encoding) => {
                let converted = quoted(&renamed(path, "utf8"));
                format!("`iconv -f {encoding} -t utf-8 {file} > {converted}` converts it")
            }
            Self::Parquet => {
                "Parquet is read where its name ends in .parquet: by `cargo infer eval`, and by a source of training with \
                 parquet = [\"FILE\"] in place of files"
                    .to_owned()
            }
            Self::ArrowFile => python(format!(
                "import pandas; pandas.read_feather({source}).to_json({target}, {to_json})"
            )),
            Self::ArrowStream => python(format!(
                "import datasets; datasets.Dataset.from_file({source}).to_json({target}, force_ascii=False)"
            )),
            Self::Pdf => {
                let text = quoted(&beside(path, "txt"));
                format!("`pdftotext {file} {text}` extracts its text")
            }
            Self::Sqlite => format!(
                "`sqlite3 -json {file} 'SELECT … FROM …' | jq -c '.[]' > {lines}` extracts text"
            ),
            Self::Tokens => "a source of training reads it with tokens = [\"FILE\"] in place of files".to_owned(),
            Self::LfsPointer => "`git lfs pull` downloads the file".to_owned(),
            Self::Binary(_) => "name only files of text".to_owned(),
            Self::JsonArray => format!("`jq -c '.[]' {file} > {lines}` converts it"),
            Self::JsonDocument => format!(
                "`jq -c . {file} > {lines}` makes it one line; where the documents are in an array in it, \
                 `jq -c '.NAME[]'` makes a line of each"
            ),
        }
    }
}

/// UTF-16 and UTF-32 without a mark, told by the zeros of a text that begins with ASCII.
fn unmarked(head: &[u8]) -> Option<Foreign> {
    let head = &head[..head.len().min(64)];
    let zeros_are = |width: usize, at: &[usize]| {
        let units = head.chunks_exact(width);
        units.len() >= 4
            && head.chunks_exact(width).all(|unit| {
                let mut bytes = unit.iter().enumerate();
                bytes.all(|(index, &byte)| (byte == 0) == at.contains(&index))
            })
    };
    let kinds: [(usize, &[usize], Foreign); 4] = [
        (2, &[1], Foreign::Encoded("UTF-16", "utf-16le")),
        (2, &[0], Foreign::Encoded("UTF-16", "utf-16be")),
        (4, &[1, 2, 3], Foreign::Encoded("UTF-32", "utf-32le")),
        (4, &[0, 1, 2], Foreign::Encoded("UTF-32", "utf-32be")),
    ];
    let kind = kinds
        .into_iter()
        .find(|&(width, at, _)| zeros_are(width, at));
    kind.map(|(.., kind)| kind)
}

/// The path with another extension; with one more where it has that extension already.
fn beside(path: &Path, extension: &str) -> std::path::PathBuf {
    match path.extension() {
        Some(own) if own.eq_ignore_ascii_case(extension) => renamed(path, "lines"),
        _ => path.with_extension(extension),
    }
}

/// The path with a word before its extension.
fn renamed(path: &Path, word: &str) -> std::path::PathBuf {
    match path.extension() {
        Some(extension) => path.with_extension(word).with_added_extension(extension),
        None => path.with_added_extension(word),
    }
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+=:@%,".contains(letter);
    match text.chars().all(is_plain) && !text.is_empty() {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// Within double quotes of a shell.
fn double_quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        if "\\\"$`".contains(letter) {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted + "\""
}

/// A string of Python.
fn python_literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
