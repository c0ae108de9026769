//! The precision that products of matrices are computed at.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device, Tensor};
use firebox_runtime::device::{Kernels, kernels};
use serde::{Deserialize, Serialize};

/// What the factors of a product of matrices are rounded to. Sums are f32 always, and so is everything that is not a
/// product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// To the nearest number of bf16, of two equally near the even one: 8 bits of significand, and the range of f32.
    /// Numbers below 2⁻¹²⁶ may count as zero.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Whether a device computes products at this precision: all do in f32, those of CPU kernels in bf16.
    pub fn runs_on(self, device: &Device) -> bool {
        self == Self::F32 || kernels(device) == Kernels::Slices
    }

    /// Asserts that a device computes products at this precision.
    ///
    /// # Panics
    ///
    /// When it [does not](Self::runs_on).
    pub(crate) fn check(self, device: &Device) {
        assert!(self.runs_on(device), "no products in {self} on this device");
    }

    /// A factor of a product in plain tensor operations, on a device with bf16. The gradient passes as it is.
    pub(crate) fn rounded<const D: usize>(self, factor: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => factor,
            Self::Bf16 => {
                let rounded = factor.clone().cast(DType::BF16).cast(DType::F32);
                // The difference of neighbours is exact. That of infinities is not a number, and not needed.
                let there = factor.clone().is_inf();
                let change = (rounded - factor.clone()).mask_fill(there, 0.0);
                factor + change.detach()
            }
        }
    }
}

/// The nearest number of bf16, of two equally near the even one, in arithmetic that a loop over many turns into vector
/// instructions. NaN stays NaN.
#[inline(always)]
pub(crate) fn rounded_to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x0040_0000;
    let upper = if value.is_nan() { quiet } else { nearest };
    f32::from_bits(upper & 0xffff_0000)
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
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
        known.ok_or_else(|| "must be f32 or bf16".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_upper_half_is_rounded_as_the_type_does() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let expected = half::bf16::from_f32(value).to_f32();
                let found = rounded_to_bf16(value);
                let same = found.to_bits() == expected.to_bits();
                assert!(same || found.is_nan() && expected.is_nan(), "{value:e}");
            }
        }
    }
}
