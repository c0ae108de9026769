//! Matrices in MXFP4 (OCP Microscaling Formats, version 1.0), as gpt-oss is published: two tensors of bytes in place of one.
//!
//! `NAME_blocks`, `[experts, d_out, d_in / 32, 16]`, has two values of four bits in each byte, the first one in its lower
//! half; `NAME_scales`, `[experts, d_out, d_in / 32]`, has the exponent of a power of two for each 32 values. Together they
//! stand for `NAME`, `[experts, d_in, d_out]`, all of whose values bf16 can represent.

use std::ops::Range;
use std::path::PathBuf;

use super::tensor_file::TensorInfo;
use super::{CheckpointError, TensorFile};
use firebox_kernels::dtype::{StorageFloat, WeightDtype};
use firebox_model::parallel::Slice;

/// Values that share a scale.
const GROUP: usize = 32;

/// Their bytes.
const GROUP_BYTES: usize = GROUP / 2;

/// Rows that are unpacked at a time, so that what is written lies together.
const ROWS: usize = 16;

/// What four bits stand for, but for their sign, which is the highest of them.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The ending of the name of the values.
pub(super) const BLOCKS: &str = "_blocks";

/// The ending of the name of their scales.
pub(super) const SCALES: &str = "_scales";

/// A tensor in MXFP4.
#[derive(Debug)]
pub(super) struct Packed {
    /// What it stands for.
    pub info: TensorInfo,
    /// Indices of the files of blocks and scales.
    pub files: [usize; 2],
}

impl Packed {
    /// The tensor with these two; `None` if their shapes do not fit each other.
    pub fn new(blocks: &[usize], scales: &[usize], files: [usize; 2]) -> Option<Self> {
        let &[experts, d_out, groups, GROUP_BYTES] = blocks else {
            return None;
        };
        let shape = vec![experts, groups.checked_mul(GROUP)?, d_out];
        (*scales == [experts, d_out, groups]).then(|| Self {
            info: TensorInfo::derived(shape, WeightDtype::Bf16),
            files,
        })
    }

    /// A part of what it stands for. Groups of values are read whole.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, a value is not finite, or beyond the range of the type.
    ///
    /// # Panics
    ///
    /// When the part is one of another shape.
    pub fn read_part<T: StorageFloat>(
        &self,
        name: &str,
        files: &[TensorFile],
        part: &Slice,
    ) -> Result<Vec<T>, CheckpointError> {
        assert_eq!(self.info.shape, part.of(), "the shape of {name}");
        let [experts, inputs, outputs] = part.ranges() else {
            unreachable!("a shape of three")
        };
        let mut values = Vec::with_capacity(part.elements());
        for expert in experts.iter().cloned().flatten() {
            values.extend(self.read_expert::<T>(name, files, expert, [inputs, outputs])?);
        }
        match values.iter().all(|value| value.finite()) {
            true => Ok(values),
            false => Err(CheckpointError::OutOfRange {
                name: name.to_owned(),
                format: T::DTYPE.into(),
            }),
        }
    }

    /// Ranges of inputs and outputs of the matrix of one expert, `[d_in, d_out]`.
    fn read_expert<T: StorageFloat>(
        &self,
        name: &str,
        files: &[TensorFile],
        expert: usize,
        [inputs, outputs]: [&Vec<Range<usize>>; 2],
    ) -> Result<Vec<T>, CheckpointError> {
        let (experts, d_in, d_out) = (self.info.shape[0], self.info.shape[1], self.info.shape[2]);
        // The groups that the inputs lie in.
        let first = inputs.iter().map(|range| range.start).min().unwrap_or(0) / GROUP;
        let last = inputs.iter().map(|range| range.end).max().unwrap_or(0);
        let groups = first..last.div_ceil(GROUP);
        let rows: Vec<Range<usize>> = outputs
            .iter()
            .map(|range| expert * d_out + range.start..expert * d_out + range.end)
            .collect();
        let count = outputs.iter().map(Range::len).sum();
        let part = |size: usize| {
            let of = [experts * d_out, d_in / GROUP * size];
            let columns = groups.start * size..groups.end * size;
            Slice::new(of, vec![rows.clone(), vec![columns]])
        };
        let [of_blocks, of_scales] = self.files.map(|file| &files[file]);
        let blocks = of_blocks.read_bytes(&format!("{name}{BLOCKS}"), &part(GROUP_BYTES))?;
        let scales = of_scales.read_bytes(&format!("{name}{SCALES}"), &part(1))?;
        // The largest exponent stands for NaN.
        if scales.contains(&u8::MAX) {
            let file: PathBuf = of_scales.path().to_owned();
            let name = format!("{name}{SCALES}");
            return Err(CheckpointError::NotFinite { file, name });
        }
        let unpacked = groups.len() * GROUP;
        let mut values = vec![T::default(); unpacked * count];
        unpack(&blocks, &scales, count, &mut values);
        let before = groups.start * GROUP;
        let inside = inputs
            .iter()
            .map(|range| range.start - before..range.end - before);
        let inside = Slice::new([unpacked, count], vec![inside.collect(), vec![0..count]]);
        Ok(match inside.is_whole() {
            true => values,
            false => inside.take(&values),
        })
    }
}

/// Writes the transpose of packed rows, `[d_in, d_out]`.
fn unpack<T: StorageFloat>(blocks: &[u8], scales: &[u8], d_out: usize, values: &mut [T]) {
    let groups = scales.len() / d_out.max(1);
    for first in (0..d_out).step_by(ROWS) {
        for group in 0..groups {
            for row in first..(first + ROWS).min(d_out) {
                let place = row * groups + group;
                let scale = 2f64.powi(i32::from(scales[place]) - 127) as f32;
                let bytes = &blocks[place * GROUP_BYTES..][..GROUP_BYTES];
                let halves = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
                for (within, bits) in halves.enumerate() {
                    let magnitude = MAGNITUDES[usize::from(bits & 7)] * scale;
                    let value = if bits & 8 == 0 { magnitude } else { -magnitude };
                    values[(group * GROUP + within) * d_out + row] = T::nearest(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_by_hand() {
        // Two rows: in the first one 0.5, −6 and zeros, times 4; in the second one the smallest number at its end.
        let mut blocks = vec![0u8; 2 * GROUP_BYTES];
        blocks[0] = 0x1 | 0xf << 4;
        blocks[31] = 0x9 << 4;
        let mut values = vec![0.0f32; 64];
        unpack(&blocks, &[129, 0], 2, &mut values);
        assert_eq!(
            (values[0], values[2], values[63]),
            (2.0, -24.0, -(2f64.powi(-128) as f32))
        );
        assert_eq!(values.iter().filter(|value| **value != 0.0).count(), 3);
    }

    #[test]
    fn shapes_fit_each_other() {
        let of = |blocks: &[usize], scales: &[usize]| Packed::new(blocks, scales, [0, 0]);
        let packed = of(&[3, 10, 2, 16], &[3, 10, 2]).unwrap();
        assert_eq!(packed.info.shape, [3, 64, 10]);
        assert!(of(&[3, 10, 2, 8], &[3, 10, 2]).is_none());
        assert!(of(&[3, 10, 2, 16], &[3, 10]).is_none());
    }
}
