//! LayerNorm over slices; rows stand one after the other, each as wide as the gain.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::host::simd::{sum, sum_of_products, vectorized};
use crate::host::uninit::vec_uninit_with;

/// Rows of this width that a thread takes at once: some 64 KiB, which stay in a core's cache.
fn block_rows(width: usize) -> usize {
    ((1 << 14) / width).max(1)
}

/// `(x − mean(x)) / √(variance(x) + ε) ⊙ γ + β` for each row, and of each its mean and `1 / √(variance(x) + ε)`, which the
/// backward pass needs.
///
/// # Panics
///
/// When the gain is empty, its length is not that of the bias, or the length of `x` is not a multiple of it.
pub(super) fn forward(
    x: &[f32],
    [gamma, beta]: [&[f32]; 2],
    epsilon: f32,
) -> (Vec<f32>, Vec<[f32; 2]>) {
    let width = gamma.len();
    assert!(
        x.len().is_multiple_of(width) && beta.len() == width,
        "{} values in rows of {width}, and {} biases",
        x.len(),
        beta.len()
    );
    let (rows, block) = (x.len() / width, block_rows(width));
    let mut moments = vec![[0.0; 2]; rows];
    let fill = |output: &mut [MaybeUninit<f32>]| {
        let blocks = output
            .par_chunks_mut(block * width)
            .zip(x.par_chunks(block * width))
            .zip(moments.par_chunks_mut(block));
        blocks.for_each(|((output, x), moments)| {
            vectorized(
                #[inline(always)]
                || {
                    let rows = output.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for ((output, x), moments) in rows.zip(moments.iter_mut()) {
                        let mean = sum(x, |x| x) / width as f32;
                        let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
                        let scale = 1.0 / (variance + epsilon).sqrt();
                        *moments = [mean, scale];
                        let parameters = gamma.iter().zip(beta);
                        for ((output, x), (gamma, beta)) in output.iter_mut().zip(x).zip(parameters)
                        {
                            output.write((x - mean) * scale * gamma + beta);
                        }
                    }
                },
            );
        });
    };
    // SAFETY: the blocks cover `x.len()` values, their rows all of a block, and each value of a row is written: an output
    // row, a row of `x`, `gamma` and `beta` have the same length.
    #[allow(unsafe_code)]
    let output = unsafe { vec_uninit_with(x.len(), fill) };
    (output, moments)
}

/// Turns the gradient of the output into that of `x`, in place, and returns those of γ and β.
///
/// The formulas are those of [`LayerNorm`](super::LayerNorm). Rows are added up block by block, in their order.
///
/// # Panics
///
/// When the lengths do not fit.
pub(super) fn backward(
    gradient: &mut [f32],
    x: &[f32],
    gamma: &[f32],
    moments: &[[f32; 2]],
) -> [Vec<f32>; 2] {
    let width = gamma.len();
    assert!(gradient.len() == x.len() && x.len() == moments.len() * width);
    let block = block_rows(width);
    let blocks = gradient
        .par_chunks_mut(block * width)
        .zip(x.par_chunks(block * width))
        .zip(moments.par_chunks(block));
    let parts = blocks.map(|((gradient, x), moments)| {
        let [mut of_gamma, mut of_beta, mut unit] = [0; 3].map(|_| vec![0.0; width]);
        vectorized(
            #[inline(always)]
            || {
                let rows = gradient.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for ((gradient, x), &[mean, scale]) in rows.zip(moments) {
                    for (unit, x) in unit.iter_mut().zip(x) {
                        *unit = (x - mean) * scale;
                    }
                    let along = sum_of_products(gradient, gamma, &unit) / width as f32;
                    let sums = of_gamma.iter_mut().zip(&mut of_beta);
                    let values = gradient.iter_mut().zip(&unit).zip(gamma);
                    for (((gradient, unit), gamma), (of_gamma, of_beta)) in values.zip(sums) {
                        *of_gamma += *gradient * unit;
                        *of_beta += *gradient;
                        *gradient *= gamma;
                    }
                    let mean = sum(gradient, |gradient| gradient) / width as f32;
                    for (gradient, unit) in gradient.iter_mut().zip(&unit) {
                        *gradient = scale * (*gradient - mean - unit * along);
                    }
                }
            },
        );
        [of_gamma, of_beta]
    });
    let parts: Vec<[Vec<f32>; 2]> = parts.collect();
    let mut sums = [vec![0.0; width], vec![0.0; width]];
    for part in parts {
        for (sums, part) in sums.iter_mut().zip(part) {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum += value;
            }
        }
    }
    sums
}
