//! Encodes and decodes stored weights, and maps dtypes to their names in `safetensors` and `torch`.

use firebox_kernels::dtype::{StorageFloat, WeightDtype};
use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// The representation of a dtype in a checkpoint's files.
pub(crate) trait StoredDtype: Sized {
    /// The name of the type in `dtype` and `torch_dtype` of config.json.
    fn torch_name(self) -> &'static str;

    /// The name of the type in the header of a safetensors file.
    fn safetensors_dtype(self) -> Dtype;

    /// `None` for a type that Firebox does not support.
    fn of_safetensors(dtype: Dtype) -> Option<Self>;

    /// Decodes little-endian bytes, and rounds each value to the nearest value of another type.
    fn decode<T: StorageFloat>(self, bytes: &[u8]) -> Vec<T>;

    /// Encodes values as little-endian bytes, rounded to nearest, ties to even; `None` if a value is beyond the type's
    /// range.
    fn encode(self, values: &[f32]) -> Option<Vec<u8>>;
}

impl StoredDtype for WeightDtype {
    fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    fn safetensors_dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    fn of_safetensors(dtype: Dtype) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|weights| weights.safetensors_dtype() == dtype)
    }

    fn decode<T: StorageFloat>(self, bytes: &[u8]) -> Vec<T> {
        let nearest = T::nearest;
        match self {
            Self::F32 => words(bytes)
                .map(|word| nearest(f32::from_le_bytes(word)))
                .collect(),
            Self::F16 => words(bytes)
                .map(|word| nearest(f16::from_le_bytes(word).to_f32()))
                .collect(),
            Self::Bf16 => words(bytes)
                .map(|word| nearest(bf16::from_le_bytes(word).to_f32()))
                .collect(),
        }
    }

    fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_stored_value_survives_a_round_trip(bits in any::<u32>()) {
            let bytes = bits.to_le_bytes();
            for dtype in WeightDtype::ALL {
                let bytes = &bytes[..dtype.bytes()];
                let values = dtype.decode::<f32>(bytes);
                if values[0].is_finite() {
                    prop_assert_eq!(dtype.encode(&values).unwrap(), bytes);
                }
            }
        }
    }

    #[test]
    fn values_out_of_range_are_not_encoded() {
        assert_eq!(WeightDtype::F16.encode(&[1.0, 65_520.0]), None);
        assert!(WeightDtype::F16.encode(&[65_519.0]).is_some());
        assert_eq!(WeightDtype::Bf16.encode(&[f32::MAX]), None);
    }
}
