//! Reads documents from files: one per plain-text file, one per line of a JSON Lines file, one per row of a Parquet file, and
//! those that are tokens already. Text that is compressed with gzip or zstd is read as what is in it, whatever its name, in a
//! stream.
//!
//! A UTF-8 byte order mark at the start of JSON lines is passed over, as PyArrow and with it Hugging Face's datasets do.
//! In a plain text it stays, as Python's `open(encoding="utf-8")` and datasets' text reader leave it there: the document
//! is the file's content.

mod compressed;
mod foreign;
mod json;
mod lines;
mod pairs;
mod rows;
#[cfg(test)]
mod tests;
mod tokens;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_console::numbers::bytes;

use self::compressed::{Damaged, Input};
pub use self::foreign::Foreign;
pub use self::lines::{JsonLines, is_json_lines};
pub use self::pairs::{CAPTION_FIELD, Pair, Pairs};
pub use self::rows::Rows;
pub use self::tokens::{TokenDocument, TokenFile};

/// Default name of the field of a JSON line that contains the text.
pub const TEXT_FIELD: &str = "text";

/// Bytes that are read from a file at once; more than decide its kind.
const BUFFER: usize = 64 << 10;

/// Bytes of a line of JSON, and of a compressed document, at most: a small file can be compressed from far more than
/// the memory holds.
const LARGEST: u64 = 1 << 30;

/// A document: one file, one line of JSON, one row of a Parquet file, or one document of a token file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Name for messages: the path, with `:NUMBER` for a line of JSON, a row, or a document of a token file.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A link leads nowhere.
    #[error("{} is a link to {}, which does not exist", path.display(), target.display())]
    DanglingLink {
        /// The link.
        path: PathBuf,
        /// What it points to.
        target: PathBuf,
    },
    /// What is compressed in the file is damaged.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A line, or a document in a compressed file, is larger than what is read.
    #[error("{document} is larger than {}", bytes((*limit).into()))]
    TooLarge {
        /// The document's name.
        document: String,
        /// Bytes that are read at most.
        limit: u64,
    },
    /// The file is of a kind that is not read.
    #[error("{} is {}", path.display(), kind.describe())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: Foreign,
    },
    /// The file is not UTF-8.
    #[error("{}: invalid UTF-8 at byte {offset}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte, from 0.
        offset: u64,
    },
    /// A Parquet file is damaged, or has what is not read.
    #[error("{}: cannot be read as Parquet: {problem}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A Parquet file has no column of text with this name.
    #[error(
        "{}: column {column:?} {}", path.display(),
        if *exists { "is not a column of text" } else { "does not exist" }
    )]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Whether there is a column with this name.
        exists: bool,
        /// Columns of text, in quotes.
        others: Vec<String>,
    },
    /// A row of a Parquet file is no text.
    #[error("{}:{row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Number of the row, from 1.
        row: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A token file, or a document of it, is not as it should be.
    #[error("{}: {problem}", path.display())]
    Tokens {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What may help.
        hint: Option<&'static str>,
    },
    /// A line is not a JSON object with a text.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What is wrong, and at which column: a byte of the line, from 1.
        problem: String,
    },
    /// A line is a JSON object without the field.
    #[error("{}:{line}: {problem}", path.display())]
    NoField {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What is missing, and at which column: a byte of the line, from 1.
        problem: String,
        /// The first fields that the object does have, in quotes; none if it is empty.
        others: Vec<String>,
    },
}

impl Advise for TextError {
    fn advice(&self) -> Advice {
        match self {
            Self::NotUtf8 { path, .. } => {
                let file = foreign::quoted(path);
                Advice::FAILURE.hint(format!(
                    "if it is text in another encoding, which `file {file}` guesses, convert it to UTF-8, for example \
                     with `iconv -f latin1 -t utf-8`"
                ))
            }
            Self::Foreign { path, kind } => Advice::FAILURE.hint(kind.hint(path)),
            Self::DanglingLink { .. } => {
                Advice::FAILURE.hint("remove the link, or restore what it points to")
            }
            Self::Parquet { path, .. } => {
                let file = foreign::quoted(path);
                Advice::FAILURE.hint(format!(
                    "uncompressed pages and those of snappy, gzip and zstd are read; `python -c \"import pandas, sys; p = sys.argv[1]; \
                     pandas.read_parquet(p).to_parquet(p + '.snappy.parquet')\" {file}` makes such a file"
                ))
            }
            Self::TooLarge { .. } => {
                Advice::FAILURE.hint("divide it into documents; each becomes a line of JSON lines")
            }
            Self::Tokens {
                hint: Some(hint), ..
            } => Advice::FAILURE.hint(*hint),
            Self::Io(_)
            | Self::Tokens { hint: None, .. }
            | Self::Damaged { .. }
            | Self::Line { .. }
            | Self::NoField { .. }
            | Self::NoColumn { .. }
            | Self::Row { .. } => Advice::FAILURE,
        }
    }
}

impl TextError {
    /// How another field of JSON lines is read, where this one is missing: `option` names the flag or key that chooses the
    /// field. `None` for other errors, and where there is no other field.
    pub fn other_fields(&self, option: &str) -> Option<String> {
        match self {
            Self::NoField { others, .. } if !others.is_empty() => {
                let others = others.join(", ");
                Some(format!(
                    "{option} names the field with the text; this line has {others}"
                ))
            }
            Self::NoColumn { others, .. } if !others.is_empty() => {
                let others = others.join(", ");
                Some(format!(
                    "{option} names the column with the text; this file has {others}"
                ))
            }
            _ => None,
        }
    }
}

/// Reads the documents of a file: one per line, in this field, where the file [is JSON lines](is_json_lines), and one per row,
/// in this column, of a `.parquet` file; any other file is one document.
///
/// # Errors
///
/// When the file cannot be opened, or is of a kind that is not read. For a document that cannot be read, the iterator
/// returns an error.
pub fn documents(
    path: &Path,
    field: &str,
) -> Result<Box<dyn Iterator<Item = Result<Document, TextError>>>, TextError> {
    if is_parquet(path) {
        return Ok(Box::new(Rows::open(path, field)?));
    }
    if is_json_lines(path)? {
        return Ok(Box::new(JsonLines::open(path, field)?));
    }
    Ok(Box::new(std::iter::once(Ok(read(path)?))))
}

/// Whether a file's name says that it is Parquet.
pub fn is_parquet(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"))
}

/// Reads a file as one document.
///
/// # Errors
///
/// When it cannot be read, is of a kind that is not read, or is not UTF-8.
pub fn read(path: &Path) -> Result<Document, TextError> {
    read_within(path, LARGEST)
}

/// The same with another limit of what is compressed.
fn read_within(path: &Path, limit: u64) -> Result<Document, TextError> {
    let mut bytes = Vec::new();
    let input = open(path)?;
    let limit = match input.get_ref().is_compressed() {
        true => limit,
        false => u64::MAX,
    };
    let read = input
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(cannot_read(path))?;
    if read as u64 > limit {
        return Err(TextError::TooLarge {
            document: path.display().to_string(),
            limit,
        });
    }
    let text = String::from_utf8(bytes).map_err(|error| TextError::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to() as u64,
    })?;
    Ok(Document {
        name: path.display().to_string(),
        text,
    })
}

/// Opens a file, or what is compressed in it, unless its first bytes show that it is of another kind.
fn open(path: &Path) -> Result<BufReader<Input>, TextError> {
    let file = File::open(path).map_err(|error| match fs::read_link(path) {
        Ok(target) if !path.exists() => TextError::DanglingLink {
            path: path.to_owned(),
            target,
        },
        _ => FileError::of("read", path)(error).into(),
    })?;
    let input = Input::new(file).map_err(FileError::of("read", path))?;
    let mut reader = BufReader::with_capacity(BUFFER, input);
    let head = reader.fill_buf().map_err(cannot_read(path))?;
    match Foreign::of(&head[..head.len().min(foreign::HEAD)]) {
        Some(kind) => Err(TextError::Foreign {
            path: path.to_owned(),
            kind,
        }),
        None => Ok(reader),
    }
}

/// The error for what [`open`] gives when it cannot be read.
fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> TextError {
    move |error| match error.get_ref().is_some_and(|inner| inner.is::<Damaged>()) {
        true => TextError::Damaged {
            path: path.to_owned(),
            problem: error.to_string(),
        },
        false => FileError::of("read", path)(error).into(),
    }
}

/// Without the UTF-8 byte order mark at the start.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}
