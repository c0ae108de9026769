//! The types in which weights are stored.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Element};
use half::{bf16, f16};

use crate::weight::Int8;

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

/// How the matrices of a model are held for inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// As numbers of a type.
    Plain(WeightDtype),
    /// As [integers of 8 bits](crate::Int8); the embedding, a head that is tied to it, and the matrix that makes keys and values
    /// of the latents of attention in bf16.
    Int8,
}

impl WeightFormat {
    /// The type of the numbers; of matrices in 8 bits, that of the tables beside them.
    pub fn plain(self) -> WeightDtype {
        match self {
            Self::Plain(dtype) => dtype,
            Self::Int8 => WeightDtype::Bf16,
        }
    }

    /// Bytes of a weight of a product, its part of a scale included.
    pub fn bytes(self) -> f64 {
        match self {
            Self::Plain(dtype) => dtype.bytes() as f64,
            Self::Int8 => 1.0 + size_of::<f16>() as f64 / Int8::<2>::BLOCK as f64,
        }
    }
}

impl Default for WeightFormat {
    fn default() -> Self {
        WeightDtype::default().into()
    }
}

impl From<WeightDtype> for WeightFormat {
    fn from(dtype: WeightDtype) -> Self {
        Self::Plain(dtype)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(formatter),
            Self::Int8 => formatter.write_str("int8"),
        }
    }
}

impl FromStr for WeightFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "int8" => Ok(Self::Int8),
            "q8_0" => Err(
                "must be f32, f16, bf16 or int8, which keeps the weights of q8_0 files as they are"
                    .to_owned(),
            ),
            _ => WeightDtype::from_str(text)
                .map(Self::Plain)
                .map_err(|_| "must be f32, f16, bf16 or int8".to_owned()),
        }
    }
}

/// A type of number that products take from memory. Each is exact in f32, in which everything is computed.
pub trait Number: Copy + Send + Sync {
    /// Whether each is exact in bf16 too.
    const EXACT_IN_BF16: bool;

    /// The same number in f32; of one that is not finite, anything.
    fn widen(self) -> f32;

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

    /// These numbers as they stand, where they are f16 already.
    fn as_f16(values: &[Self]) -> Option<&[f16]> {
        let _ = values;
        None
    }

    /// These numbers as they stand, where they are integers of 8 bits.
    fn as_i8(values: &[Self]) -> Option<&[i8]> {
        let _ = values;
        None
    }
}

/// A type in which weights are stored.
pub trait StorageFloat: Number + Element + Default + PartialEq {
    /// Which one it is.
    const DTYPE: WeightDtype;

    /// The nearest number, of two equally near the even one; infinite beyond the range.
    fn nearest(value: f32) -> Self;

    /// Whether it is finite: neither ±∞ nor NaN.
    fn finite(self) -> bool;
}

impl Number for i8 {
    const EXACT_IN_BF16: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    fn as_i8(values: &[Self]) -> Option<&[i8]> {
        Some(values)
    }
}

impl Number for f32 {
    const EXACT_IN_BF16: bool = false;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl StorageFloat for f32 {
    const DTYPE: WeightDtype = WeightDtype::F32;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }

    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for bf16 {
    const EXACT_IN_BF16: bool = true;

    /// The upper half of the f32, and nothing else: `to_f32` looks for signalling NaNs first, which no weight is,
    /// and which keeps a loop from becoming vector instructions.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        Some(values)
    }
}

impl StorageFloat for bf16 {
    const DTYPE: WeightDtype = WeightDtype::Bf16;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for f16 {
    const EXACT_IN_BF16: bool = false;

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

    #[inline(always)]
    fn as_f16(values: &[Self]) -> Option<&[f16]> {
        Some(values)
    }
}

impl StorageFloat for f16 {
    const DTYPE: WeightDtype = WeightDtype::F16;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        Self::from_f32(value)
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
