//! Loops compiled for the vector instructions of the machine that runs them, and what such loops are made of.
//!
//! The binaries are built for any machine of their architecture, so that a plain loop gets its oldest vector
//! instructions. Nothing here depends on which ones are used: no product is fused with a sum, so that every machine
//! computes the same bits.

use pulp::{Arch, Simd, WithSimd};

/// Runs `work`, compiled once for each level of vector instructions, at the widest level of this machine.
///
/// What is to profit must be inlined into `work`: mark the closure and the functions that it calls
/// `#[inline(always)]`. The closure is `FnMut`, not `FnOnce`: one that could be called again is called once by way of
/// a shim, which no attribute reaches, and a large one then stays a function of its own with the oldest
/// instructions.
#[inline(always)]
pub(crate) fn vectorized<R>(work: impl FnMut() -> R) -> R {
    struct Work<F>(F);

    impl<R, F: FnMut() -> R> WithSimd for Work<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }

    Arch::new().dispatch(Work(work))
}

/// eˣ, within 2 units in the last place of the f32 result; subnormal results and infinities included, NaN to NaN.
///
/// Inlined into a loop over a slice it costs some 20 vector instructions for as many values as a register holds,
/// where the standard library's is a call for each. x = n ln 2 + r with |r| ≤ ln 2 / 2, and eˣ = 2ⁿ eʳ, where eʳ is
/// the minimax polynomial of Cephes' `expf` (S. L. Moshier, netlib.org/cephes).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: added to a small number it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, of which the first has so few bits that its product with n is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // Beyond these the result is 0 or infinite, as it is at them.
    let x = x.clamp(-104.0, 89.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let mut series = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5.0e-1,
    ] {
        series = series * r + coefficient;
    }
    let series = (series * (r * r) + r) + 1.0;
    // 2ⁿ in two factors: the powers at both ends of the range are no normal numbers.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    series * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_two_units_in_the_last_place_over_the_whole_range() {
        // Every 97th float of either sign covers all exponents many times over.
        for bits in (0..=u32::MAX).step_by(97) {
            let x = f32::from_bits(bits);
            let (found, expected) = (exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(found.is_nan());
            } else if expected as f32 == f32::INFINITY {
                assert_eq!(found, f32::INFINITY, "exp({x})");
            } else {
                let unit = f64::from((expected as f32).next_up()) - f64::from(expected as f32);
                let error = (f64::from(found) - expected).abs() / unit;
                assert!(error <= 2.0, "exp({x}) is off by {error} units");
            }
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
    }
}
