//! The types in which weights are stored.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Element};
use half::{bf16, f16};

/// The type of a stored number. Computation is in f32, which holds each of them exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightDtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits: 10 of fraction, up to 65,504.
    F16,
    /// 16 bits: 7 of fraction, the range of f32.
    Bf16,
}

impl WeightDtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// That of a tensor; `None` for any other type.
    pub fn of_tensor(dtype: DType) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|weights| weights.tensor_type() == dtype)
    }

    /// The type of a tensor that holds such weights.
    pub fn tensor_type(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for WeightDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL
            .into_iter()
            .find(|precision| precision.to_string() == text);
        known.ok_or_else(|| "must be f32, f16 or bf16".to_owned())
    }
}

/// A type in which weights are stored. Each is exact in f32, in which everything is computed.
pub trait StorageFloat: Element + Copy + Default + PartialEq + Send + Sync {
    /// Which one it is.
    const DTYPE: WeightDtype;

    /// The nearest number, of two equally near the even one; infinite beyond the range.
    fn nearest(value: f32) -> Self;

    /// The same number in f32; of one that is not finite, anything.
    fn widen(self) -> f32;

    /// Whether it is finite: neither ±∞ nor NaN.
    fn finite(self) -> bool;

    /// These numbers as they stand, where they are f32 already.
    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        let _ = values;
        None
    }

    /// These numbers as they stand, where they are bf16 already.
    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        let _ = values;
        None
    }
}

impl StorageFloat for f32 {
    const DTYPE: WeightDtype = WeightDtype::F32;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn finite(self) -> bool {
        self.is_finite()
    }

    #[inline(always)]
    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl StorageFloat for bf16 {
    const DTYPE: WeightDtype = WeightDtype::Bf16;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        Self::from_f32(value)
    }

    /// The upper half of the f32, and nothing else: `to_f32` looks for signalling NaNs first, which no weight is,
    /// and which keeps a loop from becoming vector instructions.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn finite(self) -> bool {
        self.is_finite()
    }

    #[inline(always)]
    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        Some(values)
    }
}

impl StorageFloat for f16 {
    const DTYPE: WeightDtype = WeightDtype::F16;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        Self::from_f32(value)
    }

    /// In arithmetic that a loop over many turns into vector instructions. As an f32, the fraction and exponent of
    /// an f16 moved to their places stand for the number times 2^−112, subnormal ones included; a product with
    /// 2^112 is exact.
    #[inline(always)]
    fn widen(self) -> f32 {
        const SCALE: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(self.to_bits());
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * SCALE;
        f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
    }

    fn finite(self) -> bool {
        self.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_number_survives() {
        for bits in 0..=u16::MAX {
            let number = f16::from_bits(bits);
            if number.is_finite() {
                assert_eq!(number.widen().to_bits(), number.to_f32().to_bits());
                assert_eq!(f16::nearest(number.widen()), number);
            }
            let number = bf16::from_bits(bits);
            if number.is_finite() {
                assert_eq!(number.widen().to_bits(), number.to_f32().to_bits());
                assert_eq!(bf16::nearest(number.widen()), number);
            }
        }
    }
}
