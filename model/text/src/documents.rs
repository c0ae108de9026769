//! Reads documents from files: one per plain-text file, one per line of a JSON Lines file.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use serde_json::Value;

/// Default name of the field of a JSON line that contains the text.
pub const TEXT_FIELD: &str = "text";

/// A document: one file, or one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Name for messages: the path, with `:LINE` for a line of JSON.
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
    /// The file is not UTF-8.
    #[error("{}: invalid UTF-8 at byte {offset}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte, from 0.
        offset: u64,
    },
    /// A line is not a JSON object with a text.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
}

impl Advise for TextError {
    fn advice(&self) -> Advice {
        match self {
            Self::NotUtf8 { .. } => Advice::FAILURE
                .hint("convert the file to UTF-8, for example with `iconv -f latin1 -t utf-8`"),
            Self::Io(_) | Self::Line { .. } => Advice::FAILURE,
        }
    }
}

/// Reads the documents of a file: one per line of a `.jsonl` file, in this field; any other file is one
/// document.
///
/// # Errors
///
/// When the file cannot be opened. For a document that cannot be read, the iterator returns an
/// error.
pub fn documents(
    path: &Path,
    field: &str,
) -> Result<Box<dyn Iterator<Item = Result<Document, TextError>>>, TextError> {
    if path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"))
    {
        return Ok(Box::new(JsonLines::open(path, field)?));
    }
    Ok(Box::new(std::iter::once(Ok(read(path)?))))
}

/// Reads a file as one document.
///
/// # Errors
///
/// When it cannot be read, or is not UTF-8.
pub fn read(path: &Path) -> Result<Document, TextError> {
    let bytes = fs::read(path).map_err(FileError::of("read", path))?;
    let text = String::from_utf8(bytes).map_err(|error| TextError::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to() as u64,
    })?;
    Ok(Document {
        name: path.display().to_string(),
        text,
    })
}

/// The documents of a JSON Lines file; empty lines are skipped.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    field: String,
    reader: BufReader<File>,
    /// Number of lines and bytes before the next line.
    line: u64,
    offset: u64,
}

impl JsonLines {
    /// Opens a file whose lines are objects with a string in `field`.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open(path: &Path, field: &str) -> Result<Self, TextError> {
        let file = File::open(path).map_err(FileError::of("read", path))?;
        Ok(Self {
            path: path.to_owned(),
            field: field.to_owned(),
            reader: BufReader::new(file),
            line: 0,
            offset: 0,
        })
    }

    fn document(&self, line: &[u8], offset: u64) -> Result<Document, TextError> {
        let text = str::from_utf8(line).map_err(|error| TextError::NotUtf8 {
            path: self.path.clone(),
            offset: offset + error.valid_up_to() as u64,
        })?;
        let problem = |problem: String| TextError::Line {
            path: self.path.clone(),
            line: self.line,
            problem,
        };
        let field = &self.field;
        let mut value: Value = serde_json::from_str(text)
            .map_err(|error| problem(format!("invalid JSON at column {}", error.column())))?;
        match value.get_mut(field).map(Value::take) {
            Some(Value::String(text)) => Ok(Document {
                name: format!("{}:{}", self.path.display(), self.line),
                text,
            }),
            Some(_) => Err(problem(format!("field {field:?} is not a string"))),
            None => Err(problem(format!(
                "expected an object with a field {field:?}"
            ))),
        }
    }
}

impl Iterator for JsonLines {
    type Item = Result<Document, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let offset = self.offset;
            match self.reader.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(read) => self.offset += read as u64,
                Err(error) => return Some(Err(FileError::of("read", &self.path)(error).into())),
            }
            self.line += 1;
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(self.document(&line, offset));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        (folder, path)
    }

    #[test]
    fn each_json_line_is_a_document_and_any_other_file_is_one_document() {
        let content = "{\"text\": \"one\"}\n\n{\"id\": 2, \"text\": \"tw\\u00f6\\n\"}";
        let (_folder, path) = file("a.jsonl", content.as_bytes());
        let read: Vec<_> = documents(&path, TEXT_FIELD)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            read.iter().map(|d| d.text.as_str()).collect::<Vec<_>>(),
            ["one", "twö\n"]
        );
        assert!(read[1].name.ends_with("a.jsonl:3"));

        let (_folder, path) = file("a.txt", content.as_bytes());
        let read: Vec<_> = documents(&path, TEXT_FIELD)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].text, content);
    }

    #[test]
    fn errors_contain_the_line_or_the_byte() {
        let (_folder, path) = file(
            "a.jsonl",
            b"{\"text\": \"one\"}\n{\"text\": 1}\n{}\nnot\n{\"text\": \"\xFF\"}\n",
        );
        let messages: Vec<String> = documents(&path, TEXT_FIELD)
            .unwrap()
            .filter_map(Result::err)
            .map(|error| error.to_string())
            .collect();
        assert!(
            messages[0].ends_with("a.jsonl:2: field \"text\" is not a string"),
            "{messages:?}"
        );
        assert!(
            messages[1].ends_with("a.jsonl:3: expected an object with a field \"text\""),
            "{messages:?}"
        );
        assert!(
            messages[2].ends_with("a.jsonl:4: invalid JSON at column 2"),
            "{messages:?}"
        );
        assert!(
            messages[3].ends_with("a.jsonl: invalid UTF-8 at byte 45"),
            "{messages:?}"
        );

        let (_folder, path) = file("a.txt", b"caf\xE9");
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .ends_with("invalid UTF-8 at byte 3")
        );
    }
}
