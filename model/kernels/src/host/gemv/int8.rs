//! Weights as integers of 8 bits, each times a scale that the weights of a block have in common.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::f16;
use pulp::Arch;

use super::{Activations, GEMV_MAX_ROWS, Held, MIN_PANEL_COLUMNS, PANEL_VALUES, WeightMatrix};
use crate::dtype::Number;
use crate::host::gemm::{Accumulate, Matrix, gemm_uninit_strided};
use crate::host::product::{On, Right, product};
use crate::host::simd::vectorized;
use crate::host::stream::{Scaled, Stream};
use crate::host::uninit::zeros;

/// A matrix of weights, `[d_in, d_out]`.
#[derive(Debug, Clone, Copy)]
pub struct Int8Matrix<'a> {
    /// `[d_in, d_out]`, with rows as far apart as those of the scales.
    codes: &'a [i8],
    scales: Scaled<'a>,
    d_in: usize,
    d_out: usize,
}

impl<'a> Int8Matrix<'a> {
    /// Weights that have a scale in common follow each other in a column.
    pub const BLOCK: usize = Scaled::BLOCK;

    /// A whole matrix in row-major order.
    ///
    /// # Shapes
    ///
    /// - `codes`: `[d_in, d_out]`
    /// - `scales`: `[⌈d_in ÷ block⌉, d_out]`
    ///
    /// # Panics
    ///
    /// When the slices have other lengths.
    pub fn new(codes: &'a [i8], scales: &'a [f16], d_in: usize, d_out: usize) -> Self {
        let blocks = d_in.div_ceil(Self::BLOCK);
        assert!(
            codes.len() == d_in * d_out && scales.len() == blocks * d_out,
            "{} weights and {} scales of [{d_in}, {d_out}]",
            codes.len(),
            scales.len()
        );
        let scales = Scaled {
            values: scales,
            stride: d_out,
        };
        Self {
            codes,
            scales,
            d_in,
            d_out,
        }
    }

    /// The weights in f32, row after row.
    pub fn dequantize(self, values: &mut Vec<f32>) {
        values.clear();
        let stride = self.scales.stride.max(1);
        vectorized(
            #[inline(always)]
            || {
                let rows = self.codes.chunks(stride).take(self.d_in);
                for (row, codes) in rows.enumerate() {
                    let scales = &self.scales.values[row / Self::BLOCK * stride..];
                    let pairs = codes[..self.d_out].iter().zip(scales);
                    values.extend(pairs.map(|(code, scale)| code.widen() * scale.widen()));
                }
            },
        );
    }

    /// With panels of the weights as f32, of which `multiply` makes the columns of the output from its first place on.
    fn panels<V>(
        self,
        panel: &mut Vec<f32>,
        output: &mut [V],
        mut multiply: impl FnMut(Matrix<'_>, &mut [V]),
    ) {
        let width = (PANEL_VALUES / self.d_in.max(1)).max(MIN_PANEL_COLUMNS);
        for start in (0..self.d_out).step_by(width) {
            let part = self.outputs(start..(start + width).min(self.d_out));
            part.dequantize(panel);
            let matrix = Matrix::new(panel, part.d_in, part.d_out);
            multiply(matrix, &mut output[start..]);
        }
    }
}

impl WeightMatrix for Int8Matrix<'_> {
    const INPUT_ALIGNMENT: usize = Self::BLOCK;

    fn outputs(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.d_out);
        // Without outputs there may be nothing at the start.
        Self {
            codes: self.codes.get(range.start..).unwrap_or_default(),
            scales: Scaled {
                values: self.scales.values.get(range.start..).unwrap_or_default(),
                ..self.scales
            },
            d_out: range.len(),
            ..self
        }
    }

    fn inputs(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.d_in && range.start.is_multiple_of(Self::BLOCK));
        let stride = self.scales.stride;
        let (first, block) = (range.start * stride, range.start / Self::BLOCK * stride);
        Self {
            codes: self.codes.get(first..).unwrap_or_default(),
            scales: Scaled {
                values: self.scales.values.get(block..).unwrap_or_default(),
                ..self.scales
            },
            d_in: range.len(),
            ..self
        }
    }

    fn bytes(&self) -> usize {
        let scales = self.d_in.div_ceil(Self::BLOCK) * size_of::<f16>();
        (self.d_in + scales) * self.d_out
    }

    /// The integers are exact in every precision, so that with few rows a scale is applied to sums. With more rows in bf16,
    /// weights are rounded to it.
    fn product<'o>(
        self,
        x: &Activations<'_>,
        panel: &mut Vec<f32>,
        output: &'o mut [MaybeUninit<f32>],
    ) -> &'o mut [f32] {
        let (rows, d_out) = (x.rows, self.d_out);
        assert!(
            x.width == self.d_in && output.len() == rows * d_out,
            "[{rows}, {}] times [{}, {d_out}] into {} values",
            x.width,
            self.d_in,
            output.len()
        );
        match &x.held {
            Held::Values(values, _) if rows > GEMV_MAX_ROWS => {
                let x = Matrix::new(values, rows, self.d_in);
                self.panels(panel, output, |weights, output| {
                    gemm_uninit_strided(x, weights, 1.0, output, d_out);
                });
                // SAFETY: the panels cover all columns, and each product writes its columns of every row.
                #[allow(unsafe_code)]
                unsafe {
                    output.assume_init_mut()
                }
            }
            Held::Values(values, _) => {
                let output = zeros(output);
                if !output.is_empty() && self.d_in > 0 {
                    Arch::new().dispatch(Stream::<_, _, false> {
                        x: values,
                        weights: self.codes,
                        scales: self.scales,
                        stride: self.scales.stride,
                        d_in: self.d_in,
                        d_out,
                        output,
                    });
                }
                output
            }
            Held::Ready(x, precision) => {
                let output = zeros(output);
                self.panels(panel, output, |weights, output| {
                    let weights = Right::new(weights, *precision, On::ThisThread);
                    product((x, 0..rows), &weights, Accumulate::Replace, output, d_out);
                });
                output
            }
        }
    }
}

#[cfg(test)]
mod tests;
