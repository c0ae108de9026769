//! The weights of a checkpoint: a single safetensors file, shards with an index, or a GGUF file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use firebox_console::durable::FileError;
use serde::Deserialize;

use super::dialect::Dialect;
use super::gguf::{DERIVED, GgufFile, is_gguf};
use super::mxfp4::{BLOCKS, Packed, SCALES};
use super::sharded::ShardedCheckpoint;
use super::{CheckpointError, INDEX_FILE, MODEL_FILE, TensorFile, TensorInfo};
use firebox_kernels::dtype::StorageFloat;
use firebox_model::parallel::Slice;

/// All tensors of a checkpoint, in one or several files.
#[derive(Debug)]
pub struct TensorStore {
    folder: PathBuf,
    /// A single file of llama.cpp's, in place of all that follows.
    gguf: Option<GgufFile>,
    files: Vec<TensorFile>,
    /// Index of the file of each tensor.
    file_of: BTreeMap<String, usize>,
    /// Tensors that two tensors of bytes stand for.
    packed: BTreeMap<String, Packed>,
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
    /// Opens the weights in a folder, or a GGUF file, and checks the header of every file.
    ///
    /// # Errors
    ///
    /// When there are no weights, a file is damaged, or the index and the shards do not agree; also when there are a single
    /// file and shards.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if is_gguf(folder) {
            return Ok(Self {
                folder: folder.to_owned(),
                gguf: Some(GgufFile::open(folder)?),
                files: Vec::new(),
                file_of: BTreeMap::new(),
                packed: BTreeMap::new(),
            });
        }
        let (single, index) = (folder.join(MODEL_FILE), folder.join(INDEX_FILE));
        match (single.exists(), index.exists()) {
            // Some tools write an index of the single file; some leave one of shards that are gone.
            (true, true) if Index::read(&index)?.has_shards(folder) => {
                Err(CheckpointError::TwoSets {
                    folder: folder.to_owned(),
                })
            }
            (true, _) => {
                let file = TensorFile::open_with_bytes(&single)?;
                let file_of = names(&file).map(|name| (name.clone(), 0)).collect();
                Self::of_files(folder, vec![file], file_of)
            }
            (false, true) => Self::sharded(folder, &index),
            (false, false) if ShardedCheckpoint::is_one(folder) => Err(CheckpointError::Sharded {
                folder: folder.to_owned(),
            }),
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
            files.push(TensorFile::open_with_bytes(&shard)?);
        }
        for (name, shard) in &index.weight_map {
            let file = &files[numbers[shard.as_str()]];
            if !file.tensors().contains_key(name) && !file.bytes().contains_key(name) {
                return Err(error(format!(
                    "{name} is listed in {shard}, which does not contain it"
                )));
            }
        }
        for (shard, &number) in &numbers {
            let stray = |name: &&String| index.weight_map.get(*name).is_none_or(|s| s != shard);
            if let Some(name) = names(&files[number]).find(stray) {
                return Err(error(format!(
                    "{shard} contains {name}, which the index does not list for it"
                )));
            }
        }
        let entries = index.weight_map.iter();
        let file_of = entries
            .map(|(name, shard)| (name.clone(), numbers[shard.as_str()]))
            .collect();
        Self::of_files(folder, files, file_of)
    }

    /// Pairs the tensors of bytes, each of which has to be one of two.
    fn of_files(
        folder: &Path,
        files: Vec<TensorFile>,
        mut file_of: BTreeMap<String, usize>,
    ) -> Result<Self, CheckpointError> {
        let is_bytes = |(name, file): &(&String, &usize)| files[**file].bytes().contains_key(*name);
        let bytes = file_of.iter().filter(is_bytes);
        let bytes: BTreeMap<String, usize> =
            bytes.map(|(name, &file)| (name.clone(), file)).collect();
        file_of.retain(|name, _| !bytes.contains_key(name));
        let pair = |blocks: &str| {
            let name = blocks.strip_suffix(BLOCKS)?;
            let scales = format!("{name}{SCALES}");
            let places = [bytes[blocks], *bytes.get(&scales)?];
            let shape = |file: usize, name: &str| files[file].bytes()[name].shape.as_slice();
            let (of_blocks, of_scales) = (shape(places[0], blocks), shape(places[1], &scales));
            Some((name.to_owned(), Packed::new(of_blocks, of_scales, places)?))
        };
        let packed: BTreeMap<String, Packed> = bytes.keys().filter_map(|name| pair(name)).collect();
        let whole = |name: &String| {
            let stem = name.strip_suffix(BLOCKS).or(name.strip_suffix(SCALES));
            stem.is_some_and(|stem| packed.contains_key(stem) && !file_of.contains_key(stem))
        };
        if let Some((name, &file)) = bytes.iter().find(|(name, _)| !whole(name)) {
            return Err(files[file].not_numbers(name));
        }
        Ok(Self {
            folder: folder.to_owned(),
            gguf: None,
            files,
            file_of,
            packed,
        })
    }

    /// Whose names the tensors have.
    pub(crate) fn dialect(&self) -> Dialect {
        match &self.gguf {
            Some(file) => Dialect::Gguf(*file.architecture()),
            None => Dialect::HuggingFace,
        }
    }

    /// The folder, or the GGUF file.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All tensors, except for stored frequencies of rotary positions, which follow from config.json.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        let packed = self.packed.iter();
        let of_gguf = self.gguf.iter().flat_map(GgufFile::tensors);
        self.file_of
            .iter()
            .filter(|(name, _)| !is_buffer(name))
            .map(|(name, &file)| (name.as_str(), &self.files[file].tensors()[name]))
            .chain(packed.map(|(name, packed)| (name.as_str(), &packed.info)))
            .chain(of_gguf.filter(|(name, _)| *name != DERIVED))
    }

    /// Shape and type of a tensor; `None` if there is no tensor of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        if let Some(file) = &self.gguf {
            return file.info(name);
        }
        if let Some(packed) = self.packed.get(name) {
            return Some(&packed.info);
        }
        let file = *self.file_of.get(name)?;
        self.files[file].tensors().get(name)
    }

    /// A tensor's values.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a value is not finite.
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let shape = self.info(name).map(|info| info.shape.clone());
        self.read_part(name, &Slice::whole(shape.unwrap_or_default()))
    }

    /// A part of a tensor, rounded to the nearest values of a type. Nothing else is read, but for short gaps between what is.
    ///
    /// # Errors
    ///
    /// See [`read`](Self::read); also when a value is beyond the range of the type.
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name, or it has another shape.
    pub fn read_part<T: StorageFloat>(
        &self,
        name: &str,
        part: &Slice,
    ) -> Result<Vec<T>, CheckpointError> {
        if let Some(file) = &self.gguf {
            return file.read_part(name, part);
        }
        match self.packed.get(name) {
            Some(packed) => packed.read_part(name, &self.files, part),
            None => self.files[self.file_of[name]].read_part(name, part),
        }
    }

    /// The bytes of a part of a tensor, as they are stored.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name, it has another shape, is packed, or is in a GGUF file.
    pub fn read_stored(&self, name: &str, part: &Slice) -> Result<Vec<u8>, CheckpointError> {
        self.files[self.file_of[name]].read_stored(name, part)
    }

    /// Whether tensors are packed in MXFP4.
    pub fn is_packed(&self) -> bool {
        !self.packed.is_empty()
    }

    /// The safetensors files of the tensors.
    pub fn files(&self) -> impl Iterator<Item = &TensorFile> {
        self.files.iter()
    }

    /// The number of bytes of weights that were read since the folder was opened.
    pub fn bytes_read(&self) -> u64 {
        let files: u64 = self.files.iter().map(TensorFile::bytes_read).sum();
        files + self.gguf.as_ref().map_or(0, GgufFile::bytes_read)
    }
}

/// The names of all tensors in a file, of those of bytes too.
fn names(file: &TensorFile) -> impl Iterator<Item = &String> {
    file.tensors().keys().chain(file.bytes().keys())
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
