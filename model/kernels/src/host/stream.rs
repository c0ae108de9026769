//! Products of a few rows of activations with weights that come from memory.
//!
//! Such a product takes as long as its weights take to come, if the arithmetic is done meanwhile. So the weights are taken in
//! blocks of a few rows. A block is read from memory once for all rows of activations, whose sums stay in registers until it is
//! done, and between these products it asks for the block beneath it, which is in the cache when its turn comes. Weights become
//! f32 in registers, too: by way of memory, one row of activations takes half as long again with weights in bf16.

use std::array;

use half::f16;
use pulp::{Simd, WithSimd};

use super::simd::prefetch;
use super::widen::{load, widened_vector};
use crate::dtype::Number;

/// Rows of a block of weights: those whose products are added up before they are added to the output. Measured on Zen 4 with 1 to
/// 32 rows of activations: with 8 the product takes up to a fourth longer, most with weights in bf16.
const DEPTH: usize = 16;

/// Vectors of a row of weights that are multiplied at a time, for each of which there is a sum for each row of activations.
const VECTORS: usize = 2;

/// The most rows of activations that a block is multiplied with at a time.
const ROWS: usize = 8;

/// What weights are multiplied with: a number that a block of weights of a column has in common.
pub trait Scales: Copy {
    /// Those of some columns of a row of weights, from `column` on; `None` where there are none.
    fn vector<S: Simd>(self, simd: S, row: usize, column: usize) -> Option<S::f32s>;
}

/// Weights are what they are.
#[derive(Debug, Clone, Copy)]
pub struct Unscaled;

impl Scales for Unscaled {
    #[inline(always)]
    fn vector<S: Simd>(self, _: S, _: usize, _: usize) -> Option<S::f32s> {
        None
    }
}

/// A scale for the weights of each [`BLOCK`](Self::BLOCK) rows of a column.
#[derive(Debug, Clone, Copy)]
pub struct Scaled<'a> {
    /// `[blocks, d_out]`, with rows as far apart as those of the weights.
    pub values: &'a [f16],
    /// From one row to the next.
    pub stride: usize,
}

impl Scaled<'_> {
    /// Rows of weights that have their scales in common.
    pub const BLOCK: usize = 32;
}

// Rows whose products are added up at a time have their scales in common.
const _: () = assert!(Scaled::BLOCK.is_multiple_of(DEPTH));

impl Scales for Scaled<'_> {
    #[inline(always)]
    fn vector<S: Simd>(self, simd: S, row: usize, column: usize) -> Option<S::f32s> {
        let first = row / Self::BLOCK * self.stride + column;
        let scales = widened_vector::<S, f16, false>(simd, &self.values[first..]);
        Some(scales)
    }
}

/// `output += x · f32(weights)`, of weights that are rounded to bf16 on the way if `ROUND`. Each value is a sum in an order
/// that `d_in` alone decides.
#[derive(Debug)]
pub struct Stream<'a, T, S, const ROUND: bool> {
    /// `[rows, d_in]`
    pub x: &'a [f32],
    /// `[d_in, d_out]`, with rows `stride` apart.
    pub weights: &'a [T],
    /// Those of the weights.
    pub scales: S,
    /// From one row of the weights to the next.
    pub stride: usize,
    /// Columns of `x`, rows of the weights.
    pub d_in: usize,
    /// Columns of the weights and of the output.
    pub d_out: usize,
    /// `[rows, d_out]`
    pub output: &'a mut [f32],
}

impl<T: Number, C: Scales, const ROUND: bool> WithSimd for Stream<'_, T, C, ROUND> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let whole = self.d_in / DEPTH * DEPTH;
        for first in (0..whole).step_by(DEPTH) {
            self.add_rows::<S, DEPTH>(simd, first);
        }
        for first in whole..self.d_in {
            self.add_rows::<S, 1>(simd, first);
        }
    }
}

impl<T: Number, C: Scales, const ROUND: bool> Stream<'_, T, C, ROUND> {
    /// Adds the products of `D` rows of weights from `first` on.
    #[inline(always)]
    fn add_rows<S: Simd, const D: usize>(&mut self, simd: S, first: usize) {
        // Half of the registers hold sums.
        let rows = ROWS.min(S::REGISTER_COUNT / (2 * VECTORS));
        let activations = self.x.chunks(rows * self.d_in);
        let outputs = self.output.chunks_mut(rows * self.d_out);
        for (x, output) in activations.zip(outputs) {
            let count = x.len() / self.d_in;
            let part = Part::<T, C, D, ROUND> {
                x: &x[first..],
                d_in: self.d_in,
                weights: &self.weights[first * self.stride..],
                stride: self.stride,
                scales: self.scales,
                first,
                output,
                d_out: self.d_out,
            };
            match count {
                1 => part.add::<S, 1>(simd),
                2 => part.add::<S, 2>(simd),
                3 => part.add::<S, 3>(simd),
                4 => part.add::<S, 4>(simd),
                5 => part.add::<S, 5>(simd),
                6 => part.add::<S, 6>(simd),
                7 => part.add::<S, 7>(simd),
                _ => part.add::<S, ROWS>(simd),
            }
        }
    }
}

/// `D` rows of weights, and the activations and outputs that they stand between.
struct Part<'a, T, C, const D: usize, const ROUND: bool> {
    /// Rows `d_in` apart, of which the first `D` values count.
    x: &'a [f32],
    d_in: usize,
    /// Rows `stride` apart.
    weights: &'a [T],
    stride: usize,
    scales: C,
    /// Which row of the matrix the first one is.
    first: usize,
    /// Rows of `d_out` values.
    output: &'a mut [f32],
    d_out: usize,
}

impl<T: Number, C: Scales, const D: usize, const ROUND: bool> Part<'_, T, C, D, ROUND> {
    /// Adds the products of `R` rows.
    #[inline(always)]
    fn add<S: Simd, const R: usize>(mut self, simd: S) {
        // Twice as many columns at a time, where there are registers for the sums: the widest ones fill a cache line.
        let done = match size_of::<T>() == 1 && R * 2 * VECTORS <= S::REGISTER_COUNT / 2 {
            true => self.vectors::<S, R, { 2 * VECTORS }>(simd, 0),
            false => 0,
        };
        let done = self.vectors::<S, R, VECTORS>(simd, done);
        for start in (done..self.d_out).step_by(S::F32_LANES) {
            let width = S::F32_LANES.min(self.d_out - start);
            self.columns::<S, R, 1>(simd, start, width);
        }
    }

    /// As many columns from `start` on as `V` vectors at a time hold; returns how many are done then.
    #[inline(always)]
    fn vectors<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, start: usize) -> usize {
        let at_once = V * S::F32_LANES;
        let end = start + (self.d_out - start) / at_once * at_once;
        for start in (start..end).step_by(at_once) {
            self.columns::<S, R, V>(simd, start, at_once);
        }
        end
    }

    /// The columns from `start` on, which fill `V` vectors, or a part of one.
    ///
    /// Whatever can fail comes first: behind a branch, the compiler puts off products until all weights are loaded, for
    /// which there are not enough registers. With weights in 8 bits, one row of activations took four
    /// tenths more time.
    #[inline(always)]
    fn columns<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        start: usize,
        width: usize,
    ) {
        let (x, weights, output) = (self.x, self.weights, &mut *self.output);
        let (d_in, stride, d_out) = (self.d_in, self.stride, self.d_out);
        assert!(
            (R - 1) * d_in + D <= x.len()
                && (D - 1) * stride + start + width <= weights.len()
                && (R - 1) * d_out + start + width <= output.len()
        );
        let scales: [_; V] = array::from_fn(|vector| {
            let column = start + vector * S::F32_LANES;
            self.scales.vector(simd, self.first, column)
        });

        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for place in 0..D {
            let row = place * stride + start;
            // SAFETY: no row is behind the last one, which is within the weights, as was asserted.
            #[allow(unsafe_code)]
            let row = unsafe { weights.get_unchecked(row..row + width) };
            prefetch(row, D * stride);
            let weights: [S::f32s; V] = array::from_fn(|vector| {
                widened_vector::<S, T, ROUND>(simd, &row[vector * S::F32_LANES..])
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as for the weights.
                #[allow(unsafe_code)]
                let x = simd.splat_f32s(unsafe { *x.get_unchecked(row * d_in + place) });
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = simd.mul_add_e_f32s(x, weights, *sum);
                }
            }
        }

        for (row, sums) in sums.into_iter().enumerate() {
            let row = row * d_out + start;
            // SAFETY: as for the weights.
            #[allow(unsafe_code)]
            let output = unsafe { output.get_unchecked_mut(row..row + width) };
            for (vector, (sum, scale)) in sums.into_iter().zip(scales).enumerate() {
                let output = &mut output[vector * S::F32_LANES..];
                let so_far = load(simd, output);
                let total = match scale {
                    Some(scale) => simd.mul_add_e_f32s(scale, sum, so_far),
                    None => simd.add_f32s(so_far, sum),
                };
                match S::as_mut_simd_f32s(output) {
                    ([output, ..], _) => *output = total,
                    ([], rest) => simd.partial_store_f32s(rest, total),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use pulp::{Arch, Scalar};

    use super::*;
    use crate::dtype::StorageFloat;

    fn wave(length: usize, step: f32) -> Vec<f32> {
        (0..length)
            .map(|place| (place as f32 * step).sin())
            .collect()
    }

    /// Runs a product of these sizes, of weights whose rows have 3 more values than it takes.
    fn product<T: StorageFloat, const ROUND: bool>(
        [rows, d_in, d_out]: [usize; 3],
        run: impl FnOnce(Stream<'_, T, Unscaled, ROUND>),
    ) -> Vec<f32> {
        let stride = d_out + 3;
        let weights = wave(d_in * stride, 0.7);
        let mut output = vec![0.0; rows * d_out];
        run(Stream {
            x: &wave(rows * d_in, 0.3),
            weights: &weights.into_iter().map(T::nearest).collect::<Vec<_>>(),
            scales: Unscaled,
            stride,
            d_in,
            d_out,
            output: &mut output,
        });
        output
    }

    const SIZES: [[usize; 2]; 6] = [[1, 1], [7, 15], [8, 16], [20, 33], [64, 100], [129, 192]];

    fn a_row_has_the_same_bits_among_any_others<T: StorageFloat, const ROUND: bool>() {
        for [d_in, d_out] in SIZES {
            let all = |rows| {
                let run = |stream: Stream<'_, T, Unscaled, ROUND>| Arch::new().dispatch(stream);
                product([rows, d_in, d_out], run)
            };
            let most = all(9);
            for rows in 1..9 {
                assert_eq!(
                    all(rows),
                    most[..rows * d_out],
                    "{rows} rows, {d_in}, {d_out}"
                );
            }
        }
    }

    #[test]
    fn the_number_of_rows_changes_no_bit() {
        a_row_has_the_same_bits_among_any_others::<f32, false>();
        a_row_has_the_same_bits_among_any_others::<f32, true>();
        a_row_has_the_same_bits_among_any_others::<bf16, false>();
        a_row_has_the_same_bits_among_any_others::<bf16, true>();
        a_row_has_the_same_bits_among_any_others::<f16, false>();
        a_row_has_the_same_bits_among_any_others::<f16, true>();
    }

    #[test]
    fn integers_with_scales_are_the_numbers_that_they_stand_for() {
        for [d_in, d_out] in SIZES {
            let stride = d_out + 3;
            let codes: Vec<i8> = (0..d_in * stride).map(|i| (i * 37 % 255) as i8).collect();
            let blocks = d_in.div_ceil(Scaled::BLOCK);
            let scales = wave(blocks * stride, 0.9).into_iter().map(f16::from_f32);
            let scales: Vec<f16> = scales.collect();
            let numbers: Vec<f32> = (0..d_in * stride)
                .map(|place| {
                    let (row, column) = (place / stride, place % stride);
                    let scale = scales[row / Scaled::BLOCK * stride + column];
                    f32::from(codes[place]) * scale.to_f32()
                })
                .collect();
            for rows in [1, 2, 4, 5, 9] {
                let x = wave(rows * d_in, 0.3);
                let mut expected = vec![0.0; rows * d_out];
                let mut size = 0.0f32;
                for (row, x) in x.chunks(d_in).enumerate() {
                    for column in 0..d_out {
                        let products = (0..d_in).map(|i| x[i] * numbers[i * stride + column]);
                        expected[row * d_out + column] = products.clone().sum();
                        size = size.max(products.map(f32::abs).sum());
                    }
                }
                let run = |run: &dyn Fn(Stream<'_, i8, Scaled<'_>, false>)| {
                    let mut output = vec![0.0; rows * d_out];
                    run(Stream {
                        x: &x,
                        weights: &codes,
                        scales: Scaled {
                            values: &scales,
                            stride,
                        },
                        stride,
                        d_in,
                        d_out,
                        output: &mut output,
                    });
                    for (found, expected) in output.iter().zip(&expected) {
                        // Sums of as many roundings as there are products, in two orders.
                        let bound = 2.0 * f32::EPSILON * (d_in as f32).sqrt() * size;
                        assert!(
                            (found - expected).abs() <= bound,
                            "{rows} rows, {d_in}, {d_out}: {found}, {expected}"
                        );
                    }
                };
                run(&|stream| Arch::new().dispatch(stream));
                run(&|stream| stream.with_simd(Scalar));
                #[cfg(target_arch = "x86_64")]
                if let Some(simd) = pulp::x86::V3::try_new() {
                    run(&|stream| Simd::vectorize(simd, stream));
                }
            }
        }
    }

    #[test]
    fn instructions_of_every_width_compute_the_same() {
        for [d_in, d_out] in SIZES {
            let sizes = [5, d_in, d_out];
            let widest = product(sizes, |stream: Stream<'_, f32, Unscaled, false>| {
                Arch::new().dispatch(stream)
            });
            let scalar = product(sizes, |stream: Stream<'_, f32, Unscaled, false>| {
                stream.with_simd(Scalar)
            });
            for (found, expected) in widest.iter().zip(&scalar) {
                // Products that are fused with sums round once in place of twice.
                let bound = 2e-7 * (d_in as f32 + 1.0);
                assert!(
                    (found - expected).abs() <= bound,
                    "{sizes:?}: {found}, {expected}"
                );
            }
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = pulp::x86::V3::try_new() {
                let run = |stream: Stream<'_, f32, Unscaled, false>| Simd::vectorize(simd, stream);
                assert_eq!(product(sizes, run), widest, "{sizes:?}");
            }
        }
    }
}
