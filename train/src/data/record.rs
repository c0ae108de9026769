//! Records of sources: hash and amount of a source's text, kept so that unchanged files are not read
//! again.
//!
//! A record identifies files by name, size and modification time. It is written only when these were
//! the same before and after reading, and trusted only when every file was modified long enough before
//! it was read that a later change must have another time. A record that is missing, damaged or
//! outdated means that the source is read again, and has no other effect.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use firebox_console::durable;
use firebox_text::Tokenizer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cache;
use super::error::DataError;
use super::hash::{hash, hexadecimal};
use super::source::{self, Reader};
use super::stamp::Stamp;
use super::survey::{FORMAT, SourceSurvey};
use crate::config::{OnError, SourceConfig, SourceKind, Split, TileLimits};

/// The records in a cache folder.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
}

/// What a source contained, and the files it was read from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub survey: SourceSurvey,
    /// Files that were read.
    pub files: u64,
    /// Whether these were all files; otherwise reading stopped at `max_bytes`.
    complete: bool,
    /// The hash of the files' footprint.
    footprint: String,
    /// Whether a later change of a file must change the footprint.
    pub settled: bool,
}

/// Names, sizes and times of files, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Footprint {
    hasher: Sha256,
    files: u64,
    /// The stamp of the file that was modified last.
    latest: Stamp,
    /// Number of files that do not exist or cannot be accessed.
    absent: u64,
}

impl Footprint {
    /// Adds a file, as it is now.
    pub fn add(&mut self, path: &Path) {
        // A link that leads nowhere has a stamp of its own.
        let metadata = fs::metadata(path).or_else(|_| fs::symlink_metadata(path));
        let stamp = metadata.map(|metadata| Stamp::of(&metadata)).ok();
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let name = path.as_os_str().as_encoded_bytes();
        self.hasher.update((name.len() as u64).to_le_bytes());
        self.hasher.update(name);
        self.files += 1;
        match stamp {
            Some(stamp) => {
                self.hasher.update(stamp.length.to_le_bytes());
                self.hasher.update(stamp.modified.to_le_bytes());
                if self.files == 1 || stamp.modified > self.latest.modified {
                    self.latest = stamp;
                }
            }
            None => self.absent += 1,
        }
    }

    fn hash(self) -> String {
        hexadecimal(&self.hasher.finalize())
    }
}

impl Record {
    /// The record of a source that `reader` has read to its end, having started at `started`.
    pub fn new(survey: SourceSurvey, reader: &Reader, started: SystemTime) -> Self {
        let footprint = reader.footprint();
        Self {
            survey,
            files: footprint.files,
            complete: reader.is_complete(),
            settled: footprint.absent == 0 && footprint.latest.is_settled(started),
            footprint: footprint.clone().hash(),
        }
    }

    /// Whether the source still consists of the files that were read: the same names, sizes and
    /// modification times. Opens no file.
    ///
    /// # Errors
    ///
    /// When the files cannot be found.
    pub fn is_current(&self, source: &SourceConfig) -> Result<bool, DataError> {
        let mut footprint = Footprint::default();
        for path in source::files(source)? {
            if footprint.files == self.files {
                if self.complete {
                    return Ok(false);
                }
                break;
            }
            footprint.add(&path);
        }
        Ok(footprint.absent == 0 && footprint.hash() == self.footprint)
    }
}

impl Records {
    /// The records in the cache folder `root`.
    pub fn of(root: &Path) -> Self {
        Self {
            folder: root.join("sources"),
        }
    }

    /// The record of a source, if there is one.
    pub fn find(
        &self,
        source: &SourceConfig,
        split: Split,
        tokenizer: Option<&Tokenizer>,
    ) -> Option<Record> {
        let json = fs::read(self.path(source, split, tokenizer)).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// Writes a record, completely or not at all. A failure is only logged.
    pub fn keep(
        &self,
        source: &SourceConfig,
        split: Split,
        tokenizer: Option<&Tokenizer>,
        record: &Record,
    ) {
        let path = self.path(source, split, tokenizer);
        let json = serde_json::to_vec(record).expect("numbers and strings can be written as JSON");
        let written = cache::create(&self.folder).and_then(|()| {
            let _lock = cache::lock(&self.folder.join("lock"))?;
            Ok(durable::write(&path, json)?)
        });
        if let Err(error) = written {
            tracing::warn!(
                "source {:?} will be read again at the next start: {error}",
                source.name
            );
        }
    }

    /// The file of a source's record. Its name is a hash of all settings that decide what is read and
    /// counted. The text of tokens depends on the tokenizer as well.
    fn path(&self, source: &SourceConfig, split: Split, tokenizer: Option<&Tokenizer>) -> PathBuf {
        #[derive(Serialize)]
        struct Key<'a> {
            format: u32,
            /// The folder that relative patterns are resolved against.
            base: String,
            kind: &'a SourceKind,
            max_bytes: Option<u64>,
            on_error: OnError,
            split: Split,
            #[serde(skip_serializing_if = "Option::is_none")]
            tiles: Option<TileLimits>,
            #[serde(skip_serializing_if = "Option::is_none")]
            tokenizer: Option<(String, u32, bool)>,
        }
        let tokenizer = tokenizer.filter(|_| source.kind.is_tokens());
        let key = Key {
            format: FORMAT,
            base: env::current_dir().unwrap_or_default().display().to_string(),
            kind: &source.kind,
            max_bytes: source.max_bytes,
            on_error: source.on_error,
            split,
            tiles: source.tiles,
            tokenizer: tokenizer.map(|tokenizer| {
                let json = hexadecimal(&hash(tokenizer.to_json().as_bytes()));
                (json, tokenizer.eos_id(), tokenizer.takes_special_tokens())
            }),
        };
        let json = serde_json::to_vec(&key).expect("numbers and strings can be written as JSON");
        let name = hexadecimal(&hash(&json));
        self.folder.join(format!("{name}.json"))
    }
}
