//! The types in which weights are stored.

use std::fmt;
use std::str::FromStr;

use burn::tensor::DType;
use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::number::Number;

/// The type of a stored number. Computation is in f32, which holds each of them exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits: 10 of fraction, up to 65,504.
    F16,
    /// 16 bits: 7 of fraction, the range of f32.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// As `dtype` and `torch_dtype` in config.json say it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The one of a tensor of this type; `None` where it is none of them.
    pub fn of_tensor(dtype: DType) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.tensor_type() == dtype)
    }

    /// As in the header of a safetensors file.
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// `None` for a type that Firebox does not read.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.dtype() == dtype)
    }

    /// As a tensor of this type says it.
    pub fn tensor_type(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Numbers from their little-endian bytes, as the nearest of another type, which are the same where it holds
    /// them.
    pub(super) fn decode<T: Number>(self, bytes: &[u8]) -> Vec<T> {
        let nearest = T::nearest;
        match self {
            Self::F32 => words(bytes)
                .map(|word| nearest(f32::from_le_bytes(word)))
                .collect(),
            Self::F16 => words(bytes)
                .map(|word| nearest(f16::from_le_bytes(word).widen()))
                .collect(),
            Self::Bf16 => words(bytes)
                .map(|word| nearest(bf16::from_le_bytes(word).widen()))
                .collect(),
        }
    }

    /// Little-endian bytes of numbers, each rounded to the nearest that the type has, ties to even; `None`
    /// when one is beyond the type's range.
    pub(super) fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        let fits = |fits: bool, bytes| fits.then_some(bytes);
        match self {
            Self::F32 => Some(
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect(),
            ),
            Self::F16 => {
                let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
                fits(
                    halves.iter().all(|half| half.is_finite()),
                    halves.iter().flat_map(|half| half.to_le_bytes()).collect(),
                )
            }
            Self::Bf16 => {
                let halves: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
                fits(
                    halves.iter().all(|half| half.is_finite()),
                    halves.iter().flat_map(|half| half.to_le_bytes()).collect(),
                )
            }
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes
        .chunks_exact(N)
        .map(|word| word.try_into().expect("chunks of N bytes"))
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL
            .into_iter()
            .find(|precision| precision.to_string() == text);
        known.ok_or_else(|| "must be f32, f16 or bf16".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_stored_number_survives_a_round_trip(bits in any::<u32>()) {
            let bytes = bits.to_le_bytes();
            for precision in Precision::ALL {
                let bytes = &bytes[..precision.bytes()];
                let values = precision.decode::<f32>(bytes);
                if values[0].is_finite() {
                    prop_assert_eq!(precision.encode(&values).unwrap(), bytes);
                }
            }
        }
    }

    #[test]
    fn what_is_out_of_range_is_not_written() {
        assert_eq!(Precision::F16.encode(&[1.0, 65_520.0]), None);
        assert!(Precision::F16.encode(&[65_519.0]).is_some());
        assert_eq!(Precision::Bf16.encode(&[f32::MAX]), None);
    }
}
