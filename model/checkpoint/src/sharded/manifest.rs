//! `layout.json`.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use firebox_console::durable::{self, FileError};
use firebox_console::numbers::hexadecimal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::LAYOUT_FILE;
use crate::CheckpointError;
use firebox_model::config::ModelConfig;
use firebox_model::parallel::{RankLayout, are_stages};

/// The version of the format.
const VERSION: u32 = 1;

/// What is wrong with a tensor or file that is not as it was written.
pub(super) const HASH_DIFFERS: &str = "does not match its hash in layout.json";

/// SHA-256 of tensors or files by name, as 64 hexadecimal digits.
pub(super) type Hashes = BTreeMap<String, String>;

/// How a checkpoint is divided, and a hash of everything that it is divided into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    version: u32,
    /// The parallel layout.
    pub layout: RankLayout,
    /// The layers of each stage: first and end (exclusive).
    stages: Vec<[usize; 2]>,
    /// The weights' files of the checkpoint, each of which has a header in `original`.
    pub files: Vec<String>,
    /// The files in `original`.
    pub original: Hashes,
    /// The tensors of each rank.
    pub ranks: Vec<Hashes>,
}

/// The field that every version has.
#[derive(Debug, Deserialize)]
struct Version {
    version: u32,
}

impl Manifest {
    /// That of ranks which are not written yet.
    pub fn new(layout: RankLayout, stages: &[Range<usize>]) -> Self {
        Self {
            version: VERSION,
            layout,
            stages: stages
                .iter()
                .map(|stage| [stage.start, stage.end])
                .collect(),
            files: Vec::new(),
            original: Hashes::new(),
            ranks: Vec::new(),
        }
    }

    /// The layers of each stage.
    pub fn stages(&self) -> Vec<Range<usize>> {
        self.stages.iter().map(|&[start, end]| start..end).collect()
    }

    /// Reads it from a folder.
    ///
    /// # Errors
    ///
    /// When it is missing, damaged or of another version.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(LAYOUT_FILE);
        if !path.exists() {
            return Err(CheckpointError::NotSharded {
                folder: folder.to_owned(),
            });
        }
        let damaged = |reason: String| CheckpointError::Damaged {
            path: path.clone(),
            reason,
        };
        let text = fs::read_to_string(&path).map_err(FileError::of("read", &path))?;
        // By itself, since another version may have other fields.
        let Version { version } =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if version != VERSION {
            return Err(damaged(format!(
                "it is of version {version}, and this build reads version {VERSION}"
            )));
        }
        serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))
    }

    /// Checks that it is one of this model.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn check(&self, folder: &Path, model: &ModelConfig) -> Result<(), CheckpointError> {
        let damaged = |reason: String| CheckpointError::Damaged {
            path: folder.join(LAYOUT_FILE),
            reason,
        };
        let layout = self.layout;
        layout.check(model).map_err(|error| {
            let reason = error.to_string().replace("--", "");
            damaged(format!("its layout does not fit config.json: {reason}"))
        })?;
        if !are_stages(&self.stages(), layout.pipeline, model.layers.len()) {
            return Err(damaged(format!(
                "its stages {:?} do not divide the {} layers of config.json",
                self.stages,
                model.layers.len()
            )));
        }
        if self.ranks.len() != layout.ranks() {
            return Err(damaged(format!(
                "it lists {} ranks, and the layout has {}",
                self.ranks.len(),
                layout.ranks()
            )));
        }
        let plain = |name: &&String| Path::new(name).file_name() != Some(name.as_ref());
        if let Some(name) = self.files.iter().chain(self.original.keys()).find(plain) {
            return Err(damaged(format!("{name:?} is not a file name")));
        }
        Ok(())
    }

    /// What is wrong with the bytes that a rank has of a tensor, if anything is.
    pub fn fault(&self, rank: usize, tensor: &str, bytes: &[u8]) -> Option<&'static str> {
        match self.ranks[rank].get(tensor) {
            Some(expected) if *expected == hash(bytes) => None,
            Some(_) => Some(HASH_DIFFERS),
            None => Some("is not listed in layout.json"),
        }
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        let text = serde_json::to_string_pretty(self).expect("strings and integers") + "\n";
        Ok(durable::write(&folder.join(LAYOUT_FILE), text)?)
    }
}

/// The hash of some bytes.
pub(super) fn hash(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_version_is_named_whatever_its_fields_are() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{{\"version\": {}, \"parts\": []}}", VERSION + 1);
        fs::write(folder.path().join(LAYOUT_FILE), text).unwrap();
        let error = Manifest::read(folder.path()).unwrap_err().to_string();
        let said = "it is of version 2, and this build reads version 1";
        assert!(error.ends_with(said), "{error}");
    }
}
