//! Which differences count as rounding and which as faults.

use std::fmt;

use firebox_console::numbers::magnitude;
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use serde::Serialize;

/// The largest differences that count as rounding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tolerances {
    /// Relative difference of a part that was given the reference's inputs.
    pub part: f64,
    /// Relative difference of values of the whole network, to which every part contributes.
    pub whole: f64,
    /// Relative difference of a parameter's gradient.
    pub gradient: f64,
    /// Probability gap of a flip; rounding does not explain a flip across a larger gap.
    pub gap: f64,
}

/// Tolerance of a part in f32. Devices agree with PyTorch to 1e-6 in values and 5e-6 in gradients; this is twenty times
/// as much, for models larger than those of the tests.
const F32: f64 = 2e-5;
/// Tolerance of the whole network relative to that of a part: errors accumulate over the layers, and those of gradients
/// over the forward and the backward pass.
const WHOLE: f64 = 5.0;
/// Number of roundings to a narrow type that are allowed. A product with a rounded weight has an error of up to one; a
/// sum of many products has less, because the errors have both signs.
const ROUNDINGS: f64 = 8.0;

impl Tolerances {
    /// The tolerances for weights in this format, with a reference in f32.
    ///
    /// The relative rounding error is up to 2⁻⁹ in bf16 and up to 2⁻¹² in f16; in 8 bits it is up to 1/254 of the largest
    /// weight of a block.
    pub fn of(format: WeightFormat) -> Self {
        Self::around(match format {
            WeightFormat::Plain(WeightDtype::F32) => F32,
            WeightFormat::Plain(WeightDtype::F16) => ROUNDINGS * 2f64.powi(-12),
            WeightFormat::Plain(WeightDtype::Bf16) => ROUNDINGS * 2f64.powi(-9),
            WeightFormat::Int8 => ROUNDINGS / 254.0,
        })
    }

    /// The tolerances for weights in two formats: those of the coarser one.
    pub fn between(reference: WeightFormat, candidate: WeightFormat) -> Self {
        let [reference, candidate] = [reference, candidate].map(Self::of);
        match reference.part > candidate.part {
            true => reference,
            false => candidate,
        }
    }

    /// Tolerance `part` for a part, and five times that for everything else.
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

/// A difference above its tolerance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fault {
    /// Where it occurs.
    pub place: String,
    /// What differs, such as `relative difference`.
    pub what: &'static str,
    /// By how much.
    pub figure: f64,
    /// The tolerance.
    pub tolerance: f64,
}

impl Fault {
    /// A fault if `figure` is above the tolerance or NaN.
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
            "{}: {} {} (allowed: {})",
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
    fn a_fault_names_place_difference_and_tolerance() {
        let fault = Fault::check("layer 3, experts", "relative difference", 2.1e-3, 2e-5).unwrap();
        assert_eq!(
            fault.to_string(),
            "layer 3, experts: relative difference 2.1e-3 (allowed: 2.0e-5)"
        );
        assert!(Fault::check("", "", 2e-5, 2e-5).is_none());
        assert!(Fault::check("", "", f64::NAN, 2e-5).is_some());
    }

    #[test]
    fn narrower_types_have_larger_tolerances() {
        let [f32, f16, bf16] = [WeightDtype::F32, WeightDtype::F16, WeightDtype::Bf16]
            .map(|dtype| Tolerances::of(dtype.into()).part);
        assert!(f32 < f16 && f16 < bf16 && bf16 < Tolerances::of(WeightFormat::Int8).part);
        assert_eq!(bf16, 0.015625);
        let [f32, int8] = [WeightDtype::F32.into(), WeightFormat::Int8];
        for (reference, candidate) in [(f32, int8), (int8, f32)] {
            let between = Tolerances::between(reference, candidate);
            assert_eq!(between.part, Tolerances::of(int8).part);
        }
    }
}
