//! The exponential, in operations that the compiler turns into vectors.

/// `eˣ` with an error of at most 2 units in the last place, subnormal results included.
///
/// `x = n ln 2 + r` with `|r| ≤ ln 2 / 2`; `eʳ` is Taylor's polynomial of degree 7, whose first missing term is
/// below 2⁻²⁷, and `2ⁿ` is written into the exponent's bits. No branch and no fused multiply-add: inlined into a
/// loop, it becomes vectors of whatever width the machine has, and gives the same bits on every machine.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to a whole number, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few bits, so that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Past these bounds the result is infinite or zero. Comparisons with NaN are false, so that NaN stays.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = sum * r + coefficient;
    }
    // 2ⁿ in two factors: n goes from −150 to 128, past what one exponent holds.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    sum * power(half) * power(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_units_in_the_last_place_over_the_whole_range() {
        let mut worst = 0.0f64;
        for step in -1_060_000..=900_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            if exact > f64::from(f32::MAX) {
                continue;
            }
            // The distance of neighbouring values at the exact result; subnormal ones are 2⁻¹⁴⁹ apart.
            let unit = (exact.log2().floor() - 23.0).max(-149.0).exp2();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / unit);
        }
        assert!(worst <= 2.0, "{worst}");
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
