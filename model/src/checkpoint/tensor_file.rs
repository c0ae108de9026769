//! One safetensors file: memory-mapped reading and streamed writing.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, View};

use super::CheckpointError;

/// A safetensors file that is open for reading. Its header was checked; tensors are read when asked for.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
}

/// A tensor in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorValues {
    /// As in the file.
    pub shape: Vec<usize>,
    /// In row-major order.
    pub values: Vec<f32>,
}

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is not a whole safetensors file.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        // SAFETY: a checkpoint's files are written once, under another name, and never changed after.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io("read", path))?;
        let opened = Self {
            path: path.to_owned(),
            map,
        };
        opened.tensors()?;
        Ok(opened)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes of all its tensors, by name.
    ///
    /// # Errors
    ///
    /// When the header is damaged.
    pub fn shapes(&self) -> Result<BTreeMap<String, Vec<usize>>, CheckpointError> {
        let tensors = self.tensors()?;
        let shapes = tensors
            .iter()
            .map(|(name, view)| (name.to_owned(), view.shape().to_vec()));
        Ok(shapes.collect())
    }

    /// Shape and values of a tensor, as f32; `None` when there is none of this name.
    ///
    /// # Errors
    ///
    /// When its type is none of F32, F16 and BF16, or a value is not finite.
    pub fn read(&self, name: &str) -> Result<Option<TensorValues>, CheckpointError> {
        let tensors = self.tensors()?;
        let Ok(view) = tensors.tensor(name) else {
            return Ok(None);
        };
        let bytes = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => words(bytes).map(f32::from_le_bytes).collect(),
            Dtype::F16 => words(bytes)
                .map(|word| f16::from_le_bytes(word).to_f32())
                .collect(),
            Dtype::BF16 => words(bytes)
                .map(|word| bf16::from_le_bytes(word).to_f32())
                .collect(),
            other => {
                return Err(CheckpointError::DataType {
                    file: self.path.clone(),
                    name: name.to_owned(),
                    dtype: format!("{other:?}"),
                });
            }
        };
        if values.iter().any(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite {
                file: self.path.clone(),
                name: name.to_owned(),
            });
        }
        Ok(Some(TensorValues {
            shape: view.shape().to_vec(),
            values,
        }))
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, CheckpointError> {
        SafeTensors::deserialize(&self.map).map_err(|error| CheckpointError::Damaged {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes
        .chunks_exact(N)
        .map(|word| word.try_into().expect("chunks of N bytes"))
}

/// A tensor that is about to be written. Its values are made when its turn comes, so that no more than
/// one is in memory.
pub struct NamedTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Makes its values.
    pub values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

impl View for NamedTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = (self.values)();
        assert_eq!(
            values.len() * 4,
            self.data_len(),
            "values of {} {:?}",
            self.name,
            self.shape
        );
        Cow::Owned(
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )
    }

    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// Writes a safetensors file in f32 and waits until it is on the disk.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_tensors(path: &Path, tensors: Vec<NamedTensor<'_>>) -> Result<(), CheckpointError> {
    // The library's file is for its owner alone; a checkpoint is as readable as any file made here.
    let permissions = File::create(path)
        .and_then(|file| file.metadata())
        .map_err(CheckpointError::io("write", path))?
        .permissions();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let named = tensors
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor));
    safetensors::serialize_to_file(named, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(source) => CheckpointError::io("write", path)(source),
        other => CheckpointError::Damaged {
            path: path.to_owned(),
            reason: other.to_string(),
        },
    })?;
    fs::set_permissions(path, permissions)
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(CheckpointError::io("write", path))
}
