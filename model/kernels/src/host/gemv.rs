//! Products of activations and weights over slices, whatever type the weights are held in.
//!
//! With few rows of activations, a product takes as long as its weights take to come from memory: `stream.rs` reads each
//! of them once. With many rows the arithmetic counts, and panels of the weights become f32 in memory that stays in a core's
//! cache.

mod int8;

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};
use pulp::Arch;

use super::gemm::{Matrix, gemm_uninit_strided};
use super::product::{Factor, Left, On, Right, product_uninit};
use super::simd::{Fused, dots, vectorized, vectorized_fused};
use super::stream::{Stream, Unscaled};
use super::uninit::zeros;
use super::widen::widened;
use crate::dtype::Number;
use crate::precision::{Precision, rounded_to_bf16};
pub use int8::Int8Matrix;

/// The most rows of activations of a product that is bound by memory.
pub const GEMV_MAX_ROWS: usize = 32;

/// The least columns of a panel.
const MIN_PANEL_COLUMNS: usize = 16;

/// Values of a panel of weights in f32: 256 KiB, a fourth of a core's second level of cache or less.
const PANEL_VALUES: usize = 1 << 16;

/// Rows of activations whose scalar products with a row of weights are taken together.
const DOTS: usize = 4;

/// How a matrix of weights lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[d_in, d_out]`
    Inputs,
    /// `[d_out, d_in]`: the transpose, as an embedding that serves as the head.
    Outputs,
}

impl Layout {
    /// The most rows of activations with which each weight is read once, in the order in which it lies in memory. Measured on
    /// Zen 4 with weights that come from memory: with 32 rows, that takes two thirds to four fifths of the time of panels, with
    /// 64 as long; scalar products, when each row had its own, took longer than panels from 16 rows on.
    pub fn few_rows(self) -> usize {
        match self {
            Self::Inputs => GEMV_MAX_ROWS,
            Self::Outputs => 8,
        }
    }
}

/// Activations `[rows, width]` as products with any number of [`Weights`] take them.
#[derive(Debug)]
pub struct Activations<'a> {
    held: Held<'a>,
    rows: usize,
    width: usize,
}

#[derive(Debug)]
enum Held<'a> {
    /// And whether weights are to be rounded to bf16, as the values are then.
    Values(Cow<'a, [f32]>, bool),
    /// More than a few rows in bf16.
    Ready(Left<'a>, Precision),
}

impl<'a> Activations<'a> {
    /// # Panics
    ///
    /// When there are not `rows · width` values.
    pub fn new(values: &'a [f32], rows: usize, width: usize, precision: Precision) -> Self {
        let matrix = Matrix::new(values, rows, width);
        let held = match precision {
            Precision::F32 => Held::Values(Cow::Borrowed(values), false),
            Precision::Bf16 if rows <= GEMV_MAX_ROWS => {
                let rounded = values.iter().map(|&value| rounded_to_bf16(value));
                Held::Values(rounded.collect(), true)
            }
            Precision::Bf16 => Held::Ready(Left::new(matrix, precision, On::ThisThread), precision),
        };
        Self { held, rows, width }
    }
}

/// A matrix of weights, or a part of one.
pub trait WeightMatrix: Copy + Send + Sync {
    /// What the start of a range for [`inputs`](Self::inputs) is a multiple of.
    const INPUT_ALIGNMENT: usize;

    /// The part that some of the outputs need.
    #[must_use]
    fn outputs(self, range: Range<usize>) -> Self;

    /// The part that some of the inputs meet.
    #[must_use]
    fn inputs(self, range: Range<usize>) -> Self;

    /// Bytes of the weights.
    fn bytes(&self) -> usize;

    /// `x · f32(weights)` at the precision of x, on this thread alone. Each value is a sum in an order that `d_in` alone
    /// decides, as long as the rows are few.
    ///
    /// # Shapes
    ///
    /// - `x`: `[rows, d_in]`
    /// - `output`: `[rows, d_out]`; it is returned, now with values
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    fn product<'o>(
        self,
        x: &Activations<'_>,
        panel: &mut Vec<f32>,
        output: &'o mut [MaybeUninit<f32>],
    ) -> &'o mut [f32];
}

/// A matrix of weights in a slice, from `d_in` values to `d_out`.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a, T> {
    values: &'a [T],
    d_in: usize,
    d_out: usize,
    /// From one row to the next.
    stride: usize,
    layout: Layout,
}

impl<'a, T: Factor> Weights<'a, T> {
    /// A whole matrix in row-major order.
    ///
    /// # Panics
    ///
    /// When the slice has another length.
    pub fn new(values: &'a [T], d_in: usize, d_out: usize, layout: Layout) -> Self {
        assert_eq!(values.len(), d_in * d_out, "weights [{d_in}, {d_out}]");
        let stride = match layout {
            Layout::Inputs => d_out,
            Layout::Outputs => d_in,
        };
        Self {
            values,
            d_in,
            d_out,
            stride,
            layout,
        }
    }

    /// The product with few rows, of weights that are rounded to bf16 on the way if `ROUND`.
    fn few<const ROUND: bool>(self, x: &[f32], output: &mut [f32]) {
        match self.layout {
            Layout::Inputs => Arch::new().dispatch(Stream::<T, Unscaled, ROUND> {
                x,
                weights: self.values,
                scales: Unscaled,
                stride: self.stride,
                d_in: self.d_in,
                d_out: self.d_out,
                output,
            }),
            Layout::Outputs => vectorized_fused(
                #[inline(always)]
                |fused| self.dots::<ROUND>(x, output, fused),
            ),
        }
    }

    /// The scalar products with one row of weights after the other.
    #[inline(always)]
    fn dots<const ROUND: bool>(self, x: &[f32], output: &mut [f32], fused: Fused) {
        let mut rounded = Vec::new();
        let rows = self.values.chunks(self.stride.max(1)).take(self.d_out);
        for (column, weights) in rows.enumerate() {
            let weights = &weights[..self.d_in];
            // Weights in bf16 are that already.
            let round = ROUND && !T::EXACT_IN_BF16;
            if round {
                rounded.clear();
                rounded.extend(weights.iter().map(|&weight| widened::<T, ROUND>(weight)));
            }
            let parts = output.chunks_mut(DOTS * self.d_out);
            for (x, output) in x.chunks(DOTS * self.d_in).zip(parts) {
                let output = &mut output[column..];
                match round {
                    true => dots_of(x, &rounded, fused, output, self.d_out),
                    false => dots_of(x, weights, fused, output, self.d_out),
                }
            }
        }
    }

    /// With panels of the weights as f32; at once, where they are that already.
    fn panels(self, x: Matrix<'_>, panel: &mut Vec<f32>, output: &mut [MaybeUninit<f32>]) {
        if let Some(values) = T::as_f32(self.values) {
            let matrix = self.matrix(values, self.stride);
            return gemm_uninit_strided(x, matrix, 1.0, output, self.d_out);
        }
        let width = (PANEL_VALUES / self.d_in.max(1)).max(MIN_PANEL_COLUMNS);
        for start in (0..self.d_out).step_by(width) {
            let part = self.outputs(start..(start + width).min(self.d_out));
            let row = part.row();
            panel.clear();
            vectorized(
                #[inline(always)]
                || {
                    for weights in part.values.chunks(part.stride.max(1)).take(part.rows()) {
                        panel.extend(weights[..row].iter().map(|weight| weight.widen()));
                    }
                },
            );
            let matrix = part.matrix(panel, row);
            gemm_uninit_strided(x, matrix, 1.0, &mut output[start..], self.d_out);
        }
    }

    /// Rows as they lie in memory.
    fn rows(&self) -> usize {
        match self.layout {
            Layout::Inputs => self.d_in,
            Layout::Outputs => self.d_out,
        }
    }

    /// Values of such a row.
    fn row(&self) -> usize {
        match self.layout {
            Layout::Inputs => self.d_out,
            Layout::Outputs => self.d_in,
        }
    }

    /// `[d_in, d_out]`, of values that lie as the weights do, with rows `stride` apart.
    fn matrix<'v, V>(&self, values: &'v [V], stride: usize) -> Matrix<'v, V> {
        let matrix = Matrix::strided(values, self.rows(), self.row(), stride);
        match self.layout {
            Layout::Inputs => matrix,
            Layout::Outputs => matrix.t(),
        }
    }
}

impl<T: Factor> WeightMatrix for Weights<'_, T> {
    const INPUT_ALIGNMENT: usize = 1;

    fn outputs(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.d_out);
        let start = match self.layout {
            Layout::Inputs => range.start,
            Layout::Outputs => range.start * self.stride,
        };
        // Without outputs there may be nothing at the start.
        Self {
            values: self.values.get(start..).unwrap_or_default(),
            d_out: range.len(),
            ..self
        }
    }

    fn inputs(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.d_in);
        let start = match self.layout {
            Layout::Inputs => range.start * self.stride,
            Layout::Outputs => range.start,
        };
        Self {
            values: self.values.get(start..).unwrap_or_default(),
            d_in: range.len(),
            ..self
        }
    }

    fn bytes(&self) -> usize {
        self.d_in * self.d_out * size_of::<T>()
    }

    fn product<'o>(
        self,
        x: &Activations<'_>,
        panel: &mut Vec<f32>,
        output: &'o mut [MaybeUninit<f32>],
    ) -> &'o mut [f32] {
        let rows = x.rows;
        assert!(
            x.width == self.d_in && output.len() == rows * self.d_out,
            "[{rows}, {}] times [{}, {}] into {} values",
            x.width,
            self.d_in,
            self.d_out,
            output.len()
        );
        let (x, round) = match &x.held {
            Held::Ready(x, precision) => {
                let weights = self.matrix(self.values, self.stride);
                let weights = Right::new(weights, *precision, On::ThisThread);
                return product_uninit((x, 0..rows), &weights, output);
            }
            Held::Values(values, round) => (&values[..], *round),
        };
        // Panels do not round.
        if rows <= self.layout.few_rows() || round {
            let output = zeros(output);
            if output.is_empty() || x.is_empty() {
                return output;
            }
            match round {
                false => self.few::<false>(x, output),
                true => self.few::<true>(x, output),
            }
            return output;
        }
        self.panels(Matrix::new(x, rows, self.d_in), panel, output);
        // SAFETY: the panels cover all columns, and each product writes its columns of every row.
        #[allow(unsafe_code)]
        unsafe {
            output.assume_init_mut()
        }
    }
}

/// The scalar products of weights with each of at most [`DOTS`] rows of as many values, to places `stride` apart.
#[inline(always)]
fn dots_of<T: Number>(x: &[f32], weights: &[T], fused: Fused, output: &mut [f32], stride: usize) {
    let row = |place: usize| &x[place * weights.len()..][..weights.len()];
    let mut store = |sums: &[f32]| {
        for (place, sum) in output.iter_mut().step_by(stride).zip(sums) {
            *place = *sum;
        }
    };
    match x.len() / weights.len() {
        1 => store(&dots([row(0)], weights, fused)),
        2 => store(&dots([0, 1].map(row), weights, fused)),
        3 => store(&dots([0, 1, 2].map(row), weights, fused)),
        _ => store(&dots([0, 1, 2, 3].map(row), weights, fused)),
    }
}

/// Values of weights in a tensor.
#[derive(Debug)]
pub enum WeightStorage<'a> {
    /// As they are.
    F32(Cow<'a, [f32]>),
    /// To be widened.
    Bf16(Cow<'a, [bf16]>),
    /// To be widened.
    F16(Cow<'a, [f16]>),
}
