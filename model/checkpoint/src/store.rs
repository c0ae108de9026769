//! The weights of a checkpoint folder: one safetensors file, or shards with an index.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use firebox_console::durable::FileError;
use serde::Deserialize;

use super::{CheckpointError, INDEX_FILE, MODEL_FILE, TensorFile, TensorInfo};
use firebox_kernels::dtype::StorageFloat;

/// All tensors of a checkpoint, in however many files.
#[derive(Debug)]
pub struct TensorStore {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// Which file each tensor is in.
    place: BTreeMap<String, usize>,
}

/// `model.safetensors.index.json`
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl TensorStore {
    /// Opens the weights in a folder and checks the header of every file.
    ///
    /// # Errors
    ///
    /// When there are none, a file is damaged, or the index and the shards do not agree.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let (single, index) = (folder.join(MODEL_FILE), folder.join(INDEX_FILE));
        match (single.exists(), index.exists()) {
            (true, true) => Err(CheckpointError::TwoSets {
                folder: folder.to_owned(),
            }),
            (true, false) => {
                let file = TensorFile::open(&single)?;
                Ok(Self {
                    folder: folder.to_owned(),
                    place: file
                        .tensors()
                        .keys()
                        .map(|name| (name.clone(), 0))
                        .collect(),
                    files: vec![file],
                })
            }
            (false, true) => Self::sharded(folder, &index),
            (false, false) => Err(CheckpointError::NotACheckpoint {
                folder: folder.to_owned(),
                missing: MODEL_FILE,
            }),
        }
    }

    fn sharded(folder: &Path, path: &Path) -> Result<Self, CheckpointError> {
        let text = fs::read_to_string(path).map_err(FileError::of("read", path))?;
        let index: Index =
            serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        let error = |reason: String| CheckpointError::Index {
            path: path.to_owned(),
            reason,
        };
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut files: Vec<TensorFile> = Vec::new();
        for name in index.weight_map.values() {
            if numbers.contains_key(name.as_str()) {
                continue;
            }
            if !is_file_name(name) {
                return Err(error(format!(
                    "{name:?} is no file's name; shards lie beside the index"
                )));
            }
            let shard = folder.join(name);
            if !shard.is_file() {
                return Err(error(format!("the shard {name} is not there")));
            }
            numbers.insert(name, files.len());
            files.push(TensorFile::open(&shard)?);
        }
        for (name, shard) in &index.weight_map {
            if !files[numbers[shard.as_str()]].tensors().contains_key(name) {
                return Err(error(format!("{name} is not in {shard}")));
            }
        }
        for (shard, &number) in &numbers {
            let tensors = files[number].tensors().keys();
            let stray = |name: &&String| index.weight_map.get(*name).is_none_or(|s| s != shard);
            if let Some(name) = tensors.clone().find(stray) {
                return Err(error(format!(
                    "{shard} has {name}, which is not listed there"
                )));
            }
        }
        let place = index.weight_map.iter();
        Ok(Self {
            folder: folder.to_owned(),
            place: place
                .map(|(name, shard)| (name.clone(), numbers[shard.as_str()]))
                .collect(),
            files,
        })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.place
            .iter()
            .map(|(name, &file)| (name.as_str(), &self.files[file].tensors()[name]))
    }

    /// What is known of a tensor; `None` when there is none of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let file = *self.place.get(name)?;
        self.files[file].tensors().get(name)
    }

    /// A run of a tensor's values.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a value is not finite.
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name, or it has fewer values.
    pub fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        self.read_as(name, range)
    }

    /// A run of a tensor's values, each rounded to the nearest of a type.
    ///
    /// # Errors
    ///
    /// See [`read`](Self::read); also when a value is beyond the range of the type.
    ///
    /// # Panics
    ///
    /// See [`read`](Self::read).
    pub fn read_as<T: StorageFloat>(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Vec<T>, CheckpointError> {
        self.files[self.place[name]].read_as(name, range)
    }
}

/// Whether it names a file in the folder itself: an index must not lead out of it.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !["..", "."].contains(&name) && !name.contains(['/', '\\', ':', '\0'])
}
