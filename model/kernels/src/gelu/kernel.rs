//! GELU over slices.

use rayon::prelude::*;

use crate::host::exp::exp;
use crate::host::simd::vectorized;
use crate::host::uninit::vec_uninit_with;

/// Values that a thread takes at once: 64 KiB, which stay in a core's cache.
const BLOCK: usize = 1 << 14;

/// `x Φ(x)` of each value.
pub(super) fn forward(x: &[f32]) -> Vec<f32> {
    // SAFETY: the blocks cover all of it, and each value of a block is written.
    #[allow(unsafe_code)]
    unsafe {
        vec_uninit_with(x.len(), |output| {
            let blocks = output.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK));
            blocks.for_each(|(output, x)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (output, &x) in output.iter_mut().zip(x) {
                            output.write(x * normal(x)[0]);
                        }
                    },
                );
            });
        })
    }
}

/// Turns the gradient of the output into that of `x`, in place.
pub(super) fn backward(gradient: &mut [f32], x: &[f32]) {
    let blocks = gradient.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK));
    blocks.for_each(|(gradient, x)| {
        vectorized(
            #[inline(always)]
            || {
                for (gradient, &x) in gradient.iter_mut().zip(x) {
                    let [below, density] = normal(x);
                    *gradient *= below + x * density;
                }
            },
        );
    });
}

/// Distribution function and density of the standard normal distribution, `Φ(x)` and `φ(x)`; without branches, so that a
/// loop over it becomes vector instructions.
///
/// With z = |x| / √2 and t = 1 / (1 + z/2.5), `erfc(z) = t P(t) exp(−z²)`: the form of Abramowitz and Stegun (Handbook of
/// Mathematical Functions, 7.1.26), where P is the polynomial of degree 10 that interpolates at Chebyshev's nodes, within
/// 7e-9 of `erfc(z) exp(z²) / t`, which lies between 0.2 and 1.
#[inline(always)]
fn normal(x: f32) -> [f32; 2] {
    const POLYNOMIAL: [f32; 10] = [
        0.143_841_07,
        -0.243_041_73,
        0.146_803_25,
        -0.053_793_166,
        0.087_120_64,
        0.118_095_12,
        0.171_890_57,
        0.207_600_72,
        0.225_676_32,
        0.225_675_83,
    ];
    const SCALE: f32 = 0.282_842_7; // √2 / 5
    const PEAK: f32 = 0.398_942_3; // 1 / √(2π)
    // Beyond this the tail is 0 in f32, and the square stays finite. A comparison that lets NaN pass.
    let size = x.abs();
    let size = if size > 20.0 { 20.0 } else { size };
    let power = exp(-0.5 * (size * size));
    let t = 1.0 / (1.0 + SCALE * size);
    let mut polynomial = -0.029_868_629;
    for coefficient in POLYNOMIAL {
        polynomial = polynomial * t + coefficient;
    }
    let tail = 0.5 * t * polynomial * power;
    let below = if x > 0.0 { 1.0 - tail } else { tail };
    [below, PEAK * power]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the tail beyond x > 0, by Simpson's rule in f64.
    fn tail(x: f64) -> f64 {
        let (steps, end) = (4000, x + 12.0);
        let step = (end - x) / f64::from(steps);
        let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        let term = |i: i32| {
            let factor = match i {
                0 => 1.0,
                i if i == steps => 1.0,
                i if i % 2 == 1 => 4.0,
                _ => 2.0,
            };
            factor * density(x + f64::from(i) * step)
        };
        (0..=steps).map(term).sum::<f64>() * step / 3.0
    }

    // Relative to what is small: also far out, where the exponent's rounding is x²/2 · 6e-8.
    #[test]
    fn the_tails_are_right_relative_to_themselves() {
        for step in 0..=120 {
            let x = step as f32 * 0.1;
            let exact = tail(f64::from(x));
            let [below, density] = normal(-x);
            let allowed = exact * (3e-7 + 1e-7 * f64::from(x * x));
            let found = f64::from(below);
            assert!((found - exact).abs() <= allowed, "{x}: {found} for {exact}");
            let [above, same] = normal(x);
            assert!((f64::from(above) - (1.0 - exact)).abs() <= 1.2e-7, "{x}");
            assert_eq!(density, same);
        }
    }
}
