//! Reads a safetensors file tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use firebox_console::durable::FileError;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::CheckpointError;
use super::dtype::StoredDtype as _;
use firebox_kernels::dtype::StorageFloat;
use firebox_kernels::dtype::WeightDtype;

/// A safetensors file that is open for reading, with a checked header. Values are read on demand, with ordinary reads,
/// so that only the requested values are in memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Tensors of bytes, which are no numbers by themselves.
    bytes: BTreeMap<String, BytesInfo>,
}

/// The header's entry of a tensor of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BytesInfo {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Byte offset in the file.
    offset: u64,
}

/// The header's entry of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its values.
    pub dtype: WeightDtype,
    /// Byte offset of its values in the file.
    offset: u64,
}

impl TensorInfo {
    /// Of a tensor that is made of others.
    pub(crate) fn derived(shape: Vec<usize>, dtype: WeightDtype) -> Self {
        let offset = 0;
        Self {
            shape,
            dtype,
            offset,
        }
    }

    /// Number of its values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl TensorFile {
    /// Opens a file and checks its header: every tensor has a supported type, its byte count matches its shape, and the
    /// tensors fill the file without gaps or overlaps.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is not a valid safetensors file, or contains a tensor of an unsupported type.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let opened = Self::open_with_bytes(path)?;
        match opened.bytes.keys().next() {
            Some(name) => Err(opened.not_numbers(name)),
            None => Ok(opened),
        }
    }

    /// [`open`](Self::open) for a file that may have tensors of bytes besides.
    pub(crate) fn open_with_bytes(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(FileError::of("open", path))?;
        // SAFETY: only the header is read through the map, before anything else; a checkpoint's files are
        // written once, under another name, and never changed after.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(FileError::of("read", path))?;
        let damaged = |reason: String| CheckpointError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
        let start = size_of::<u64>() + header;
        let (bytes, numbers): (Vec<_>, Vec<_>) = metadata
            .tensors()
            .into_iter()
            .partition(|(_, info)| info.dtype == Dtype::U8);
        let bytes = bytes.into_iter().map(|(name, info)| {
            let info = BytesInfo {
                shape: info.shape.clone(),
                offset: (start + info.data_offsets.0) as u64,
            };
            (name, info)
        });
        let tensors = numbers.into_iter().map(|(name, info)| {
            let dtype = WeightDtype::of_safetensors(info.dtype).ok_or_else(|| {
                CheckpointError::DataType {
                    file: path.to_owned(),
                    name: name.clone(),
                    dtype: format!("{:?}", info.dtype),
                }
            })?;
            let info = TensorInfo {
                shape: info.shape.clone(),
                dtype,
                offset: (start + info.data_offsets.0) as u64,
            };
            Ok((name, info))
        });
        Ok(Self {
            path: path.to_owned(),
            tensors: tensors.collect::<Result<_, CheckpointError>>()?,
            bytes: bytes.collect(),
            file: Mutex::new(file),
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The tensors of bytes, by name.
    pub(crate) fn bytes(&self) -> &BTreeMap<String, BytesInfo> {
        &self.bytes
    }

    /// A tensor of bytes where there have to be numbers.
    pub(crate) fn not_numbers(&self, name: &str) -> CheckpointError {
        CheckpointError::DataType {
            file: self.path.clone(),
            name: name.to_owned(),
            dtype: format!("{:?}", Dtype::U8),
        }
    }

    /// A range of a tensor of bytes.
    ///
    /// # Panics
    ///
    /// When there is no such tensor.
    pub(crate) fn read_bytes(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Vec<u8>, CheckpointError> {
        self.read_at(self.bytes[name].offset + range.start as u64, range.len())
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = vec![0; length];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(FileError::of("read", &self.path))?;
        Ok(bytes)
    }

    /// Values of a tensor, in row-major order.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a value is not finite.
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.read_as(name, 0..self.tensors[name].elements())
    }

    /// A range of a tensor's values, rounded to the nearest values of a type.
    ///
    /// # Errors
    ///
    /// See [`read`](Self::read); also when a value is beyond the range of the type.
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name, or `range` exceeds its values.
    pub fn read_as<T: StorageFloat>(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Vec<T>, CheckpointError> {
        let info = &self.tensors[name];
        assert!(range.end <= info.elements(), "{name} has too few values");
        let width = info.dtype.bytes();
        let offset = info.offset + (range.start * width) as u64;
        let bytes = self.read_at(offset, range.len() * width)?;
        let values = info.dtype.decode(&bytes);
        if values.iter().all(|value: &T| value.finite()) {
            return Ok(values);
        }
        let stored: Vec<f32> = info.dtype.decode(&bytes);
        let name = name.to_owned();
        Err(if stored.iter().all(|value| value.is_finite()) {
            CheckpointError::OutOfRange {
                name,
                dtype: T::DTYPE,
            }
        } else {
            CheckpointError::NotFinite {
                file: self.path.clone(),
                name,
            }
        })
    }
}
