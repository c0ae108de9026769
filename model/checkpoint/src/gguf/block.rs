//! The types of tensors in GGUF files, and their bytes.

use std::fmt;
use std::str::FromStr;

use half::f16;

use crate::dtype::StoredDtype as _;
use firebox_kernels::block_scale;
use firebox_kernels::dtype::WeightDtype;

/// A type of tensors that Firebox reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockType {
    /// Numbers one by one.
    Plain(WeightDtype),
    /// `Q8_0` of ggml: 32 neighbours of a row are integers from −127 to 127 with a common scale in f16.
    Q8,
}

/// Values of a block of [`BlockType::Q8`].
pub const Q8_VALUES: usize = 32;
/// Its bytes: the scale, and one for each value.
const Q8_BYTES: usize = 2 + Q8_VALUES;

/// The types that ggml numbers, but for those that were removed.
const NAMES: [(u32, &str); 35] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

/// The name of a type of ggml.
pub(super) fn name_of(number: u32) -> String {
    let known = NAMES.iter().find(|(known, _)| *known == number);
    known.map_or_else(
        || format!("number {number}"),
        |(_, name)| (*name).to_owned(),
    )
}

impl BlockType {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Plain(WeightDtype::F32),
        Self::Plain(WeightDtype::F16),
        Self::Plain(WeightDtype::Bf16),
        Self::Q8,
    ];

    /// Its number in a file.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Plain(WeightDtype::F32) => 0,
            Self::Plain(WeightDtype::F16) => 1,
            Self::Plain(WeightDtype::Bf16) => 30,
            Self::Q8 => 8,
        }
    }

    /// That of a number in a file; `None` for one that Firebox does not read.
    pub(super) fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The number of `general.file_type` for a file of mostly this type.
    pub(super) fn file_type(self) -> usize {
        match self {
            Self::Plain(WeightDtype::F32) => 0,
            Self::Plain(WeightDtype::F16) => 1,
            Self::Plain(WeightDtype::Bf16) => 32,
            Self::Q8 => 7,
        }
    }

    /// The type that holds every value exactly.
    pub fn dtype(self) -> WeightDtype {
        match self {
            Self::Plain(dtype) => dtype,
            Self::Q8 => WeightDtype::F32,
        }
    }

    /// Values that are stored together.
    pub(super) fn block(self) -> usize {
        match self {
            Self::Plain(_) => 1,
            Self::Q8 => Q8_VALUES,
        }
    }

    /// Bytes of such a block.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.bytes(),
            Self::Q8 => Q8_BYTES,
        }
    }

    /// Bytes of a tensor of this shape; `None` if a row is not made of whole blocks, or there are too many.
    pub(super) fn bytes(self, shape: &[usize]) -> Option<usize> {
        let row = shape.last().copied().unwrap_or(1);
        let values = shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))?;
        match row.is_multiple_of(self.block()) {
            true => (values / self.block()).checked_mul(self.block_bytes()),
            false => None,
        }
    }

    /// The values of whole blocks.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::Plain(dtype) => dtype.decode(bytes),
            Self::Q8 => bytes.chunks_exact(Q8_BYTES).flat_map(values_of).collect(),
        }
    }

    /// The bytes of values that are whole blocks, rounded to nearest; `None` if a value, or a block's scale, is beyond the range
    /// of the type.
    pub(super) fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        match self {
            Self::Plain(dtype) => dtype.encode(values),
            Self::Q8 => {
                let mut bytes = Vec::with_capacity(values.len() / Q8_VALUES * Q8_BYTES);
                for block in values.chunks_exact(Q8_VALUES) {
                    quantize(block, &mut bytes)?;
                }
                Some(bytes)
            }
        }
    }
}

/// The values of one block of `Q8_0`.
fn values_of(block: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let (scale, values) = block.split_at(2);
    let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
    values
        .iter()
        .map(move |&value| f32::from(value as i8) * scale)
}

/// Appends a block of `Q8_0`, with the arithmetic of ggml's `quantize_row_q8_0_ref`: the scale is the largest magnitude
/// through 127, in f32 where values are divided by it and in f16 where it is stored; halves are rounded away from zero. Where it is
/// too small for all digits of f16, ggml's values come back with a larger error, or as 0: there, values are divided by what is stored.
fn quantize(values: &[f32], bytes: &mut Vec<u8>) -> Option<()> {
    let largest = values.iter().fold(0f32, |largest, v| largest.max(v.abs()));
    let mut scale = largest / 127.0;
    let mut stored = f16::from_f32(scale);
    if largest > 0.0 && !stored.is_normal() {
        stored = block_scale(largest);
        scale = stored.to_f32();
    }
    if !stored.is_finite() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let inverse = match scale > 0.0 {
        true => 1.0 / scale,
        false => 0.0,
    };
    bytes.extend_from_slice(&stored.to_le_bytes());
    bytes.extend(
        values
            .iter()
            .map(|value| (value * inverse).round() as i8 as u8),
    );
    Some(())
}

impl fmt::Display for BlockType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(formatter),
            Self::Q8 => formatter.write_str("q8_0"),
        }
    }
}

impl FromStr for BlockType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        known.ok_or_else(|| match text {
            "int8" => "must be f32, bf16, f16 or q8_0, which is what --dtype int8 makes of weights"
                .to_owned(),
            _ => "must be f32, bf16, f16 or q8_0".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_that_of_ggml() {
        let mut values = [0.0; Q8_VALUES];
        (values[0], values[1], values[2], values[31]) = (-2.54, 0.03, 0.01, 1.27);
        let bytes = BlockType::Q8.encode(&values).unwrap();
        // 2.54 / 127 is 0.02; halves are rounded away from zero.
        assert_eq!(bytes[..2], f16::from_f32(0.02).to_le_bytes());
        assert_eq!(bytes[2..5], [-127i8 as u8, 2, 1]);
        assert_eq!(bytes[33], 64);
        assert_eq!(BlockType::Q8.encode(&[0.0; 32]).unwrap(), [0; 34]);
        assert_eq!(BlockType::Q8.encode(&[1e30; 32]), None);
    }

    #[test]
    fn blocks_of_small_values_keep_them() {
        for size in [1e-3f32, 1e-5, 1e-6, 1e-7] {
            let values: Vec<f32> = (0..Q8_VALUES).map(|i| size * (i as f32).sin()).collect();
            let bytes = BlockType::Q8.encode(&values).unwrap();
            let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            for (found, value) in values_of(&bytes).zip(&values) {
                let bound = 0.501 * scale;
                assert!((found - value).abs() <= bound, "{found}, {value}, {scale}");
            }
        }
    }

    #[test]
    fn a_row_has_whole_blocks() {
        assert_eq!(BlockType::Q8.bytes(&[3, 64]), Some(3 * 2 * 34));
        assert_eq!(BlockType::Q8.bytes(&[64, 3]), None);
        assert_eq!(BlockType::Plain(WeightDtype::Bf16).bytes(&[2, 3]), Some(12));
        assert_eq!(BlockType::Q8.bytes(&[usize::MAX, 32]), None);
    }

    proptest! {
        #[test]
        fn values_are_within_half_a_step(values in prop::collection::vec(-100f32..100.0, 64)) {
            let bytes = BlockType::Q8.encode(&values).unwrap();
            let read = BlockType::Q8.decode(&bytes);
            for (read, values) in read.chunks(32).zip(values.chunks(32)) {
                let largest = values.iter().fold(0f32, |largest, v| largest.max(v.abs()));
                for (read, value) in read.iter().zip(values) {
                    // Half a step, and the rounding of the scale.
                    let most = largest / 127.0 * 0.5 + value.abs() / 2048.0 + 1e-5;
                    prop_assert!((read - value).abs() <= most, "{read} {value}");
                }
            }
        }

        #[test]
        fn what_was_read_is_written_again(bytes in prop::collection::vec(any::<i8>(), 32)) {
            let mut bytes: Vec<u8> = bytes.into_iter().map(|v| v.max(-127) as u8).collect();
            bytes[0] = 127;
            let block = [&f16::from_f32(0.5).to_le_bytes()[..], &bytes].concat();
            let values = BlockType::Q8.decode(&block);
            prop_assert_eq!(BlockType::Q8.encode(&values).unwrap(), block);
        }
    }
}
