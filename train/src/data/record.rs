//! What is known of a source's text from the last time that it was read, so that it is not read
//! again while its files are the same.
//!
//! A record tells files by name, size and time of the last change. It is trusted only where every
//! file's last change was long enough before it was read for a later one to show, and where the files
//! were the same before and after. A record that is absent, damaged or out of date costs a reading, and nothing else.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::cache;
use super::error::DataError;
use super::hash::{hash, hexadecimal};
use super::source::{self, Reader};
use super::stamp::Stamp;
use super::survey::{FORMAT, SourceSurvey};
use crate::config::{OnError, SourceConfig, SourceKind, ValidationConfig};

/// The records in a cache folder.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
}

/// What was found in a source, and in which files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub survey: SourceSurvey,
    /// Files that were read.
    pub files: u64,
    /// Whether those were all; otherwise `max_bytes` ended the reading.
    complete: bool,
    /// The hash of the files' footprint.
    footprint: String,
    /// Whether a later change of any of them must show in the footprint.
    pub settled: bool,
}

/// Names, sizes and times of files, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Footprint {
    hasher: Sha256,
    files: u64,
    /// The latest change of all.
    latest: Stamp,
    /// Files of which there is no stamp.
    absent: u64,
}

impl Footprint {
    /// Adds a file, as it is now.
    pub fn add(&mut self, path: &Path) {
        let stamp = fs::metadata(path).map(|metadata| Stamp::of(&metadata)).ok();
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
        hexadecimal(&self.hasher.finalize().into())
    }
}

impl Record {
    /// What a reader has found that was begun at `started` and is at its end.
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

    /// Whether the source still has the files that were read. Looks at names, sizes and times alone.
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
    /// Those of the cache folder `root`.
    pub fn of(root: &Path) -> Self {
        Self {
            folder: root.join("sources"),
        }
    }

    /// The record of a source, where there is one.
    pub fn find(&self, source: &SourceConfig, validation: &ValidationConfig) -> Option<Record> {
        let json = fs::read(self.path(source, validation)).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// Keeps a record, whole or not at all.
    pub fn keep(&self, source: &SourceConfig, validation: &ValidationConfig, record: &Record) {
        let path = self.path(source, validation);
        let json = serde_json::to_vec(record).expect("numbers and strings can be written as JSON");
        let kept = cache::create(&self.folder).and_then(|()| {
            NamedTempFile::new_in(&self.folder)
                .and_then(|mut file| {
                    file.write_all(&json)?;
                    Ok(file.persist(&path)?)
                })
                .map_err(DataError::io("write", &path))
        });
        if let Err(error) = kept {
            tracing::warn!(
                "source {:?} will be read again at the next start: {error}",
                source.name
            );
        }
    }

    /// A file that is named after all that decides what is read and counted, but for the files themselves.
    fn path(&self, source: &SourceConfig, validation: &ValidationConfig) -> PathBuf {
        #[derive(Serialize)]
        struct Key<'a> {
            format: u32,
            /// Of relative patterns.
            base: String,
            kind: &'a SourceKind,
            max_bytes: Option<u64>,
            on_error: OnError,
            validation: &'a ValidationConfig,
        }
        let key = Key {
            format: FORMAT,
            base: env::current_dir().unwrap_or_default().display().to_string(),
            kind: &source.kind,
            max_bytes: source.max_bytes,
            on_error: source.on_error,
            validation,
        };
        let json = serde_json::to_vec(&key).expect("numbers and strings can be written as JSON");
        let name = hexadecimal(&hash(&json));
        self.folder.join(format!("{name}.json"))
    }
}
