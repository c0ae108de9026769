//! The precision that products of matrices are computed at.

use std::fmt;
use std::str::FromStr;

/// What the factors of a product of matrices are rounded to. Sums are f32 always, and so is everything that is not a
/// product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
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
