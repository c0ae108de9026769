//! Reads a safetensors file tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use firebox_console::durable::FileError;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::CheckpointError;
use super::dtype::StoredDtype as _;
use firebox_kernels::dtype::StorageFloat;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::parallel::Slice;

/// Bytes between two runs of values that are read rather than passed over: a page of the system's cache.
const GAP: usize = 4096;

/// Bytes that are read together at most, unless a single run is longer.
const AT_ONCE: usize = 1 << 20;

/// A safetensors file that is open for reading, with a checked header. Values are read on demand, with ordinary reads,
/// so that only the requested values are in memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Tensors of bytes, which are no numbers by themselves.
    bytes: BTreeMap<String, BytesInfo>,
    /// Bytes of values that were read.
    read: AtomicU64,
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
            read: AtomicU64::new(0),
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

    /// A part of a tensor of bytes.
    ///
    /// # Panics
    ///
    /// When there is no such tensor.
    pub(crate) fn read_bytes(&self, name: &str, part: &Slice) -> Result<Vec<u8>, CheckpointError> {
        self.read_runs(self.bytes[name].offset, 1, part)
    }

    /// Reads what a part of a tensor needs, whose values begin at `offset` and have so many bytes each. Runs that are close
    /// to each other are read together, with what is between them, up to [`AT_ONCE`] bytes.
    fn read_runs(
        &self,
        offset: u64,
        width: usize,
        part: &Slice,
    ) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = vec![0; part.elements() * width];
        let mut rest = bytes.as_mut_slice();
        let runs = part.runs().map(|run| run.start * width..run.end * width);
        let mut runs = runs.peekable();
        let mut together: Vec<Range<usize>> = Vec::new();
        let mut between = Vec::new();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut read = |place: usize, bytes: &mut [u8]| {
            self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            file.seek(SeekFrom::Start(offset + place as u64))
                .and_then(|_| file.read_exact(bytes))
                .map_err(FileError::of("read", &self.path))
        };
        while let Some(first) = runs.next() {
            together.clear();
            let mut end = first.end;
            together.push(first.clone());
            while let Some(next) = runs.next_if(|next| {
                let close = next.start >= end && next.start - end <= GAP;
                close && next.end - first.start <= AT_ONCE
            }) {
                end = next.end;
                together.push(next);
            }
            let length: usize = together.iter().map(|run| run.len()).sum();
            let (wanted, after) = rest.split_at_mut(length);
            rest = after;
            if let [run] = together.as_slice() {
                read(run.start, wanted)?;
                continue;
            }
            between.resize(end - first.start, 0);
            read(first.start, &mut between)?;
            let mut wanted = wanted;
            for run in &together {
                let (to, after) = wanted.split_at_mut(run.len());
                to.copy_from_slice(&between[run.start - first.start..run.end - first.start]);
                wanted = after;
            }
        }
        Ok(bytes)
    }

    /// The number of bytes of values that were read since the file was opened.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
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
        let info = &self.tensors[name];
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
