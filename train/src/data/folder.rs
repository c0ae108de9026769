//! A folder of prepared data: `manifest.json`, `tokenizer.json`, `validation.jsonl` (the held-out
//! text of all sources, for `infer eval`), and the shards of each source's training tokens and
//! validation tokens.

use std::fs;
use std::path::Path;

use firebox_console::durable;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::pictures::PictureManifest;
use super::shards::SetManifest;
use super::survey::FORMAT;

/// Name of the manifest in a folder of prepared data.
pub(super) const MANIFEST: &str = "manifest.json";

/// Name of the tokenizer in a folder of prepared data.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// Name of the held-out text in a folder of prepared data.
pub(super) const VALIDATION_TEXT: &str = "validation.jsonl";

/// What is in a folder of prepared data.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The `FORMAT` of the program that wrote it.
    pub format: u32,
    /// The key of the survey.
    pub key: String,
    pub end_of_text: u32,
    /// Training sources, then validation sources, each in order.
    pub sources: Vec<SourceManifest>,
}

/// What was prepared of a source.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceManifest {
    /// The hash of its text.
    pub hash: String,
    /// Its training tokens; none of a validation source.
    pub training: SetManifest,
    /// Its held-out tokens, if any.
    pub validation: SetManifest,
    /// Of a validation source, its documents that are also trained on, word for word; 0 of a training source.
    pub copies: u64,
    /// Places of the text that spell special tokens.
    pub special_places: u64,
    /// The pictures of its training documents and of its held-out ones, where these are captions and the model sees
    /// pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<[PictureManifest; 2]>,
}

impl Manifest {
    /// Reads the manifest of a folder. It must be of the data with this key, of this number of sources.
    ///
    /// # Errors
    ///
    /// When it is missing, damaged, or of other data.
    pub fn read(folder: &Path, key: &str, sources: usize) -> Result<Self, DataError> {
        let path = folder.join(MANIFEST);
        let json = fs::read(&path).map_err(DataError::io("read", &path))?;
        let damaged = |reason: String| DataError::Damaged {
            path: path.clone(),
            reason,
        };
        let manifest: Self =
            serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        if manifest.key != key || manifest.format != FORMAT || manifest.sources.len() != sources {
            return Err(damaged("it belongs to other data".to_owned()));
        }
        Ok(manifest)
    }

    /// The same, and checks that all tokens are there (see [`SetManifest::check`]).
    ///
    /// # Errors
    ///
    /// When a file is missing, damaged, or of other data.
    pub fn open(folder: &Path, key: &str, sources: usize) -> Result<Self, DataError> {
        let mut manifest = Self::read(folder, key, sources)?;
        let mut renewed = false;
        for source in &mut manifest.sources {
            renewed |= source.training.check(folder)?;
            renewed |= source.validation.check(folder)?;
            for pictures in source.pictures.iter_mut().flatten() {
                renewed |= pictures.check(folder)?;
            }
        }
        if renewed {
            tracing::info!(
                "data: checked all bytes of files in {} whose modification time had changed",
                folder.display()
            );
            // Nothing is lost: the next start hashes these files again.
            if let Err(error) = manifest.write(folder) {
                tracing::warn!("data: {error}");
            }
        }
        Ok(manifest)
    }

    /// Writes the manifest into a folder, completely or not at all.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), DataError> {
        let path = folder.join(MANIFEST);
        let json = serde_json::to_vec(self).expect("numbers and strings can be written as JSON");
        Ok(durable::write(&path, json)?)
    }
}
