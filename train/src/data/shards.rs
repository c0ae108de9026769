//! Tokens on disk: shard files and an index of the documents in them, read on demand.
//!
//! A shard is a header of 16 bytes (magic, version, bytes per token) and little-endian token ids of
//! 2 bytes where the vocabulary allows it, otherwise 4. All shards of a set but the last hold the
//! same number of tokens; a document may reach over several. The index has 16 bytes per document:
//! where it ends, in tokens from the start of the set, and its bytes of text.

mod reader;
#[cfg(test)]
pub(super) mod tests;
mod writer;

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(super) use self::reader::TokenSet;
pub(super) use self::writer::{HashedFile, SetWriter};
use super::error::DataError;
use super::hash::{hash_file, hexadecimal};
use super::stamp::Stamp;

/// Bytes of tokens in a full shard.
const SHARD_BYTES: u64 = 256 << 20;

pub(super) const HEADER_BYTES: usize = 16;
const INDEX_ENTRY_BYTES: usize = 16;
const TOKENS_MAGIC: &[u8; 8] = b"FBXTOKEN";
const INDEX_MAGIC: &[u8; 8] = b"FBXINDEX";
const VERSION: u32 = 1;

/// What is known about a set of shards without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetManifest {
    /// What its files are called after.
    pub name: String,
    /// Documents in the set.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Tokens, those that begin and end documents included.
    pub tokens: u64,
    /// Bytes per token: 2 or 4.
    pub width: u32,
    /// Tokens of a full shard.
    pub shard_tokens: u64,
    /// In order.
    pub shards: Vec<FileManifest>,
    pub index: FileManifest,
}

/// A file's stamp and the SHA-256 of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileManifest {
    pub stamp: Stamp,
    pub sha256: String,
}

fn index_name(set: &str) -> String {
    format!("{set}.index")
}

fn shard_name(set: &str, number: u64) -> String {
    format!("{set}-{number:05}.tokens")
}

impl SetManifest {
    /// Checks that the set's files are as they were written: by their stamps, and where the time
    /// differs, by their content. If the content is the same, the recorded stamp is updated. Returns
    /// whether any was.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged.
    pub fn check(&mut self, folder: &Path) -> Result<bool, DataError> {
        let Self {
            name,
            documents,
            tokens,
            width,
            shard_tokens,
            ..
        } = self;
        let index_bytes = *documents * INDEX_ENTRY_BYTES as u64;
        let mut renewed = self
            .index
            .check(&folder.join(index_name(name)), index_bytes)?;
        let mut rest = *tokens;
        for (number, shard) in self.shards.iter_mut().enumerate() {
            let held = rest.min(*shard_tokens);
            rest -= held;
            let path = folder.join(shard_name(name, number as u64));
            renewed |= shard.check(&path, held * u64::from(*width))?;
        }
        if rest > 0 {
            return Err(DataError::Damaged {
                path: folder.join(shard_name(name, self.shards.len() as u64)),
                reason: format!("the manifest lacks it and {rest} tokens"),
            });
        }
        Ok(renewed)
    }
}

impl FileManifest {
    /// The same for one file with `bytes` bytes after its header.
    pub fn check(&mut self, path: &Path, bytes: u64) -> Result<bool, DataError> {
        let metadata = fs::metadata(path).map_err(DataError::io("read", path))?;
        let stamp = Stamp::of(&metadata);
        let damaged = |reason: String| DataError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let length = HEADER_BYTES as u64 + bytes;
        if stamp.length != length {
            let found = stamp.length;
            return Err(damaged(format!("it has {found} bytes, not {length}")));
        }
        if stamp == self.stamp {
            return Ok(false);
        }
        let hash = hash_file(path, |_| ()).map_err(DataError::io("read", path))?;
        if hexadecimal(&hash) != self.sha256 {
            let reason = "its content has another hash than when it was written";
            return Err(damaged(reason.to_owned()));
        }
        self.stamp = stamp;
        Ok(true)
    }
}

/// What a file of prepared data begins with.
pub(super) fn header(magic: &[u8; 8], width: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(magic);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&width.to_le_bytes());
    header
}
