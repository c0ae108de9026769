//! JSON Lines files.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::compressed::{Input, is_extension};
use super::foreign::Foreign;
use super::json::{Fault, Problem, listed, string_field};
use super::{Document, LARGEST, TextError, cannot_read, open, without_mark};

/// The documents of a JSON Lines file; empty lines are skipped, and a UTF-8 byte order mark is.
///
/// What a line may be is what Python's `json` reads: fields other than the wanted one may have NaN, numbers of any size
/// and halves of surrogate pairs. A file that is not JSON lines at all is a single error.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    field: String,
    reader: BufReader<Input>,
    /// Bytes of a line at most.
    limit: u64,
    /// The line that is read, its line feed included.
    line: Vec<u8>,
    /// Number of lines and bytes before the next line.
    number: u64,
    offset: u64,
    /// Whether a line with content came before.
    begun: bool,
    ended: bool,
}

impl JsonLines {
    /// Opens a file whose lines are objects with a string in `field`.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or begins as a file of another kind.
    pub fn open(path: &Path, field: &str) -> Result<Self, TextError> {
        Ok(Self {
            path: path.to_owned(),
            field: field.to_owned(),
            reader: open(path)?,
            limit: LARGEST,
            line: Vec::new(),
            number: 0,
            offset: 0,
            begun: false,
            ended: false,
        })
    }

    /// The same with another limit of a line's bytes.
    #[cfg(test)]
    pub(super) fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// Another field of the line that was read last.
    ///
    /// # Errors
    ///
    /// When the line has no string in that field.
    pub fn field(&self, name: &str) -> Result<String, TextError> {
        // What is no text has given no document, and no line is before the first.
        let line = str::from_utf8(&self.line).unwrap_or_default();
        string_field(line, name).map_err(|fault| TextError::Line {
            path: self.path.clone(),
            line: self.number,
            problem: fault.describe(line, name),
        })
    }

    /// Reads up to the next line with content; gives its offset in the file, or `None` at the end.
    fn advance(&mut self) -> Result<Option<u64>, TextError> {
        loop {
            self.line.clear();
            let mut input = (&mut self.reader).take(self.limit);
            let read = input.read_until(b'\n', &mut self.line);
            let read = read.map_err(cannot_read(&self.path))?;
            if read == 0 {
                return Ok(None);
            }
            let mut start = self.offset;
            self.offset += read as u64;
            self.number += 1;
            if read as u64 == self.limit && !self.line.ends_with(b"\n") {
                return Err(TextError::TooLarge {
                    document: format!("{}:{}", self.path.display(), self.number),
                    limit: self.limit,
                });
            }
            if self.number == 1 {
                let mark = self.line.len() - without_mark(&self.line).len();
                self.line.drain(..mark);
                start += mark as u64;
            }
            if !self.line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(start));
            }
        }
    }

    fn document(&mut self, start: u64) -> Result<Document, TextError> {
        let line = str::from_utf8(&self.line).map_err(|error| TextError::NotUtf8 {
            path: self.path.clone(),
            offset: start + error.valid_up_to() as u64,
        })?;
        let is_first = !std::mem::replace(&mut self.begun, true);
        string_field(line, &self.field)
            .map(|text| Document {
                name: format!("{}:{}", self.path.display(), self.number),
                text,
            })
            .map_err(|fault| {
                let buffered = self.reader.fill_buf().unwrap_or_default();
                let is_last = buffered.iter().all(u8::is_ascii_whitespace);
                match whole_file(line, &fault, is_last).filter(|_| is_first) {
                    Some(kind) => {
                        self.ended = true;
                        TextError::Foreign {
                            path: self.path.clone(),
                            kind,
                        }
                    }
                    None => {
                        let problem = fault.describe(line, &self.field);
                        refused(self.path.clone(), self.number, &fault, problem)
                    }
                }
            })
    }
}

/// A line of a file that is not an object with the wanted field.
fn refused(path: PathBuf, line: u64, fault: &Fault, problem: String) -> TextError {
    match &fault.problem {
        Problem::NoField(keys) => TextError::NoField {
            path,
            line,
            problem,
            others: listed(keys),
        },
        _ => TextError::Line {
            path,
            line,
            problem,
        },
    }
}

impl Iterator for JsonLines {
    type Item = Result<Document, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.advance() {
            Ok(Some(start)) => Some(self.document(start)),
            Ok(None) => None,
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

/// Whether a file's first line and what is wrong with it show that no line is a document.
fn whole_file(line: &str, fault: &Fault, is_last: bool) -> Option<Foreign> {
    let goes_on = fault.problem == Problem::Ended { in_string: false } && !is_last;
    let is_array = line.trim_ascii_start().starts_with('[');
    match fault.problem {
        Problem::NotAnObject(_) if is_array && is_last => Some(Foreign::JsonArray),
        _ if goes_on && is_array => Some(Foreign::JsonArray),
        _ if goes_on => Some(Foreign::JsonDocument),
        _ => None,
    }
}

/// Whether a file is read as JSON lines, as its name (before `.gz` or `.zst`) says: `.jsonl`, `.ndjson`, and `.json` if its first line with
/// content is an object of its own, as in C4, Dolma and what `Dataset.to_json` writes. A `.json` file that is one value
/// over several lines is a text like any other.
///
/// # Errors
///
/// When a `.json` file cannot be read, or is an array of objects.
pub fn is_json_lines(path: &Path) -> Result<bool, TextError> {
    let compressed = path.extension().is_some_and(is_extension);
    let inner = match compressed {
        true => path.with_extension(""),
        false => path.to_owned(),
    };
    let has = |extensions: &[&str]| {
        let own = inner.extension().unwrap_or_default();
        extensions
            .iter()
            .any(|extension| own.eq_ignore_ascii_case(extension))
    };
    if has(&["jsonl", "ndjson"]) {
        return Ok(true);
    }
    // What a pipe gives is gone once it is read.
    if !has(&["json"]) || fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Ok(false);
    }
    let mut lines = JsonLines::open(path, "")?;
    if lines.advance()?.is_none() {
        return Ok(true);
    }
    let Ok(line) = str::from_utf8(&lines.line) else {
        return Ok(false);
    };
    let after_bracket = line.trim_ascii_start().strip_prefix('[');
    if let Some(mut rest) = after_bracket.map(|rest| rest.trim_ascii_start().to_owned()) {
        if rest.is_empty() && lines.advance()?.is_some() {
            rest = String::from_utf8_lossy(&lines.line)
                .trim_ascii_start()
                .to_owned();
        }
        if rest.starts_with('{') {
            return Err(TextError::Foreign {
                path: path.to_owned(),
                kind: Foreign::JsonArray,
            });
        }
        return Ok(false);
    }
    let is_object =
        |fault: Fault| matches!(fault.problem, Problem::NoField(_) | Problem::NotAString(_));
    Ok(string_field(line, "").map_or_else(is_object, |_| true))
}
