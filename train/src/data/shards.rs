//! Tokens on disk: shard files and an index of the documents in them, read on demand.
//!
//! A shard is a header of 16 bytes (magic, version, bytes per token) and little-endian token ids of
//! 2 bytes where the vocabulary allows it, otherwise 4. All shards of a set but the last hold the
//! same number of tokens; a document may reach over several. The index has 16 bytes per document:
//! where it ends, in tokens from the start of the set, and its bytes of text.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::hash::{hash_file, hexadecimal};
use super::pool::FilePool;
use super::stamp::Stamp;

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
    fn check(&mut self, path: &Path, bytes: u64) -> Result<bool, DataError> {
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

fn header(magic: &[u8; 8], width: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(magic);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&width.to_le_bytes());
    header
}

/// A file that is hashed while it is written.
struct HashedFile {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
}

impl HashedFile {
    fn create(path: PathBuf) -> Result<Self, DataError> {
        let file = File::create(&path).map_err(DataError::io("write", &path))?;
        Ok(Self {
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
        let metadata = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| {
                file.sync_all()?;
                file.metadata()
            });
        let metadata = metadata.map_err(DataError::io("write", &self.path))?;
        Ok(FileManifest {
            stamp: Stamp::of(&metadata),
            sha256: hexadecimal(&self.hasher.finalize().into()),
        })
    }
}

/// Writes a set of shards document by document.
pub(super) struct SetWriter {
    folder: PathBuf,
    manifest: SetManifest,
    index: HashedFile,
    shard: Option<HashedFile>,
    buffer: Vec<u8>,
}

impl SetWriter {
    /// Files are called after `name`; the width suits ids below `vocab_size`.
    pub fn create(folder: &Path, name: &str, vocab_size: usize) -> Result<Self, DataError> {
        let width = if vocab_size <= 1 << 16 { 2 } else { 4 };
        Self::with_shard_tokens(folder, name, width, SHARD_BYTES / u64::from(width))
    }

    fn with_shard_tokens(
        folder: &Path,
        name: &str,
        width: u32,
        shard_tokens: u64,
    ) -> Result<Self, DataError> {
        let mut index = HashedFile::create(folder.join(index_name(name)))?;
        index.write(&header(INDEX_MAGIC, INDEX_ENTRY_BYTES as u32))?;
        let manifest = SetManifest {
            name: name.to_owned(),
            documents: 0,
            bytes: 0,
            tokens: 0,
            width,
            shard_tokens,
            shards: Vec::new(),
            index: FileManifest {
                stamp: Stamp::default(),
                sha256: String::new(),
            },
        };
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
            index,
            shard: None,
            buffer: Vec::new(),
        })
    }

    /// Adds tokens to the current document: those of its text, and those that begin and end it.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        let mut rest = tokens;
        while !rest.is_empty() {
            let room =
                self.manifest.shard_tokens - self.manifest.tokens % self.manifest.shard_tokens;
            let (now, later) =
                rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.write(now)?;
            rest = later;
        }
        Ok(())
    }

    /// Completes the current document, whose text has this many bytes.
    pub fn end_document(&mut self, bytes: u64) -> Result<(), DataError> {
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
            let name = shard_name(&self.manifest.name, self.manifest.shards.len() as u64);
            let mut shard = HashedFile::create(self.folder.join(name))?;
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

/// A set of shards with random access. A file is opened when it is first read.
#[derive(Debug)]
pub(super) struct TokenSet {
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
pub(super) struct DocumentPlace {
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

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use proptest::prelude::*;

    use super::*;

    /// Sets of documents of these lengths, in a temporary folder. Tokens are 1, 2, 3, … throughout, with a
    /// 0 at the end of each document.
    pub fn sets(sources: &[Vec<usize>]) -> (tempfile::TempDir, Arc<Vec<TokenSet>>) {
        let folder = tempfile::tempdir().unwrap();
        let files = Arc::default();
        let mut next = 1;
        let sets = sources.iter().enumerate().map(|(index, lengths)| {
            let mut writer =
                SetWriter::create(folder.path(), &format!("{index}"), 1 << 17).unwrap();
            for &length in lengths {
                let mut tokens: Vec<u32> = (next..next + length as u32).collect();
                tokens.push(0);
                next += length as u32;
                writer.extend(&tokens).unwrap();
                writer.end_document(length as u64).unwrap();
            }
            TokenSet::new(folder.path(), &writer.finish().unwrap(), &files)
        });
        let sets = Arc::new(sets.collect());
        (folder, sets)
    }

    fn write(folder: &Path, documents: &[Vec<u32>], width: u32, shard_tokens: u64) -> SetManifest {
        let mut writer = SetWriter::with_shard_tokens(folder, "set", width, shard_tokens).unwrap();
        for document in documents {
            let (first, second) = document.split_at(document.len() / 2);
            writer.extend(first).unwrap();
            writer.extend(second).unwrap();
            writer.end_document(document.len() as u64 * 3).unwrap();
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
            let mut manifest = write(folder.path(), &documents, if wide { 4 } else { 2 }, shard_tokens);
            prop_assert!(!manifest.check(folder.path()).unwrap());
            let set = TokenSet::new(folder.path(), &manifest, &Arc::default());
            prop_assert_eq!(set.documents(), documents.len() as u64);
            prop_assert_eq!(manifest.shards.len() as u64, manifest.tokens.div_ceil(shard_tokens));
            let mut whole = Vec::new();
            for (number, document) in documents.iter().enumerate() {
                let mut tokens = Vec::new();
                let place = set.document(number as u64).unwrap();
                set.read(place.tokens, &mut tokens).unwrap();
                prop_assert_eq!(&tokens, document);
                prop_assert_eq!(place.bytes, document.len() as u64 * 3);
                whole.extend(tokens);
            }
            let mut tokens = Vec::new();
            set.read(0..set.tokens(), &mut tokens).unwrap();
            prop_assert_eq!(tokens, whole);
        }
    }

    fn set_modified(path: &Path, time: SystemTime) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(time).unwrap();
    }

    #[test]
    fn damage_is_found_by_size_or_time_and_content() {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = write(folder.path(), &[vec![1, 2, 3, 9], vec![4, 9]], 2, 4);
        let now = SystemTime::now();
        for file in [
            shard_name("set", 0),
            shard_name("set", 1),
            index_name("set"),
        ] {
            let path = folder.path().join(&file);
            let content = fs::read(&path).unwrap();
            let mut flipped = content.clone();
            *flipped.last_mut().unwrap() ^= 1;
            for damaged in [&content[..content.len() - 1], &content[..5], &flipped, &[]] {
                fs::write(&path, damaged).unwrap();
                set_modified(&path, now + Duration::from_secs(5));
                assert!(manifest.check(folder.path()).is_err(), "{file:?}");
            }
            // The same content at another time is known from then on.
            fs::write(&path, content).unwrap();
            set_modified(&path, now + Duration::from_secs(9));
            assert!(manifest.check(folder.path()).unwrap());
            assert!(!manifest.check(folder.path()).unwrap());
        }
        fs::remove_file(folder.path().join(shard_name("set", 1))).unwrap();
        assert!(manifest.check(folder.path()).is_err());
    }

    /// With sparse files, which most file systems of Unix have.
    #[cfg(unix)]
    #[test]
    fn a_large_set_is_opened_without_reading_it() {
        let folder = tempfile::tempdir().unwrap();
        let shard_tokens = SHARD_BYTES / 4;
        let file = |name: &str, magic, width, length| {
            let path = folder.path().join(name);
            let mut file = File::create(&path).unwrap();
            file.write_all(&header(magic, width)).unwrap();
            file.set_len(length).unwrap();
            FileManifest {
                stamp: Stamp::of(&file.metadata().unwrap()),
                sha256: String::new(),
            }
        };
        let shard = |number| {
            let length = HEADER_BYTES as u64 + SHARD_BYTES;
            file(&shard_name("set", number), TOKENS_MAGIC, 4, length)
        };
        let documents = 100 << 20;
        let shards: Vec<FileManifest> = (0..1000).map(shard).collect();
        let mut manifest = SetManifest {
            name: "set".to_owned(),
            documents,
            bytes: 0,
            tokens: 1000 * shard_tokens,
            width: 4,
            shard_tokens,
            shards,
            index: file("set.index", INDEX_MAGIC, 16, 16 + documents * 16),
        };
        // 268 GB, of which a hundredth could not be read in a second.
        let start = Instant::now();
        assert!(!manifest.check(folder.path()).unwrap());
        let set = TokenSet::new(folder.path(), &manifest, &Arc::default());
        let mut tokens = Vec::new();
        for number in 0..1000 {
            let end = (number + 1) * shard_tokens;
            set.read(end - 3..end, &mut tokens).unwrap();
        }
        set.document(documents - 1).unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(tokens, [0; 3000]);
    }

    #[test]
    fn large_vocabularies_get_wide_tokens() {
        let folder = tempfile::tempdir().unwrap();
        for (vocab_size, width) in [(257, 2), (65_536, 2), (65_537, 4)] {
            assert_eq!(
                SetWriter::create(folder.path(), "set", vocab_size)
                    .unwrap()
                    .manifest
                    .width,
                width
            );
        }
    }
}
