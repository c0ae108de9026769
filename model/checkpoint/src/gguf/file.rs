//! A GGUF file that is open for reading.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::ops::Range;
use std::path::Path;

use firebox_console::durable::FileError;

use super::architecture::Architecture;
use super::block::BlockType;
use super::header::{Header, MAGIC};
use super::keys;
use super::latent::{self, KeyValue};
use super::names::{dimensions, is_matrix, is_rotated};
use super::value::Value;
use crate::dtype::StoredDtype as _;
use crate::tensor_file::TensorInfo;
use crate::value_file::ValueFile;
use crate::{CheckpointError, finite};
use firebox_kernels::dtype::{StorageFloat, WeightDtype};
use firebox_model::parallel::Slice;

/// A file of a model that Firebox computes, with a checked head. Values are read on demand. Tensors have llama.cpp's names, and
/// the order of rows that Hugging Face's files have.
#[derive(Debug)]
pub(crate) struct GgufFile {
    values: ValueFile,
    architecture: Architecture,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, (TensorInfo, BlockType)>,
    /// Keys and values of latent attention, by the name that they have together.
    key_values: BTreeMap<String, KeyValue>,
    /// Width of a head whose neighbours turn together; `None` where rows have the usual order.
    paired: Option<usize>,
}

/// Whether a path leads to a file that is one by its name or its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut bytes = [0; 4];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
        read.is_ok() && bytes == MAGIC
    };
    path.is_file() && (path.extension().is_some_and(|name| name == "gguf") || begins())
}

impl GgufFile {
    /// Opens a file and checks its head: every length fits into the file, no tensor reaches into another, and its architecture
    /// and types are some that Firebox reads.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, or has another architecture or a tensor of another type.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(FileError::of("open", path))?;
        let length = file.metadata().map_err(FileError::of("read", path))?.len();
        let Header { metadata, tensors } = Header::read(BufReader::new(&file), length, path)?;
        let architecture = architecture(&metadata, path)?;
        let tensors = tensors.into_iter().map(|(name, entry)| {
            let mut shape = entry.shape;
            let missing = dimensions(&name).saturating_sub(shape.len());
            shape.splice(0..0, std::iter::repeat_n(1, missing));
            let info = TensorInfo::at(shape, entry.kind.dtype(), entry.offset);
            (name, (info, entry.kind))
        });
        let tensors: BTreeMap<String, (TensorInfo, BlockType)> = tensors.collect();
        let paired = match architecture.paired {
            true => Some(head_width(&metadata, &architecture, path)?),
            false => None,
        };
        if let Some(width) = paired {
            for (name, (info, _)) in tensors.iter().filter(|(name, _)| is_rotated(name)) {
                if !info.shape[0].is_multiple_of(width) {
                    return Err(CheckpointError::Damaged {
                        path: path.to_owned(),
                        reason: format!(
                            "the tensor {name} {:?} cannot be divided into heads of {width} rows",
                            info.shape
                        ),
                    });
                }
            }
        }
        let key_values = match architecture.latent {
            true => latent::pairs(&tensors, path)?,
            false => BTreeMap::new(),
        };
        Ok(Self {
            values: ValueFile::new(path, file),
            architecture,
            metadata,
            tensors,
            key_values,
            paired,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.values.path()
    }

    /// The architecture that it names.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The same, without the file.
    pub fn into_metadata(self) -> BTreeMap<String, Value> {
        self.metadata
    }

    /// All tensors, by name; keys and values of latent attention together.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        let is_whole = |name: &str| self.key_values.is_empty() || !latent::is_part(name);
        let tensors = self.tensors.iter();
        let tensors = tensors.map(|(name, (info, _))| (name.as_str(), info));
        let pairs = self.key_values.iter();
        let pairs = pairs.map(|(name, pair)| (name.as_str(), &pair.info));
        tensors.filter(move |(name, _)| is_whole(name)).chain(pairs)
    }

    /// Shape and type of a tensor; `None` if there is no tensor of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let together = self.key_values.get(name).map(|pair| &pair.info);
        together.or_else(|| self.tensors.get(name).map(|(info, _)| info))
    }

    /// The types of matrices, each once. Those in f16 do not count whose rows are not made of the whole blocks that others are
    /// in: they would be in blocks, if they could.
    pub fn matrix_types(&self) -> Vec<BlockType> {
        let tensors = self.tensors.iter();
        let matrices = tensors.filter(|(name, (info, _))| is_matrix(name, &info.shape));
        let in_blocks = matrices
            .clone()
            .any(|(_, (_, kind))| *kind == BlockType::Q8);
        let mut types = Vec::new();
        for (_, (info, kind)) in matrices {
            let is_unfit = in_blocks
                && *kind == BlockType::Plain(WeightDtype::F16)
                && BlockType::Q8.bytes(&info.shape).is_none();
            if !is_unfit && !types.contains(kind) {
                types.push(*kind);
            }
        }
        types
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
        let shape = self.info(name).map(|info| info.shape.clone());
        self.read_part(name, &Slice::whole(shape.unwrap_or_default()))
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
        if let Some(pair) = self.key_values.get(name) {
            return pair.read_part(part, |name, part| self.read_part(name, part));
        }
        let (info, kind) = &self.tensors[name];
        assert_eq!(info.shape, part.of(), "the shape of {name}");
        let stored_order;
        let part = match self.paired.filter(|_| is_rotated(name)) {
            None => part,
            Some(width) => {
                stored_order = in_pairs(part, width);
                &stored_order
            }
        };
        if let BlockType::Plain(dtype) = kind {
            let width = dtype.bytes();
            let runs = part.runs().map(|run| run.start * width..run.end * width);
            let total = part.elements() * width;
            let bytes = self.values.read_runs(info.offset(), runs, total)?;
            let values: Vec<T> = dtype.decode(&bytes);
            return finite(values, || dtype.decode(&bytes), self.path(), name);
        }
        let values = self.read_blocks(*kind, info.offset(), part)?;
        let rounded = values.iter().map(|&value| T::nearest(value)).collect();
        finite(rounded, || values, self.path(), name)
    }

    /// The values of a part of a tensor that is stored in blocks of several, which are read whole.
    fn read_blocks(
        &self,
        kind: BlockType,
        offset: u64,
        part: &Slice,
    ) -> Result<Vec<f32>, CheckpointError> {
        let (length, width) = (kind.block(), kind.block_bytes());
        let blocks = |run: &Range<usize>| run.start / length..run.end.div_ceil(length);
        let total: usize = part.runs().map(|run| blocks(&run).len()).sum();
        let places = part.runs().map(|run| {
            let blocks = blocks(&run);
            blocks.start * width..blocks.end * width
        });
        let bytes = self.values.read_runs(offset, places, total * width)?;
        let mut values = Vec::with_capacity(part.elements());
        let mut at = 0;
        for run in part.runs() {
            let blocks = blocks(&run);
            let decoded = kind.decode(&bytes[at * width..(at + blocks.len()) * width]);
            let first = run.start - blocks.start * length;
            values.extend_from_slice(&decoded[first..first + run.len()]);
            at += blocks.len();
        }
        Ok(values)
    }
}

/// The architecture that metadata names, of a model in a single file.
fn architecture(
    metadata: &BTreeMap<String, Value>,
    path: &Path,
) -> Result<Architecture, CheckpointError> {
    let unread = |reason| CheckpointError::GgufUnread {
        path: path.to_owned(),
        reason,
    };
    if let Some(splits) = metadata.get(keys::SPLITS).and_then(Value::as_u64)
        && splits > 1
    {
        return Err(unread(format!("it is one of {splits} parts of a model")));
    }
    let known = || Architecture::ALL.map(|known| known.name).join(", ");
    match metadata.get(keys::ARCHITECTURE) {
        None => Err(unread(format!("{} is missing", keys::ARCHITECTURE))),
        Some(name) => {
            let found = name.as_text().and_then(Architecture::named);
            found.ok_or_else(|| {
                unread(format!(
                    "{} = {name}; Firebox reads {}",
                    keys::ARCHITECTURE,
                    known()
                ))
            })
        }
    }
}

/// The width of a head.
fn head_width(
    metadata: &BTreeMap<String, Value>,
    architecture: &Architecture,
    path: &Path,
) -> Result<usize, CheckpointError> {
    let size = |key: &str| {
        let value = metadata.get(&format!("{}.{key}", architecture.name))?;
        usize::try_from(value.as_u64()?).ok()
    };
    let of_heads = || Some(size(keys::WIDTH)? / size(keys::HEADS)?.max(1));
    let width = size(keys::KEY_WIDTH).or_else(of_heads);
    let even = |&width: &usize| width > 0 && width.is_multiple_of(2);
    width.filter(even).ok_or_else(|| CheckpointError::Damaged {
        path: path.to_owned(),
        reason: format!(
            "the width of a head does not follow from {}, {} and {}, or is not even",
            keys::KEY_WIDTH,
            keys::WIDTH,
            keys::HEADS
        ),
    })
}

/// Where a row of queries or keys lies that belong to heads of this width, in which value i turns with value i + width / 2 and
/// lies beside it.
fn paired_row(row: usize, width: usize) -> usize {
    let (head, place) = (row / width, row % width);
    let (half, pair) = (place / (width / 2), place % (width / 2));
    head * width + 2 * pair + half
}

/// The same rows of a tensor in the order in which they are stored.
fn in_pairs(part: &Slice, width: usize) -> Slice {
    let mut ranges = part.ranges().to_vec();
    let rows = ranges[0].iter().cloned().flatten();
    ranges[0] = rows
        .map(|row| paired_row(row, width))
        .map(|row| row..row + 1)
        .collect();
    Slice::new(part.of(), ranges)
}

/// Brings the rows of a tensor into the order in which they are stored; `values` has `rows` of them.
pub(super) fn pair(values: &[f32], rows: usize, width: usize) -> Vec<f32> {
    let length = values.len() / rows;
    let mut stored = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(length).enumerate() {
        let place = paired_row(row, width) * length;
        stored[place..place + length].copy_from_slice(values);
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_each_head_lie_in_pairs() {
        let rows: Vec<usize> = (0..12).map(|row| paired_row(row, 6)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
        let stored = pair(&values, 12, 6);
        assert_eq!(stored[..6], [0.0, 1.0, 6.0, 7.0, 2.0, 3.0]);
        // Reading puts them back.
        let part = in_pairs(&Slice::whole([12, 2]), 6);
        assert_eq!(part.take(&stored), values);
    }
}
