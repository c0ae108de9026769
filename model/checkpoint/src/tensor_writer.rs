//! Writes safetensors files: a single file, or shards with an index.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;

use firebox_console::durable::{self, FileError};
use safetensors::tensor::{Dtype, SafeTensorError, View};
use serde_json::json;

use super::dtype::StoredDtype as _;
use super::{CheckpointError, INDEX_FILE, MODEL_FILE};
use firebox_kernels::dtype::WeightDtype;

/// A tensor to write.
pub struct NamedTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Values<'a>,
}

/// The values of a tensor.
pub enum Values<'a> {
    /// Floats, computed when the tensor is written, so that only one tensor at a time is in memory; stored in the
    /// requested dtype.
    Float(Box<dyn Fn() -> Vec<f32> + 'a>),
    /// Integers, stored in 64 bits.
    Int(Vec<i64>),
}

impl<'a> NamedTensor<'a> {
    /// A tensor of floats; see [`Values::Float`].
    pub fn float(
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        values: impl Fn() -> Vec<f32> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            values: Values::Float(Box::new(values)),
        }
    }

    /// A tensor of integers.
    pub fn int(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: Vec<i64>) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            values: Values::Int(values),
        }
    }

    fn bytes(&self, dtype: WeightDtype) -> u64 {
        let width = match self.values {
            Values::Float(_) => dtype.bytes(),
            Values::Int(_) => size_of::<i64>(),
        };
        self.shape.iter().product::<usize>() as u64 * width as u64
    }
}

/// A tensor while it is serialized. [`View`] cannot return an error, so it is recorded in `out_of_range`.
struct Outgoing<'a> {
    tensor: &'a NamedTensor<'a>,
    dtype: WeightDtype,
    out_of_range: &'a OnceCell<String>,
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.values {
            Values::Float(_) => self.dtype.safetensors_dtype(),
            Values::Int(_) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = match &self.tensor.values {
            Values::Float(values) => self.dtype.encode(&values()).unwrap_or_else(|| {
                let _ = self.out_of_range.set(self.tensor.name.clone());
                vec![0; self.data_len()]
            }),
            Values::Int(values) => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        };
        assert_eq!(
            bytes.len(),
            self.data_len(),
            "bytes of {} {:?}",
            self.tensor.name,
            self.tensor.shape
        );
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.bytes(self.dtype) as usize
    }
}

/// Writes a safetensors file whole or not at all, and waits until it is on disk.
///
/// # Errors
///
/// When the file cannot be written, or a value is beyond the range of `dtype`; an earlier file at `path` is then kept.
pub fn write_tensors(
    path: &Path,
    tensors: &[NamedTensor<'_>],
    dtype: WeightDtype,
) -> Result<(), CheckpointError> {
    durable::write_with(path, |unfinished| fill(unfinished, path, tensors, dtype))
}

/// Writes a safetensors file to `unfinished`, which will be renamed to `path`.
fn fill(
    unfinished: &Path,
    path: &Path,
    tensors: &[NamedTensor<'_>],
    dtype: WeightDtype,
) -> Result<(), CheckpointError> {
    let out_of_range = OnceCell::new();
    let named = tensors.iter().map(|tensor| {
        let outgoing = Outgoing {
            tensor,
            dtype,
            out_of_range: &out_of_range,
        };
        (tensor.name.as_str(), outgoing)
    });
    serialize(unfinished, path, named)?;
    match out_of_range.into_inner() {
        Some(name) => Err(CheckpointError::OutOfRange {
            name,
            format: dtype.into(),
        }),
        None => Ok(()),
    }
}

/// Writes these tensors to `unfinished`, which will be renamed to `path`; one of them at a time is in memory.
pub(super) fn serialize<'a, V: View>(
    unfinished: &Path,
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, V)>,
) -> Result<(), CheckpointError> {
    // The library creates files that only their owner can read; a checkpoint has the usual permissions.
    let permissions = File::create(unfinished)
        .and_then(|file| file.metadata())
        .map_err(FileError::of("write", path))?
        .permissions();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), unfinished).map_err(
        |error| match error {
            SafeTensorError::IoError(source) => FileError::of("write", path)(source).into(),
            other => CheckpointError::Damaged {
                path: path.to_owned(),
                reason: other.to_string(),
            },
        },
    )?;
    Ok(fs::set_permissions(unfinished, permissions).map_err(FileError::of("write", path))?)
}

/// Writes a model's weights into a folder: as model.safetensors, or, where they exceed `shard_bytes`, as
/// shards of at most that size (a larger tensor has a shard of its own) and their index. `progress` is called with the
/// number of bytes written.
///
/// # Errors
///
/// See [`write_tensors`].
pub fn write_weights(
    folder: &Path,
    tensors: &[NamedTensor<'_>],
    dtype: WeightDtype,
    shard_bytes: Option<u64>,
    mut progress: impl FnMut(u64),
) -> Result<(), CheckpointError> {
    let shards = shards(tensors, dtype, shard_bytes.unwrap_or(u64::MAX));
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut done = 0;
    for (number, shard) in shards.into_iter().enumerate() {
        let file = match count {
            1 => MODEL_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        write_tensors(&folder.join(&file), shard, dtype)?;
        weight_map.extend(
            shard
                .iter()
                .map(|tensor| (tensor.name.clone(), file.clone())),
        );
        done += total(shard, dtype);
        progress(done);
    }
    if count == 1 {
        return Ok(());
    }
    let values = tensors
        .iter()
        .map(|tensor| tensor.shape.iter().product::<usize>());
    let index = json!({
        "metadata": {
            "total_parameters": values.sum::<usize>(),
            "total_size": total(tensors, dtype),
        },
        "weight_map": weight_map,
    });
    let text = serde_json::to_string_pretty(&index)
        .expect("strings and integers can be written as JSON")
        + "\n";
    Ok(durable::write(&folder.join(INDEX_FILE), text)?)
}

fn total(tensors: &[NamedTensor<'_>], dtype: WeightDtype) -> u64 {
    tensors.iter().map(|tensor| tensor.bytes(dtype)).sum()
}

/// Splits tensors into consecutive shards, each as large as the limit allows.
fn shards<'t, 'a>(
    mut tensors: &'t [NamedTensor<'a>],
    dtype: WeightDtype,
    limit: u64,
) -> Vec<&'t [NamedTensor<'a>]> {
    let mut shards = Vec::new();
    while !tensors.is_empty() {
        let mut size = 0u64;
        let fitting = tensors.iter().take_while(|tensor| {
            size = size.saturating_add(tensor.bytes(dtype));
            size <= limit
        });
        let count = fitting.count().max(1);
        let (shard, rest) = tensors.split_at(count);
        shards.push(shard);
        tensors = rest;
    }
    shards
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensor(index: usize, values: usize) -> NamedTensor<'static> {
        NamedTensor::float(format!("tensor.{index}"), [values], move || {
            vec![index as f32; values]
        })
    }

    proptest! {
        #[test]
        fn shards_are_full_and_contain_every_tensor_once(
            sizes in proptest::collection::vec(0usize..50, 1..20),
            limit in 1u64..300,
        ) {
            let tensors: Vec<_> = sizes.iter().enumerate().map(|(i, &n)| tensor(i, n)).collect();
            let shards = shards(&tensors, WeightDtype::F32, limit);
            let names: Vec<&str> = shards.iter().copied().flatten().map(|t| t.name.as_str()).collect();
            let all: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
            prop_assert_eq!(names, all);
            for pair in shards.windows(2) {
                prop_assert!(pair[0].len() == 1 || total(pair[0], WeightDtype::F32) <= limit);
                prop_assert!(total(pair[0], WeightDtype::F32) + pair[1][0].bytes(WeightDtype::F32) > limit);
            }
        }
    }

    #[test]
    fn a_value_out_of_range_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let large = NamedTensor::float("tensor.3", [2], || vec![1.0, 1e6]);
        let error = write_tensors(&path, &[tensor(0, 1), large], WeightDtype::F16).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor tensor.3 contains a value beyond the range of f16, whose largest is 65504"
        );
        assert!(!path.exists());
    }
}
