//! Writes sets of shards.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::super::error::DataError;
use super::super::hash::hexadecimal;
use super::super::stamp::Stamp;
use super::{
    FileManifest, INDEX_ENTRY_BYTES, INDEX_MAGIC, SHARD_BYTES, SetManifest, TOKENS_MAGIC, header,
    index_name, shard_name,
};

/// A file that is hashed while it is written.
pub struct HashedFile {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
}

impl HashedFile {
    /// Creates a file, or empties it.
    pub fn create(path: PathBuf) -> Result<Self, DataError> {
        let file = File::create(&path).map_err(DataError::io("write", &path))?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 20, file),
            hasher: Sha256::new(),
        })
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hasher.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(DataError::io("write", &self.path))
    }

    /// Completes the file on disk.
    pub fn finish(self) -> Result<FileManifest, DataError> {
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
            sha256: hexadecimal(&self.hasher.finalize()),
        })
    }
}

/// Writes a set of shards document by document.
pub struct SetWriter {
    folder: PathBuf,
    pub(super) manifest: SetManifest,
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

    pub(super) fn with_shard_tokens(
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
