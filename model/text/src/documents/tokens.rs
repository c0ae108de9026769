//! Token files: documents that somebody has tokenized already.
//!
//! - nanoGPT writes ids of two bytes, little-endian, and nothing else; each document is followed by the token that ends it.
//! - llm.c writes a header of 256 numbers of four bytes, of which the first three are a magic number, a version and the
//!   number of ids, and then ids of two bytes (GPT-2) or four (Llama 3); each document is preceded by that token, for
//!   Llama 3 by the one that begins a document.
//!
//! Both are read alike: documents lie between tokens that begin or end one, which are no part of them. What a file lacks at its
//! start or end does not matter then, such as the rest of a document that continues in the next shard, which becomes a document
//! of its own.
//!
//! No file says whose ids it has. So the first of them are decoded and encoded again: ids of another tokenizer do not survive
//! that.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firebox_console::durable::FileError;
use firebox_console::numbers::{grouped, percent};

use super::{BUFFER, Document, TextError};
use crate::tokenizer::TokenTexts;

/// Numbers in the header of llm.c, of four bytes each.
const HEADER: usize = 256;

/// Magic number, version and bytes per id of llm.c's formats.
const FORMATS: [(u32, u32, usize); 2] = [(20_240_520, 1, 2), (20_240_801, 7, 4)];

/// The magic number of llm.c's multiple-choice questions.
const QUESTIONS: u32 = 20_240_522;

/// Ids of a document at most: a file without ends of documents would be read into memory whole.
const LONGEST: usize = 1 << 28;

/// Ids of a file that are encoded again.
const CHECKED: usize = 1024;

/// The part of these that the tokenizer must give again: all of them but at cuts of documents, unless it is another one.
const AGREEMENT: f64 = 0.9;

/// Fewer ids than this say nothing.
const FEWEST: usize = 64;

/// A document and its tokens, without those that begin and end documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenDocument {
    /// The text.
    pub document: Document,
    /// Its tokens.
    pub ids: Vec<u32>,
}

/// The documents of a token file.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    reader: BufReader<File>,
    texts: Arc<TokenTexts>,
    /// Bytes per id.
    width: usize,
    /// Bytes before the first id.
    start: u64,
    /// Number of ids, and how many of them are read.
    count: u64,
    read: u64,
    /// Documents that are read, and the place of the first id of the last one.
    documents: u64,
    begin: u64,
    /// Ids of them that were encoded again, and how many of these were the same.
    checked: usize,
    same: usize,
    longest: usize,
}

impl TokenFile {
    /// Opens a file whose ids are those of a tokenizer.
    ///
    /// # Errors
    ///
    /// When it cannot be read, its length is not that of whole ids, or its header says something else.
    pub fn open(path: &Path, texts: Arc<TokenTexts>) -> Result<Self, TextError> {
        let cannot_read = || FileError::of("read", path);
        let wrong = |problem| TextError::Tokens {
            path: path.to_owned(),
            problem,
            hint: None,
        };
        let mut file = File::open(path).map_err(cannot_read())?;
        let length = file.metadata().map_err(cannot_read())?.len();
        let mut header = Vec::new();
        (&file)
            .take(4 * HEADER as u64)
            .read_to_end(&mut header)
            .map_err(cannot_read())?;
        let number = |place: usize| {
            let bytes = header.get(4 * place..4 * place + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
        };
        let format = FORMATS.iter().find(|format| number(0) == Some(format.0));
        let (start, width) = match format {
            Some(&(magic, version, width)) => {
                let short = || {
                    wrong(format!(
                        "it has the magic number of llm.c, {magic}, and ends within its header"
                    ))
                };
                let found = number(HEADER - 1).and(number(1)).ok_or_else(short)?;
                if found != version {
                    return Err(wrong(format!(
                        "it is of version {found} of llm.c's format {magic}; version {version} is read"
                    )));
                }
                (4 * HEADER as u64, width)
            }
            None if number(0) == Some(QUESTIONS) => {
                return Err(wrong(
                    "it has llm.c's multiple-choice questions, not documents".to_owned(),
                ));
            }
            None => (0, 2),
        };
        let (count, rest) = (
            (length - start) / width as u64,
            (length - start) % width as u64,
        );
        if let (Some(_), Some(said)) = (format, number(2))
            && (u64::from(said), 0) != (count, rest)
        {
            return Err(wrong(format!(
                "its header promises {} tokens of {width} bytes, and {} bytes follow",
                grouped(said),
                grouped(length - start)
            )));
        }
        if rest != 0 {
            return Err(wrong(format!(
                "it has {} bytes, which is not a whole number of tokens of {width} bytes",
                grouped(length)
            )));
        }
        file.seek(SeekFrom::Start(start)).map_err(cannot_read())?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(BUFFER, file),
            texts,
            width,
            start,
            count,
            read: 0,
            documents: 0,
            begin: 0,
            checked: 0,
            same: 0,
            longest: LONGEST,
        })
    }

    /// The same with another limit of a document's ids.
    #[cfg(test)]
    pub(super) fn with_longest(self, longest: usize) -> Self {
        Self { longest, ..self }
    }

    /// The next id, unless the file is at its end.
    fn id(&mut self) -> Result<Option<u32>, TextError> {
        if self.read == self.count {
            return Ok(None);
        }
        let mut bytes = [0; 4];
        let read = self.reader.read_exact(&mut bytes[..self.width]);
        read.map_err(FileError::of("read", &self.path))?;
        self.read += 1;
        Ok(Some(u32::from_le_bytes(bytes)))
    }

    /// The ids up to the next token that begins or ends a document; `None` at the end of the file. What is wrong with the first
    /// of them that is is an error of the document, whose other ids are passed over.
    fn document_ids(&mut self) -> Result<Option<Result<Vec<u32>, TextError>>, TextError> {
        let mut ids = Vec::new();
        let mut fault = None;
        loop {
            let Some(id) = self.id()? else {
                let is_end = ids.is_empty() && fault.is_none();
                return Ok((!is_end).then(|| fault.map_or(Ok(ids), Err)));
            };
            if self.texts.is_boundary(id) {
                if ids.is_empty() && fault.is_none() {
                    continue;
                }
                return Ok(Some(fault.map_or(Ok(ids), Err)));
            }
            if fault.is_some() {
                continue;
            }
            if ids.is_empty() {
                self.begin = self.read - 1;
            }
            fault = self.fault(id);
            ids.push(id);
            if ids.len() > self.longest {
                return Err(self.wrong(
                    format!(
                        "none of {} tokens begins or ends a document",
                        grouped(self.longest as u64)
                    ),
                    Some("tokenizer.end_of_text names the token that ends a document"),
                ));
            }
        }
    }

    /// What is wrong with the id that was read last.
    fn fault(&self, id: u32) -> Option<TextError> {
        let (problem, hint) = if id as usize >= self.texts.vocab_size() {
            let size = grouped(self.texts.vocab_size() as u64);
            let hint = "tokens belong to the tokenizer that made them, which tokenizer.path or the checkpoint of train.init has to have";
            (format!("{id}, and the tokenizer has {size} ids"), hint)
        } else {
            let token = self.texts.unwanted(id)?;
            let hint = "data.special_tokens = true trains on special tokens; tokenizer.end_of_text names the one that ends a document";
            (
                format!("{id}, the special token {token:?} within a document"),
                hint,
            )
        };
        let byte = self.start + (self.read - 1) * self.width as u64;
        Some(self.wrong(
            format!(
                "token {}, at byte {}, is {problem}",
                grouped(self.read),
                grouped(byte)
            ),
            Some(hint),
        ))
    }

    fn document(&mut self, ids: Vec<u32>) -> Result<TokenDocument, TextError> {
        self.documents += 1;
        let name = format!("{}:{}", self.path.display(), self.documents);
        let Some(text) = self.texts.text(&ids) else {
            return Err(self.wrong(
                format!(
                    "the {} tokens from token {} on are not UTF-8 text",
                    grouped(ids.len() as u64),
                    grouped(self.begin + 1)
                ),
                Some("a file that is cut into shards may begin or end within a character"),
            ));
        };
        Ok(TokenDocument {
            document: Document { name, text },
            ids,
        })
    }

    /// Encodes documents again, until enough are.
    fn check(&mut self, ids: &[u32]) -> Result<(), TextError> {
        if self.checked >= CHECKED {
            return Ok(());
        }
        let (same, all) = self.texts.agreement(&ids[..ids.len().min(CHECKED)]);
        self.same += same;
        self.checked += all;
        let agreement = self.same as f64 / self.checked.max(1) as f64;
        if self.checked < FEWEST || agreement >= AGREEMENT {
            return Ok(());
        }
        Err(self.wrong(
            format!(
                "of the text of its first {} tokens, the tokenizer makes {} of these again, so they are of another one",
                grouped(self.checked as u64),
                percent(agreement)
            ),
            Some("name the tokenizer that made the file, as tokenizer.path or by the checkpoint of train.init; tokens without a \
                  header are read as numbers of two bytes"),
        ))
    }

    fn wrong(&self, problem: String, hint: Option<&'static str>) -> TextError {
        TextError::Tokens {
            path: self.path.clone(),
            problem,
            hint,
        }
    }

    /// The next document; an error of the file itself in the outer place.
    fn advance(&mut self) -> Result<Option<Result<TokenDocument, TextError>>, TextError> {
        match self.document_ids()? {
            None => Ok(None),
            Some(Err(fault)) => {
                self.documents += 1;
                Ok(Some(Err(fault)))
            }
            Some(Ok(ids)) => {
                self.check(&ids)?;
                Ok(Some(self.document(ids)))
            }
        }
    }
}

impl Iterator for TokenFile {
    type Item = Result<TokenDocument, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(document) => document,
            Err(error) => {
                self.count = self.read;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests;
