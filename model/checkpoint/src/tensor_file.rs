//! Reads a safetensors file tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use firebox_console::durable::FileError;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::CheckpointError;
use super::dtype::StoredDtype as _;
use super::value_file::ValueFile;
use firebox_kernels::dtype::StorageFloat;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::parallel::Slice;

/// A safetensors file that is open for reading, with a checked header. Values are read on demand, with ordinary reads,
/// so that only the requested values are in memory.
#[derive(Debug)]
pub struct TensorFile {
    values: ValueFile,
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
        Self::at(shape, dtype, 0)
    }

    /// Of a tensor at this place of a file.
    pub(crate) fn at(shape: Vec<usize>, dtype: WeightDtype, offset: u64) -> Self {
        Self {
            shape,
            dtype,
            offset,
        }
    }

    /// Byte offset of its values in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
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
            values: ValueFile::new(path, file),
            tensors: tensors.collect::<Result<_, CheckpointError>>()?,
            bytes: bytes.collect(),
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.values.path()
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
            file: self.path().to_owned(),
            name: name.to_owned(),
            dtype: format!("{:?}", Dtype::U8),
        }
    }

    /// A part of a tensor of bytes.
    ///
    /// # Panics
    ///
    /// When there is no such tensor.
    pub(crate) fn read_bytes(&self, name: &str, part: &Slice) -> Result<Vec<u8>, CheckpointError> {
        self.read_runs(self.bytes[name].offset, 1, part)
    }

    /// Reads what a part of a tensor needs, whose values begin at `offset` and have so many bytes each.
    fn read_runs(
        &self,
        offset: u64,
        width: usize,
        part: &Slice,
    ) -> Result<Vec<u8>, CheckpointError> {
        let runs = part.runs().map(|run| run.start * width..run.end * width);
        self.values.read_runs(offset, runs, part.elements() * width)
    }

    /// The number of bytes of values that were read since the file was opened.
    pub fn bytes_read(&self) -> u64 {
        self.values.bytes_read()
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
        self.read_part(name, &Slice::whole(self.tensors[name].shape.clone()))
    }

    /// A run of a tensor's values, in row-major order.
    ///
    /// # Errors
    ///
    /// See [`read`](Self::read).
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name, or it has fewer values.
    pub fn read_values(&self, name: &str, run: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        let info = &self.tensors[name];
        let (dtype, width) = (info.dtype, info.dtype.bytes());
        assert!(run.end <= info.elements(), "{run:?} of {name}");
        let bytes = run.start * width..run.end * width;
        let length = bytes.len();
        let bytes = self
            .values
            .read_runs(info.offset, std::iter::once(bytes), length)?;
        finite(
            dtype.decode(&bytes),
            || dtype.decode(&bytes),
            self.path(),
            name,
        )
    }

    /// The bytes of a part of a tensor, as they are stored.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    ///
    /// # Panics
    ///
    /// When there is no tensor of this name, or it has another shape.
    pub fn read_stored(&self, name: &str, part: &Slice) -> Result<Vec<u8>, CheckpointError> {
        let info = &self.tensors[name];
        assert_eq!(info.shape, part.of(), "the shape of {name}");
        self.read_runs(info.offset, info.dtype.bytes(), part)
    }

    /// A part of a tensor, rounded to the nearest values of a type.
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
        let bytes = self.read_stored(name, part)?;
        let dtype = self.tensors[name].dtype;
        let values = dtype.decode(&bytes);
        finite(values, || dtype.decode(&bytes), self.path(), name)
    }
}

/// These values, if all of them are finite; `stored` makes those that they were rounded from.
pub(crate) fn finite<T: StorageFloat>(
    values: Vec<T>,
    stored: impl FnOnce() -> Vec<f32>,
    file: &Path,
    name: &str,
) -> Result<Vec<T>, CheckpointError> {
    if values.iter().all(|value: &T| value.finite()) {
        return Ok(values);
    }
    let name = name.to_owned();
    Err(match stored().iter().all(|value| value.is_finite()) {
        true => CheckpointError::OutOfRange {
            name,
            format: T::DTYPE.into(),
        },
        false => CheckpointError::NotFinite {
            file: file.to_owned(),
            name,
        },
    })
}
