//! The exponential in plain arithmetic, so that a loop over it becomes vector instructions.

/// `eˣ`, within 1 unit in the last place for every x; without branches, so that loops over it become vector
/// code.
///
/// `eˣ = 2ⁿ eʳ` with n the integer next to x / ln 2, so that |r| ≤ ln 2 / 2; `eʳ` is the polynomial of Cephes'
/// `expf` (S. L. Moshier, Methods and Programs for Mathematical Functions, 1989).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these the result is 0 or ∞ anyway, and 2ⁿ stays within reach. Comparisons that let NaN pass.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };

    // The sum has its ones where f32 keeps its last bits: it is rounded to an integer, which those bits hold.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let whole = shifted - ROUND;
    // ln 2 in two parts; the first has so few bits that its product is exact.
    let r = x - whole * 0.693_359_4;
    let r = r - whole * -2.121_944_4e-4;

    let mut polynomial = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        polynomial = polynomial * r + coefficient;
    }
    let power = polynomial * (r * r) + r + 1.0;

    // 2ⁿ in two steps, because n = 128 and results below the normal range have no single factor.
    let half = n >> 1;
    let factor = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    power * factor(half) * factor(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance between neighbours of f32 at this value.
    fn unit_in_the_last_place(value: f64) -> f64 {
        let exponent = value.abs().log2().floor().max(-126.0);
        (exponent - 23.0).exp2()
    }

    #[test]
    fn exp_over_its_whole_range() {
        let mut largest = (0.0, 0.0);
        let mut check = |x: f32| {
            let exact = f64::from(x).exp();
            if exact > f64::from(f32::MAX) {
                return;
            }
            let error = (f64::from(exp(x)) - exact).abs() / unit_in_the_last_place(exact);
            if error > largest.0 {
                largest = (error, x);
            }
        };
        // Every 1009th float of both signs, and evenly spaced ones.
        for bits in (0..0x42d0_0000u32).step_by(1009) {
            check(f32::from_bits(bits));
            check(-f32::from_bits(bits));
        }
        for step in 0..2_000_000 {
            check(-104.0 + step as f32 * (192.7 / 2e6));
        }
        println!(
            "exp: {} units in the last place at {}",
            largest.0, largest.1
        );
        assert!(largest.0 <= 1.0, "{largest:?}");
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.73), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
