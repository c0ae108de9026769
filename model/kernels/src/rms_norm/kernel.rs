//! RMSNorm over slices; rows stand one after the other, each as wide as the gain.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::host::simd::{sum, sum_of_products, vectorized};
use crate::host::uninit::vec_uninit_with;

/// Rows of this width that a thread takes at once: some 64 KiB, which stay in a core's cache.
fn block_rows(width: usize) -> usize {
    ((1 << 14) / width).max(1)
}

/// `x / √(mean(x²) + ε) ⊙ γ` for each row, and `1 / √(mean(x²) + ε)` of each, which the backward pass needs.
///
/// # Panics
///
/// When the gain is empty, or the length of `x` is not a multiple of its length.
pub fn forward(x: &[f32], gamma: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f32>) {
    let width = gamma.len();
    assert!(
        x.len().is_multiple_of(width),
        "{} values in rows of {width}",
        x.len()
    );
    let (rows, block) = (x.len() / width, block_rows(width));
    let mut inverse = vec![0.0; rows];
    let fill = |output: &mut [MaybeUninit<f32>]| {
        let blocks = output
            .par_chunks_mut(block * width)
            .zip(x.par_chunks(block * width))
            .zip(inverse.par_chunks_mut(block));
        blocks.for_each(|((output, x), inverse)| {
            vectorized(
                #[inline(always)]
                || {
                    let rows = output.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for ((output, x), inverse) in rows.zip(inverse.iter_mut()) {
                        let mean = sum(x, |x| x * x) / width as f32;
                        *inverse = 1.0 / (mean + epsilon).sqrt();
                        for ((output, x), gamma) in output.iter_mut().zip(x).zip(gamma) {
                            output.write(x * *inverse * gamma);
                        }
                    }
                },
            );
        });
    };
    // SAFETY: the blocks cover `x.len()` values, their rows all of a block, and each value of a row is written:
    // an output row, a row of `x` and `gamma` have the same length.
    #[allow(unsafe_code)]
    let output = unsafe { vec_uninit_with(x.len(), fill) };
    (output, inverse)
}

/// Turns the gradient of the output into that of `x`, in place, and returns that of γ.
///
/// The formulas are those of [`RmsNorm`](super::RmsNorm). Rows are added up block
/// by block, in their order.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn backward(gradient: &mut [f32], x: &[f32], gamma: &[f32], inverse: &[f32]) -> Vec<f32> {
    let width = gamma.len();
    assert!(gradient.len() == x.len() && x.len() == inverse.len() * width);
    let block = block_rows(width);
    let blocks = gradient
        .par_chunks_mut(block * width)
        .zip(x.par_chunks(block * width))
        .zip(inverse.par_chunks(block));
    let parts = blocks.map(|((gradient, x), inverse)| {
        let mut gamma_gradient = vec![0.0; width];
        vectorized(
            #[inline(always)]
            || {
                let rows = gradient.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for ((gradient, x), &inverse) in rows.zip(inverse) {
                    let mean = sum_of_products(gradient, gamma, x) / width as f32;
                    let along = inverse * inverse * inverse * mean;
                    let values = gradient.iter_mut().zip(x).zip(gamma);
                    for (((gradient, x), gamma), sum) in values.zip(&mut gamma_gradient) {
                        *sum += *gradient * x * inverse;
                        *gradient = *gradient * gamma * inverse - x * along;
                    }
                }
            },
        );
        gamma_gradient
    });
    let parts: Vec<Vec<f32>> = parts.collect();
    let mut gamma_gradient = vec![0.0; width];
    for part in parts {
        for (sum, value) in gamma_gradient.iter_mut().zip(part) {
            *sum += value;
        }
    }
    gamma_gradient
}
