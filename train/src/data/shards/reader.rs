//! Reads sets of shards.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::error::DataError;
use super::super::pool::FilePool;
use super::{
    HEADER_BYTES, INDEX_ENTRY_BYTES, INDEX_MAGIC, SetManifest, TOKENS_MAGIC, header, index_name,
    shard_name,
};

/// A set of shards with random access. A file is opened when it is first read.
#[derive(Debug)]
pub struct TokenSet {
    folder: PathBuf,
    name: String,
    documents: u64,
    tokens: u64,
    width: u32,
    shard_tokens: u64,
    files: Arc<FilePool>,
}

/// The place of a document in its set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentPlace {
    /// The range of its tokens, those that begin and end it included.
    pub tokens: Range<u64>,
    /// Bytes of its text.
    pub bytes: u64,
}

impl TokenSet {
    /// The set in a folder, read through a pool of open files.
    pub fn new(folder: &Path, manifest: &SetManifest, files: &Arc<FilePool>) -> Self {
        Self {
            folder: folder.to_owned(),
            name: manifest.name.clone(),
            documents: manifest.documents,
            tokens: manifest.tokens,
            width: manifest.width,
            shard_tokens: manifest.shard_tokens,
            files: files.clone(),
        }
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Looks up a document.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    pub fn document(&self, number: u64) -> Result<DocumentPlace, DataError> {
        let header = header(INDEX_MAGIC, INDEX_ENTRY_BYTES as u32);
        let path = self.folder.join(index_name(&self.name));
        // The entry before contains the start of the document, which is 0 for the first document.
        let mut entries = [[0; INDEX_ENTRY_BYTES]; 2];
        let wanted = if number == 0 {
            &mut entries[1..]
        } else {
            &mut entries[..]
        };
        let first = (number + 1) - wanted.len() as u64;
        let offset = HEADER_BYTES as u64 + first * INDEX_ENTRY_BYTES as u64;
        self.files
            .read(&path, &header, offset, wanted.as_flattened_mut())?;
        let number = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|index| bytes[index]));
        let [before, entry] = &entries;
        Ok(DocumentPlace {
            tokens: number(before)..number(entry),
            bytes: number(&entry[8..]),
        })
    }

    /// Appends the tokens of a range to `tokens`.
    ///
    /// # Errors
    ///
    /// When a shard cannot be read.
    pub fn read(&self, mut range: Range<u64>, tokens: &mut Vec<u32>) -> Result<(), DataError> {
        let header = header(TOKENS_MAGIC, self.width);
        let width = u64::from(self.width);
        let mut bytes = Vec::new();
        while range.start < range.end {
            let path = self
                .folder
                .join(shard_name(&self.name, range.start / self.shard_tokens));
            let first = range.start % self.shard_tokens;
            let count = (range.end - range.start).min(self.shard_tokens - first);
            bytes.resize((count * width) as usize, 0);
            let offset = HEADER_BYTES as u64 + first * width;
            self.files.read(&path, &header, offset, &mut bytes)?;
            if width == 2 {
                let (ids, _) = bytes.as_chunks::<2>();
                tokens.extend(ids.iter().map(|&id| u32::from(u16::from_le_bytes(id))));
            } else {
                let (ids, _) = bytes.as_chunks::<4>();
                tokens.extend(ids.iter().map(|&id| u32::from_le_bytes(id)));
            }
            range.start += count;
        }
        Ok(())
    }
}
