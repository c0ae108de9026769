//! What a device computed, in a file: matrices of f32, and facts about how it went.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use firebox_console::durable::FileError;
use firebox_model::parts::Place;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View};
use serde::{Deserialize, Serialize};

use crate::InferError;

/// Scores of the next token from the whole network, `[tokens, vocabulary]`.
pub(super) const LOGITS: &str = "logits";
/// The same of the last tokens of the first sequence, one at a time with the cache.
pub(super) const DECODED: &str = "decoded";
/// The mean loss that the device makes of the reference's scores, `[1, 1]`.
pub(super) const LOSS: &str = "alone: cross-entropy";
/// Before the name of a parameter.
pub(super) const GRADIENT: &str = "gradient: ";
/// In the file's header.
const FACTS: &str = "facts";

/// What a place computes from what the reference computed before it.
pub(super) fn alone(place: Place) -> String {
    format!("alone: {place}")
}

/// The residual stream before a layer in the whole network, `[tokens, d_model]`; after the last one, behind the
/// last norm.
pub(super) fn hidden(number: usize) -> String {
    format!("hidden {number}")
}

/// A layer's router scores in the whole network, `[tokens, experts]`.
pub(super) fn router(layer: usize) -> String {
    format!("router {layer}")
}

/// The experts that a layer's router chose in the whole network, `[tokens, per_token]`.
pub(super) fn chosen(layer: usize) -> String {
    format!("chosen {layer}")
}

/// Rows of numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Rows, and numbers in each.
    shape: [usize; 2],
    /// Row by row.
    pub values: Vec<f32>,
}

impl Matrix {
    /// # Panics
    ///
    /// When the values are no whole number of rows.
    pub fn new(columns: usize, values: Vec<f32>) -> Self {
        let rows = values.len() / columns.max(1);
        assert_eq!(rows * columns, values.len(), "rows of {columns} numbers");
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

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.shape[1]
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Threads of the CPU backends.
    pub threads: usize,
    /// Seconds to load the checkpoint.
    pub load_seconds: f64,
    /// Seconds from the start to the scores of the first batch: loading, and on a GPU the compilation of kernels.
    pub first_result_seconds: f64,
    /// Tokens that a warm forward pass over the batch reads in a second.
    pub prefill_tokens_per_second: f64,
    /// Tokens that one sequence grows by in a second, warm; none where a sequence is too short to grow.
    pub decode_tokens_per_second: Option<f64>,
    /// Of the process in bytes, without what the comparison itself takes; none where the system does not tell.
    pub peak_memory: Option<u64>,
    /// By layer with experts, what is added to the scores for the choice alone; empty ones where nothing is.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub router_bias: Vec<Vec<f32>>,
}

/// A file of them, read matrix by matrix.
#[derive(Debug)]
pub struct Findings {
    path: PathBuf,
    map: Mmap,
    facts: Facts,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    columns: usize,
    /// Where in the file.
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

impl Findings {
    /// Writes a file of them.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(
        path: &Path,
        facts: &Facts,
        matrices: &[(String, Matrix)],
    ) -> Result<(), InferError> {
        let failed = |error: io::Error| FileError::of("write", path)(error);
        let facts = serde_json::to_string(facts).map_err(|error| failed(error.into()))?;
        let header = HashMap::from([(FACTS.to_owned(), facts)]);
        let matrices = matrices.iter().map(|(name, matrix)| (name, matrix));
        let written = safetensors::serialize_to_file(matrices, Some(header), path);
        Ok(written.map_err(|error| failed(io::Error::other(error)))?)
    }

    /// Opens a file of them.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is none.
    pub fn open(path: &Path) -> Result<Self, InferError> {
        let failed = |error: io::Error| InferError::Read(FileError::of("read", path)(error));
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the process that wrote the file has ended, and nobody else knows of it.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| failed(io::Error::other(error)))?;
        let start = size_of::<u64>() + header;
        let facts = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(FACTS))
            .map(String::as_str)
            .unwrap_or_default();
        let facts = serde_json::from_str(facts).map_err(|error| failed(error.into()))?;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| {
            let stored = Stored {
                columns: info.shape.last().copied().unwrap_or(1),
                bytes: start + info.data_offsets.0..start + info.data_offsets.1,
            };
            (name, stored)
        });
        Ok(Self {
            path: path.to_owned(),
            facts,
            tensors: tensors.collect(),
            map,
        })
    }

    /// How it went.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The names that begin so, in alphabetical order.
    pub fn names<'a>(&'a self, beginning: &'a str) -> impl Iterator<Item = &'a str> {
        let names = self.tensors.keys().map(String::as_str);
        names.filter(move |name| name.starts_with(beginning))
    }

    /// A matrix, if it is there.
    pub fn find(&self, name: &str) -> Option<Matrix> {
        let stored = self.tensors.get(name)?;
        let bytes = &self.map[stored.bytes.clone()];
        let words = bytes.as_chunks::<4>().0.iter();
        let values = words.map(|&word| f32::from_le_bytes(word)).collect();
        Some(Matrix::new(stored.columns, values))
    }

    /// A matrix that has to be there.
    ///
    /// # Errors
    ///
    /// When there is none of this name.
    pub fn matrix(&self, name: &str) -> Result<Matrix, InferError> {
        self.find(name).ok_or_else(|| {
            let error = io::Error::other(format!("it has no matrix `{name}`"));
            InferError::Read(FileError::of("read", &self.path)(error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("findings");
        let facts = Facts {
            threads: 2,
            load_seconds: 0.1,
            first_result_seconds: 0.2,
            prefill_tokens_per_second: 1000.0,
            decode_tokens_per_second: None,
            peak_memory: Some(1 << 20),
            router_bias: vec![vec![0.5, -0.5], vec![]],
        };
        // A broken device writes what no checkpoint may hold.
        let odd = Matrix::new(3, vec![1.0, f32::INFINITY, f32::NAN, -0.0, 1e-40, 2.0]);
        let matrices = [
            (LOGITS.to_owned(), odd.clone()),
            (LOSS.to_owned(), Matrix::new(1, vec![4.0])),
        ];
        Findings::write(&path, &facts, &matrices).unwrap();
        let read = Findings::open(&path).unwrap();
        assert_eq!(read.facts(), &facts);
        let bits =
            |matrix: &Matrix| -> Vec<u32> { matrix.values.iter().map(|x| x.to_bits()).collect() };
        let found = read.matrix(LOGITS).unwrap();
        assert_eq!((bits(&found), found.columns()), (bits(&odd), 3));
        assert_eq!(read.names("alone").collect::<Vec<_>>(), [LOSS]);
        assert_eq!(read.find("other"), None);
        std::fs::write(&path, b"not a file of findings").unwrap();
        assert!(Findings::open(&path).is_err());
    }
}
