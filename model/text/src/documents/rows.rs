//! Parquet files: a document a row, in a column of text.

use std::fs::File;
use std::path::{Path, PathBuf};

use firebox_console::durable::FileError;
use firebox_console::panics::caught;
use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::{Document, TextError};

/// Rows that are read at once.
const ROWS: usize = 256;

/// The documents of a Parquet file, from one column of text; a column within another one is named as `outer.inner`. Where the
/// name of a column itself has that dot, this one counts.
///
/// Pages are read one after the other, so that a file needs little memory, however large it is.
pub struct Rows {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column: usize,
    /// The level of definition of a row that has text; 0 where every row has one.
    full: i16,
    /// The group of rows that is read next.
    group: usize,
    reader: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Read and not yet given, the next one last; `None` where a row has no text.
    ready: Vec<Option<ByteArray>>,
    /// Rows that were given.
    number: u64,
    ended: bool,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rows = formatter.debug_struct("Rows");
        rows.field("path", &self.path)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Rows {
    /// Opens a file that has text in a column.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is no Parquet file, or has no such column of text.
    pub fn open(path: &Path, column: &str) -> Result<Self, TextError> {
        let file = File::open(path).map_err(FileError::of("read", path))?;
        let file = guarded(|| SerializedFileReader::new(file));
        let file = file.map_err(|problem| damaged(path, problem))?;
        let columns = file.metadata().file_metadata().schema_descr_ptr();
        let named = |&place: &usize| columns.column(place).path().string() == column;
        let levels = |&place: &usize| columns.column(place).path().parts().len();
        let found = (0..columns.num_columns()).filter(named).min_by_key(levels);
        let is_text = |of: usize| {
            let of = columns.column(of);
            of.physical_type() == Type::BYTE_ARRAY && of.max_rep_level() == 0
        };
        let Some(place) = found.filter(|&place| is_text(place)) else {
            let texts = (0..columns.num_columns()).filter(|&place| is_text(place));
            let names = texts.map(|place| format!("\"{}\"", columns.column(place).path().string()));
            return Err(TextError::NoColumn {
                path: path.to_owned(),
                column: column.to_owned(),
                exists: found.is_some(),
                others: names.collect(),
            });
        };
        Ok(Self {
            path: path.to_owned(),
            full: columns.column(place).max_def_level(),
            file,
            column: place,
            group: 0,
            reader: None,
            ready: Vec::new(),
            number: 0,
            ended: false,
        })
    }

    /// Reads more rows; whether there are any.
    fn fill(&mut self) -> Result<bool, ParquetError> {
        loop {
            let Some(reader) = &mut self.reader else {
                if self.group == self.file.num_row_groups() {
                    return Ok(false);
                }
                let reader = self.file.get_row_group(self.group)?;
                self.group += 1;
                self.reader = match reader.get_column_reader(self.column)? {
                    reader @ ColumnReader::ByteArrayColumnReader(_) => {
                        Some(get_typed_column_reader(reader))
                    }
                    _ => return Err(ParquetError::General("a group has another type".to_owned())),
                };
                continue;
            };
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let levels_of = (self.full > 0).then_some(&mut levels);
            let (rows, ..) = reader.read_records(ROWS, levels_of, None, &mut values)?;
            if rows == 0 {
                self.reader = None;
                continue;
            }
            let mut values = values.into_iter();
            self.ready = match self.full {
                0 => values.map(Some).collect(),
                full => {
                    let levels = levels.iter();
                    levels
                        .map(|&level| (level == full).then(|| values.next()).flatten())
                        .collect()
                }
            };
            self.ready.reverse();
            return Ok(true);
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Document, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if self.ready.is_empty() {
            match guarded(|| self.fill()) {
                Ok(true) => {}
                Ok(false) => {
                    self.ended = true;
                    return None;
                }
                Err(problem) => {
                    self.ended = true;
                    return Some(Err(damaged(&self.path, problem)));
                }
            }
        }
        let value = self.ready.pop()?;
        self.number += 1;
        let name = format!("{}:{}", self.path.display(), self.number);
        let text = value.map(|value| String::from_utf8(value.data().to_vec()));
        Some(match text {
            Some(Ok(text)) => Ok(Document { name, text }),
            text => Err(TextError::Row {
                path: self.path.clone(),
                row: self.number,
                problem: match text {
                    None => "no text",
                    _ => "not UTF-8",
                },
            }),
        })
    }
}

/// Does what reads a file; a damaged one may make the library panic.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    caught(read).and_then(|read| read.map_err(|error| error.to_string()))
}

fn damaged(path: &Path, problem: String) -> TextError {
    TextError::Parquet {
        path: path.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests;
