//! A device's trace in a file: f32 matrices, and the timings of the run.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use firebox_console::durable::FileError;
use firebox_model::parts::LayerPart;
use firebox_model::vision::TowerPart;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View};
use serde::{Deserialize, Serialize};

use crate::InferError;

/// Logits of the whole network, `[tokens, vocab_size]`.
pub(super) const LOGITS: &str = "logits";
/// Logits of the last tokens of the first sequence, decoded one at a time with the cache.
pub(super) const DECODED: &str = "decoded";
/// The mean loss that the device computes from the reference's logits, `[1, 1]`.
pub(super) const LOSS: &str = "alone: cross-entropy";
/// Prefix of the gradients' names; the parameter's name follows.
pub(super) const GRADIENT: &str = "gradient: ";
/// Key of the timings in the file's header.
const TIMINGS: &str = "timings";

/// Name of the output of a part that was given the reference's inputs.
pub(super) fn alone(layer_part: LayerPart) -> String {
    format!("alone: {layer_part}")
}

/// Name of the output of a part of the tower that was given the reference's inputs.
pub(super) fn tower(part: TowerPart) -> String {
    format!("alone: {part}")
}

/// Name of the residual stream before a layer in the whole network, `[tokens, d_model]`; `index` counts the layers that are
/// computed, and after the last one it is that after the final norm.
pub(super) fn hidden(index: usize) -> String {
    format!("hidden {index}")
}

/// Name of a layer's router logits in the whole network, `[tokens, experts]`.
pub(super) fn router(layer: usize) -> String {
    format!("router {layer}")
}

/// Name of the experts that a layer's router selected in the whole network, `[tokens, top_k]`.
pub(super) fn chosen(layer: usize) -> String {
    format!("chosen {layer}")
}

/// A matrix in row-major order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matrix {
    /// `[rows, columns]`
    shape: [usize; 2],
    /// `rows · columns` values.
    pub values: Vec<f32>,
}

impl Matrix {
    /// # Panics
    ///
    /// When the number of values is not a multiple of `columns`.
    pub fn new(columns: usize, values: Vec<f32>) -> Self {
        let rows = values.len() / columns.max(1);
        assert_eq!(rows * columns, values.len(), "rows of {columns} values");
        Self {
            shape: [rows, columns],
            values,
        }
    }

    /// # Shapes
    ///
    /// - `tensor`: `[rows, columns]`
    pub fn of(tensor: Tensor<2>) -> Self {
        let [_, columns] = tensor.dims();
        Self::new(columns, tensor.into_data().iter::<f32>().collect())
    }

    /// The rows.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.shape[1].max(1))
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.shape[1]
    }

    /// The sum of all squares.
    pub fn squares(&self) -> f64 {
        self.values
            .iter()
            .map(|&value| f64::from(value).powi(2))
            .sum()
    }

    /// The norm of the difference from another matrix of this shape.
    pub fn distance(&self, other: &Self) -> f64 {
        let pairs = self.values.iter().zip(&other.values);
        let squares = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
        squares.sum::<f64>().sqrt()
    }
}

/// Speed and memory of a device, and the model's router bias.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Number of threads of the CPU backends.
    pub threads: usize,
    /// Seconds to load the checkpoint.
    pub load_seconds: f64,
    /// Seconds from the start to the logits of the first batch; includes loading and, on a GPU, kernel compilation.
    pub first_result_seconds: f64,
    /// Tokens per second of a warm forward pass over the batch.
    pub prefill_tokens_per_second: f64,
    /// Tokens per second of warm decoding of one sequence; `None` if the sequence is too short.
    pub decode_tokens_per_second: Option<f64>,
    /// Peak memory of the process in bytes, before parts and gradients are computed; `None` if the system does not report
    /// it.
    pub peak_memory: Option<u64>,
    /// Selection bias of each MoE layer; empty for a layer without one.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub router_bias: Vec<Vec<f32>>,
}

/// A trace file that is open for reading, matrix by matrix.
#[derive(Debug)]
pub struct TraceFile {
    path: PathBuf,
    map: Mmap,
    timings: Timings,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    columns: usize,
    /// Byte range in the file.
    bytes: Range<usize>,
}

impl View for &Matrix {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.values.iter().flat_map(|value| value.to_le_bytes());
        bytes.collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values.as_slice())
    }
}

impl TraceFile {
    /// Writes a trace file.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(
        path: &Path,
        timings: &Timings,
        matrices: &[(String, Matrix)],
    ) -> Result<(), InferError> {
        let failed = |error: io::Error| FileError::of("write", path)(error);
        let timings = serde_json::to_string(timings).map_err(|error| failed(error.into()))?;
        let header = HashMap::from([(TIMINGS.to_owned(), timings)]);
        let matrices = matrices.iter().map(|(name, matrix)| (name, matrix));
        let written = safetensors::serialize_to_file(matrices, Some(header), path);
        Ok(written.map_err(|error| failed(io::Error::other(error)))?)
    }

    /// Opens a trace file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not a trace file.
    pub fn open(path: &Path) -> Result<Self, InferError> {
        let failed = |error: io::Error| InferError::Read(FileError::of("read", path)(error));
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the process that wrote the file has ended, and no other process has its path.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| failed(io::Error::other(error)))?;
        let start = size_of::<u64>() + header;
        let timings = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(TIMINGS))
            .map(String::as_str)
            .unwrap_or_default();
        let timings = serde_json::from_str(timings).map_err(|error| failed(error.into()))?;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| {
            let stored = Stored {
                columns: info.shape.last().copied().unwrap_or(1),
                bytes: start + info.data_offsets.0..start + info.data_offsets.1,
            };
            (name, stored)
        });
        Ok(Self {
            path: path.to_owned(),
            timings,
            tensors: tensors.collect(),
            map,
        })
    }

    /// Speed and memory of the device.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// The names with this prefix, in alphabetical order.
    pub fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let names = self.tensors.keys().map(String::as_str);
        names.filter(move |name| name.starts_with(prefix))
    }

    /// The matrix of this name, if it exists.
    pub fn find(&self, name: &str) -> Option<Matrix> {
        let stored = self.tensors.get(name)?;
        let bytes = &self.map[stored.bytes.clone()];
        let words = bytes.as_chunks::<4>().0.iter();
        let values = words.map(|&word| f32::from_le_bytes(word)).collect();
        Some(Matrix::new(stored.columns, values))
    }

    /// The matrix of this name.
    ///
    /// # Errors
    ///
    /// When the file has no such matrix.
    pub fn matrix(&self, name: &str) -> Result<Matrix, InferError> {
        self.find(name).ok_or_else(|| {
            let error = io::Error::other(format!("matrix `{name}` is missing"));
            InferError::Read(FileError::of("read", &self.path)(error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_file_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let timings = Timings {
            threads: 2,
            load_seconds: 0.1,
            first_result_seconds: 0.2,
            prefill_tokens_per_second: 1000.0,
            decode_tokens_per_second: None,
            peak_memory: Some(1 << 20),
            router_bias: vec![vec![0.5, -0.5], vec![]],
        };
        // A broken device may write values that are not finite.
        let odd = Matrix::new(3, vec![1.0, f32::INFINITY, f32::NAN, -0.0, 1e-40, 2.0]);
        let matrices = [
            (LOGITS.to_owned(), odd.clone()),
            (LOSS.to_owned(), Matrix::new(1, vec![4.0])),
        ];
        TraceFile::write(&path, &timings, &matrices).unwrap();
        let read = TraceFile::open(&path).unwrap();
        assert_eq!(read.timings(), &timings);
        let bits =
            |matrix: &Matrix| -> Vec<u32> { matrix.values.iter().map(|x| x.to_bits()).collect() };
        let found = read.matrix(LOGITS).unwrap();
        assert_eq!((bits(&found), found.columns()), (bits(&odd), 3));
        assert_eq!(read.names("alone").collect::<Vec<_>>(), [LOSS]);
        assert_eq!(read.find("other"), None);
        std::fs::write(&path, b"not a trace file").unwrap();
        assert!(TraceFile::open(&path).is_err());
    }
}
