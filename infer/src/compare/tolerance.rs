//! How much difference is rounding, and what is a fault.

use std::fmt;

use firebox_console::numbers::magnitude;
use firebox_kernels::dtype::WeightDtype;
use serde::Serialize;

/// The largest differences that count as rounding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tolerances {
    /// Relative, of a part that is given what the reference computed before it.
    pub part: f64,
    /// Relative, of what the whole network computes, where every part adds to the difference.
    pub whole: f64,
    /// Relative, of a parameter's gradient.
    pub gradient: f64,
    /// Of probabilities that a router chose between: a flip across a larger gap is no rounding.
    pub gap: f64,
}

/// Of f32. Devices agree with PyTorch to 1e-6 in values and 5e-6 in gradients (README); this is twenty times as much,
/// for models that are larger than those of the tests.
const F32: f64 = 2e-5;
/// Errors add up over the layers, and the gradients' ones over both directions.
const WHOLE: f64 = 5.0;
/// Roundings to a narrow type that are allowed for. A product of a rounded weight is off by up to one; a sum of many by
/// less, as they are of both signs.
const ROUNDINGS: f64 = 8.0;

impl Tolerances {
    /// Of weights that are held in a type, from a reference in f32.
    ///
    /// In bf16 a number is off by up to 2⁻⁹ of itself, in f16 by up to 2⁻¹².
    pub fn of(dtype: WeightDtype) -> Self {
        Self::around(match dtype {
            WeightDtype::F32 => F32,
            WeightDtype::F16 => ROUNDINGS * 2f64.powi(-12),
            WeightDtype::Bf16 => ROUNDINGS * 2f64.powi(-9),
        })
    }

    /// So much of a part, and five times that of all else.
    pub fn around(part: f64) -> Self {
        let whole = WHOLE * part;
        Self {
            part,
            whole,
            gradient: whole,
            gap: whole,
        }
    }
}

/// A difference that is no rounding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fault {
    /// Where it shows.
    pub place: String,
    /// What differs there.
    pub what: &'static str,
    /// By how much.
    pub figure: f64,
    /// How much is allowed.
    pub tolerance: f64,
}

impl Fault {
    /// A fault if the figure is above the tolerance, or no number.
    pub(super) fn check(
        place: impl Into<String>,
        what: &'static str,
        figure: f64,
        tolerance: f64,
    ) -> Option<Self> {
        let exceeded = figure > tolerance || figure.is_nan();
        exceeded.then(|| Self {
            place: place.into(),
            what,
            figure,
            tolerance,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {} of {}, and {} is allowed",
            self.place,
            self.what,
            magnitude(self.figure),
            magnitude(self.tolerance)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_where_and_how_much() {
        let fault =
            Fault::check("layer 3, experts", "a relative difference", 2.1e-3, 2e-5).unwrap();
        assert_eq!(
            fault.to_string(),
            "layer 3, experts: a relative difference of 2.1e-3, and 2.0e-5 is allowed"
        );
        assert!(Fault::check("", "", 2e-5, 2e-5).is_none());
        assert!(Fault::check("", "", f64::NAN, 2e-5).is_some());
    }

    #[test]
    fn narrower_types_are_allowed_more() {
        let [f32, f16, bf16] =
            [WeightDtype::F32, WeightDtype::F16, WeightDtype::Bf16].map(|p| Tolerances::of(p).part);
        assert!(f32 < f16 && f16 < bf16);
        assert_eq!(bf16, 0.015625);
    }
}
