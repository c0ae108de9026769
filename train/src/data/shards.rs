//! Tokens on disk: shard files that are mapped into memory, and an index of the documents in them.
//!
//! A shard is a header of 16 bytes (magic, version, bytes a token) and little-endian token ids of 2
//! bytes where the vocabulary allows it, otherwise 4. All shards of a set but the last hold the
//! same number of tokens; a document may reach over several. The index has 16 bytes a document:
//! where it ends, in tokens from the start of the set, and its bytes of text.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::hash::{hash, hexadecimal};

/// Bytes of tokens in a full shard.
const SHARD_BYTES: u64 = 256 << 20;

const HEADER_BYTES: usize = 16;
const INDEX_ENTRY_BYTES: usize = 16;
const TOKENS_MAGIC: &[u8; 8] = b"FBXTOKEN";
const INDEX_MAGIC: &[u8; 8] = b"FBXINDEX";
const VERSION: u32 = 1;

/// What is known about a set of shards without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetManifest {
    /// Documents in the set.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Tokens, those that begin and end documents included.
    pub tokens: u64,
    /// Bytes a token: 2 or 4.
    pub width: u32,
    /// Tokens of a full shard.
    pub shard_tokens: u64,
    /// In order.
    pub shards: Vec<FileManifest>,
    pub index: FileManifest,
}

/// A file and the SHA-256 of all its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileManifest {
    pub file: String,
    pub sha256: String,
}

fn header(magic: &[u8; 8], width: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(magic);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&width.to_le_bytes());
    header
}

/// A file that is hashed while it is written.
struct HashedFile {
    name: String,
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
}

impl HashedFile {
    fn create(folder: &Path, name: String) -> Result<Self, DataError> {
        let path = folder.join(&name);
        let file = File::create(&path).map_err(DataError::io("write", &path))?;
        Ok(Self {
            name,
            path,
            file: BufWriter::with_capacity(1 << 20, file),
            hasher: Sha256::new(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hasher.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(DataError::io("write", &self.path))
    }

    fn finish(self) -> Result<FileManifest, DataError> {
        let synced = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all());
        synced.map_err(DataError::io("write", &self.path))?;
        Ok(FileManifest {
            file: self.name,
            sha256: hexadecimal(&self.hasher.finalize().into()),
        })
    }
}

/// Writes a set of shards document by document.
pub(super) struct SetWriter {
    folder: PathBuf,
    name: String,
    manifest: SetManifest,
    index: HashedFile,
    shard: Option<HashedFile>,
    buffer: Vec<u8>,
}

impl SetWriter {
    /// Files are called after `name`; the width suits ids below `vocabulary`.
    pub fn create(folder: &Path, name: &str, vocabulary: usize) -> Result<Self, DataError> {
        let width = if vocabulary <= 1 << 16 { 2 } else { 4 };
        Self::with_shard_tokens(folder, name, width, SHARD_BYTES / u64::from(width))
    }

    fn with_shard_tokens(
        folder: &Path,
        name: &str,
        width: u32,
        shard_tokens: u64,
    ) -> Result<Self, DataError> {
        let mut index = HashedFile::create(folder, format!("{name}.index"))?;
        index.write(&header(INDEX_MAGIC, INDEX_ENTRY_BYTES as u32))?;
        let manifest = SetManifest {
            documents: 0,
            bytes: 0,
            tokens: 0,
            width,
            shard_tokens,
            shards: Vec::new(),
            index: FileManifest {
                file: String::new(),
                sha256: String::new(),
            },
        };
        Ok(Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            manifest,
            index,
            shard: None,
            buffer: Vec::new(),
        })
    }

    /// Adds a document: its tokens, those that begin and end it included, and the bytes of its text.
    pub fn push(&mut self, document: &[u32], bytes: u64) -> Result<(), DataError> {
        let mut rest = document;
        while !rest.is_empty() {
            let room =
                self.manifest.shard_tokens - self.manifest.tokens % self.manifest.shard_tokens;
            let (now, later) =
                rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.write(now)?;
            rest = later;
        }
        self.manifest.documents += 1;
        self.manifest.bytes += bytes;
        self.index.write(&self.manifest.tokens.to_le_bytes())?;
        self.index.write(&bytes.to_le_bytes())
    }

    /// Writes tokens that fit into the current shard.
    fn write(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        if self
            .manifest
            .tokens
            .is_multiple_of(self.manifest.shard_tokens)
        {
            self.close_shard()?;
            let name = format!("{}-{:05}.tokens", self.name, self.manifest.shards.len());
            let mut shard = HashedFile::create(&self.folder, name)?;
            shard.write(&header(TOKENS_MAGIC, self.manifest.width))?;
            self.shard = Some(shard);
        }
        self.buffer.clear();
        for id in tokens {
            self.buffer
                .extend_from_slice(&id.to_le_bytes()[..self.manifest.width as usize]);
        }
        self.manifest.tokens += tokens.len() as u64;
        match &mut self.shard {
            Some(shard) => shard.write(&self.buffer),
            None => Ok(()),
        }
    }

    fn close_shard(&mut self) -> Result<(), DataError> {
        if let Some(shard) = self.shard.take() {
            self.manifest.shards.push(shard.finish()?);
        }
        Ok(())
    }

    /// Completes the files.
    pub fn finish(mut self) -> Result<SetManifest, DataError> {
        self.close_shard()?;
        self.manifest.index = self.index.finish()?;
        Ok(self.manifest)
    }
}

/// A set of shards, read at any place.
#[derive(Debug)]
pub(super) struct TokenSet {
    width: usize,
    shard_tokens: u64,
    shards: Vec<Mmap>,
    /// Where each document ends.
    ends: Vec<u64>,
    /// Bytes of each document's text.
    bytes: Vec<u64>,
}

impl TokenSet {
    /// Opens a set and checks every byte of it.
    pub fn open(folder: &Path, manifest: &SetManifest) -> Result<Self, DataError> {
        let index_path = folder.join(&manifest.index.file);
        let index = open_checked(
            folder,
            &manifest.index,
            &header(INDEX_MAGIC, INDEX_ENTRY_BYTES as u32),
        )?;
        let entries = index[HEADER_BYTES..].chunks_exact(INDEX_ENTRY_BYTES);
        let number = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|index| bytes[index]));
        let (ends, bytes): (Vec<u64>, Vec<u64>) = entries
            .map(|entry| (number(entry), number(&entry[8..])))
            .unzip();

        let header = header(TOKENS_MAGIC, manifest.width);
        let open = |file: &FileManifest| open_checked(folder, file, &header);
        let shards = manifest
            .shards
            .iter()
            .map(open)
            .collect::<Result<Vec<Mmap>, DataError>>()?;
        let width = manifest.width as usize;
        let held: usize = shards
            .iter()
            .map(|shard| (shard.len() - HEADER_BYTES) / width)
            .sum();
        if held as u64 != manifest.tokens || ends.last().copied().unwrap_or(0) != manifest.tokens {
            return Err(DataError::Damaged {
                path: index_path,
                reason: format!("it does not fit shards of {held} tokens"),
            });
        }
        Ok(Self {
            width,
            shard_tokens: manifest.shard_tokens,
            shards,
            ends,
            bytes,
        })
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.ends.len()
    }

    /// Where a document's tokens are, those that begin and end it included.
    pub fn range(&self, document: usize) -> Range<u64> {
        let start = document
            .checked_sub(1)
            .map_or(0, |before| self.ends[before]);
        start..self.ends[document]
    }

    /// Bytes of a document's text.
    pub fn bytes(&self, document: usize) -> u64 {
        self.bytes[document]
    }

    /// Appends the tokens of a range to `tokens`.
    pub fn read(&self, mut range: Range<u64>, tokens: &mut Vec<u32>) {
        while range.start < range.end {
            let shard = &self.shards[(range.start / self.shard_tokens) as usize];
            let first = range.start % self.shard_tokens;
            let count = (range.end - range.start).min(self.shard_tokens - first);
            let from = HEADER_BYTES + first as usize * self.width;
            let bytes = &shard[from..from + count as usize * self.width];
            if self.width == 2 {
                tokens.extend(
                    bytes
                        .chunks_exact(2)
                        .map(|id| u32::from(u16::from_le_bytes([id[0], id[1]]))),
                );
            } else {
                tokens.extend(
                    bytes
                        .chunks_exact(4)
                        .map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])),
                );
            }
            range.start += count;
        }
    }
}

fn open_checked(
    folder: &Path,
    manifest: &FileManifest,
    header: &[u8; HEADER_BYTES],
) -> Result<Mmap, DataError> {
    let path = folder.join(&manifest.file);
    let file = File::open(&path).map_err(DataError::io("read", &path))?;
    // SAFETY: the files are written once, under a name that only complete folders get, and never
    // changed; that no other program changes them either is what every mapped file rests on.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) }.map_err(DataError::io("map", &path))?;
    let reason = if !map.starts_with(header) {
        "its header is not of this version"
    } else if hexadecimal(&hash(&map)) != manifest.sha256 {
        "its content has another hash than when it was written"
    } else {
        return Ok(map);
    };
    Err(DataError::Damaged {
        path,
        reason: reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::fs;

    use super::*;

    fn write(folder: &Path, documents: &[Vec<u32>], width: u32, shard_tokens: u64) -> SetManifest {
        let mut writer = SetWriter::with_shard_tokens(folder, "set", width, shard_tokens).unwrap();
        for document in documents {
            writer.push(document, document.len() as u64 * 3).unwrap();
        }
        writer.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_written_is_read(
            documents in prop::collection::vec(prop::collection::vec(0u32..60_000, 1..20), 1..12),
            wide: bool,
            shard_tokens in 1u64..30,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let scale = if wide { 70_000 } else { 1 };
            let documents: Vec<Vec<u32>> =
                documents.iter().map(|tokens| tokens.iter().map(|id| id * scale).collect()).collect();
            let manifest = write(folder.path(), &documents, if wide { 4 } else { 2 }, shard_tokens);
            let set = TokenSet::open(folder.path(), &manifest).unwrap();
            prop_assert_eq!(set.documents(), documents.len());
            prop_assert_eq!(manifest.shards.len() as u64, manifest.tokens.div_ceil(shard_tokens));
            let mut whole = Vec::new();
            for (index, document) in documents.iter().enumerate() {
                let mut tokens = Vec::new();
                set.read(set.range(index), &mut tokens);
                prop_assert_eq!(&tokens, document);
                prop_assert_eq!(set.bytes(index), document.len() as u64 * 3);
                whole.extend(tokens);
            }
            let mut tokens = Vec::new();
            set.read(0..manifest.tokens, &mut tokens);
            prop_assert_eq!(tokens, whole);
        }
    }

    #[test]
    fn damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = write(folder.path(), &[vec![1, 2, 3, 9], vec![4, 9]], 2, 4);
        for file in [&manifest.shards[0], &manifest.shards[1], &manifest.index] {
            let path = folder.path().join(&file.file);
            let content = fs::read(&path).unwrap();
            let mut flipped = content.clone();
            *flipped.last_mut().unwrap() ^= 1;
            for damaged in [&content[..content.len() - 1], &content[..5], &flipped, &[]] {
                fs::write(&path, damaged).unwrap();
                assert!(
                    TokenSet::open(folder.path(), &manifest).is_err(),
                    "{file:?}"
                );
            }
            fs::write(&path, content).unwrap();
        }
        assert!(TokenSet::open(folder.path(), &manifest).is_ok());
    }

    #[test]
    fn large_vocabularies_get_wide_tokens() {
        let folder = tempfile::tempdir().unwrap();
        for (vocabulary, width) in [(257, 2), (65_536, 2), (65_537, 4)] {
            assert_eq!(
                SetWriter::create(folder.path(), "set", vocabulary)
                    .unwrap()
                    .manifest
                    .width,
                width
            );
        }
    }
}
