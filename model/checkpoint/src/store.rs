//! The weights of a checkpoint folder: a single safetensors file, or shards with an index.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use firebox_console::durable::FileError;
use serde::Deserialize;

use super::{CheckpointError, INDEX_FILE, MODEL_FILE, TensorFile, TensorInfo};
use firebox_kernels::dtype::StorageFloat;

/// All tensors of a checkpoint, in one or several files.
#[derive(Debug)]
pub struct TensorStore {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// Index of the file of each tensor.
    file_of: BTreeMap<String, usize>,
}

/// `model.safetensors.index.json`
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self, CheckpointError> {
        let text = fs::read_to_string(path).map_err(FileError::of("read", path))?;
        serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Whether it lists files other than [`MODEL_FILE`] that are there.
    fn has_shards(&self, folder: &Path) -> bool {
        let mut shards = self.weight_map.values().filter(|name| *name != MODEL_FILE);
        shards.any(|name| is_file_name(name) && folder.join(name).is_file())
    }
}

impl TensorStore {
    /// Opens the weights in a folder and checks the header of every file.
    ///
    /// # Errors
    ///
    /// When there are no weights, a file is damaged, or the index and the shards do not agree; also when there are a single
    /// file and shards.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let (single, index) = (folder.join(MODEL_FILE), folder.join(INDEX_FILE));
        match (single.exists(), index.exists()) {
            // Some tools write an index of the single file; some leave one of shards that are gone.
            (true, true) if Index::read(&index)?.has_shards(folder) => {
                Err(CheckpointError::TwoSets {
                    folder: folder.to_owned(),
                })
            }
            (true, _) => {
                let file = TensorFile::open(&single)?;
                Ok(Self {
                    folder: folder.to_owned(),
                    file_of: file
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
        let index = Index::read(path)?;
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
                    "{name:?} is not a file name; shards must be in the folder of the index"
                )));
            }
            let shard = folder.join(name);
            if !shard.is_file() {
                return Err(error(format!("the shard {name} is missing")));
            }
            numbers.insert(name, files.len());
            files.push(TensorFile::open(&shard)?);
        }
        for (name, shard) in &index.weight_map {
            if !files[numbers[shard.as_str()]].tensors().contains_key(name) {
                return Err(error(format!(
                    "{name} is listed in {shard}, which does not contain it"
                )));
            }
        }
        for (shard, &number) in &numbers {
            let tensors = files[number].tensors().keys();
            let stray = |name: &&String| index.weight_map.get(*name).is_none_or(|s| s != shard);
            if let Some(name) = tensors.clone().find(stray) {
                return Err(error(format!(
                    "{shard} contains {name}, which the index does not list for it"
                )));
            }
        }
        let entries = index.weight_map.iter();
        Ok(Self {
            folder: folder.to_owned(),
            file_of: entries
                .map(|(name, shard)| (name.clone(), numbers[shard.as_str()]))
                .collect(),
            files,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All tensors, by name, except for stored frequencies of rotary positions, which follow from config.json.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.file_of
            .iter()
            .filter(|(name, _)| !is_buffer(name))
            .map(|(name, &file)| (name.as_str(), &self.files[file].tensors()[name]))
    }

    /// Shape and type of a tensor; `None` if there is no tensor of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let file = *self.file_of.get(name)?;
        self.files[file].tensors().get(name)
    }

    /// A range of a tensor's values.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a value is not finite.
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name, or `range` exceeds its values.
    pub fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        self.read_as(name, range)
    }

    /// A range of a tensor's values, rounded to the nearest values of a type.
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
        self.files[self.file_of[name]].read_as(name, range)
    }
}

/// Whether a tensor follows from config.json: older versions of `transformers` stored the frequencies of rotary
/// positions, and their cosines and sines, and all readers pass over them.
fn is_buffer(name: &str) -> bool {
    const BUFFERS: [&str; 3] = ["inv_freq", "cos_cached", "sin_cached"];
    let mut parts = name.rsplit('.');
    let last = parts.next().unwrap_or_default();
    BUFFERS.contains(&last) && parts.next() == Some("rotary_emb")
}

/// Whether `name` is a plain file name: an index must not lead out of its folder.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !["..", "."].contains(&name) && !name.contains(['/', '\\', ':', '\0'])
}
