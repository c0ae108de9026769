//! The types of number that weights are held in.

use burn::tensor::Element;
use half::{bf16, f16};

use crate::checkpoint::Precision;

/// A type of number that weights are held in. Each is exact in f32, in which everything is computed.
pub trait Number: Element + Copy + Default + PartialEq + Send + Sync {
    /// Which one it is.
    const PRECISION: Precision;

    /// The nearest number, of two equally near the even one; infinite beyond the range.
    fn nearest(value: f32) -> Self;

    /// The same number in f32.
    fn widen(self) -> f32;

    /// These numbers as they stand, where they are f32 already.
    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        let _ = values;
        None
    }
}

impl Number for f32 {
    const PRECISION: Precision = Precision::F32;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Number for bf16 {
    const PRECISION: Precision = Precision::Bf16;

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
}

impl Number for f16 {
    const PRECISION: Precision = Precision::F16;

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
