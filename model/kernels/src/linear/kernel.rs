//! The product over slices and its gradients.
//!
//! Few rows, and weights that have to become f32, are shared out among threads by columns; else both rows and columns are
//! cut.

use std::mem::MaybeUninit;

use crate::host::gemm::Matrix;
use crate::host::gemv::{Activations, GEMV_MAX_ROWS, Int8Matrix, Layout, WeightMatrix, Weights};
use crate::host::product::{Factor, Left, On, Right, product_parallel};
use crate::host::spin_pool::for_each_init;
use crate::host::uninit::vec_uninit_with;
use crate::precision::Precision;

/// Minimum bytes of weights per thread, where rows are few: handing out a task takes a tenth of the time of as many.
const MIN_BYTES_PER_THREAD: usize = 1 << 17;

/// Columns of a task with many rows.
const COLUMNS: usize = 256;

/// `x · f32(weights)` at a precision.
///
/// # Shapes
///
/// - `x`: `[rows, d_in]`
/// - `weights`: as the layout says
/// - output: `[rows, d_out]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn linear<T: Factor>(
    x: &[f32],
    rows: usize,
    weights: &[T],
    [d_in, d_out]: [usize; 2],
    layout: Layout,
    precision: Precision,
) -> Vec<f32> {
    // Weights that must become f32 first do so panel by panel, below.
    let few = rows <= layout.few_rows();
    if !few && (precision == Precision::Bf16 || T::as_f32(weights).is_some()) {
        let weights = matrix(weights, [d_in, d_out], layout);
        return all_threads(Matrix::new(x, rows, d_in), weights, precision);
    }
    let x = Activations::new(x, rows, d_in, precision);
    let weights = Weights::new(weights, d_in, d_out, layout);
    by_columns(&x, rows, weights, d_out, few)
}

/// The same with weights in 8 bits.
///
/// # Shapes
///
/// - `x`: `[rows, d_in]`
/// - output: `[rows, d_out]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn linear_int8(
    x: &[f32],
    rows: usize,
    weights: Int8Matrix<'_>,
    [d_in, d_out]: [usize; 2],
    precision: Precision,
) -> Vec<f32> {
    let x = Activations::new(x, rows, d_in, precision);
    by_columns(&x, rows, weights, d_out, rows <= GEMV_MAX_ROWS)
}

/// The product, shared out among threads by columns; with `few` rows, in as few parts as there are threads.
fn by_columns<W: WeightMatrix>(
    x: &Activations<'_>,
    rows: usize,
    weights: W,
    d_out: usize,
    few: bool,
) -> Vec<f32> {
    let width = match few {
        // The cut changes no bit: a column's sum is the same wherever it is taken.
        true => {
            let parts =
                (weights.bytes() / MIN_BYTES_PER_THREAD).clamp(1, rayon::current_num_threads());
            d_out.div_ceil(parts).next_multiple_of(64)
        }
        false => COLUMNS,
    };
    let fill = |places: &mut [MaybeUninit<f32>]| {
        if width >= d_out {
            weights.product(x, &mut Vec::new(), places);
        } else {
            // Each part writes its columns of every row side by side.
            let parts = places.chunks_mut((rows * width).max(1)).enumerate();
            for_each_init(
                parts.collect(),
                rayon::current_num_threads(),
                Vec::new,
                |panel, (part, places)| {
                    let columns = part * width..((part + 1) * width).min(d_out);
                    let weights = weights.outputs(columns);
                    weights.product(x, panel, places);
                },
            );
        }
    };
    // SAFETY: the parts cover the output, and each product writes all of its part.
    #[allow(unsafe_code)]
    let output = unsafe { vec_uninit_with(rows * d_out, fill) };
    if rows > 1 && width < d_out {
        return side_by_side(&output, rows, d_out, width);
    }
    output
}

/// A product of all rows.
fn all_threads<T: Factor>(a: Matrix<'_>, b: Matrix<'_, T>, precision: Precision) -> Vec<f32> {
    let a = Left::new(a, precision, On::AllThreads);
    product_parallel(&a, &Right::new(b, precision, On::AllThreads))
}

/// `gradient · weightsᵀ`, `[rows, d_in]`
///
/// # Shapes
///
/// - `gradient`: that of the output, `[rows, d_out]`
/// - `weights`: as the layout says
pub fn x_gradient(
    gradient: &[f32],
    rows: usize,
    weights: &[f32],
    [d_in, d_out]: [usize; 2],
    layout: Layout,
    precision: Precision,
) -> Vec<f32> {
    let weights = matrix(weights, [d_in, d_out], layout);
    all_threads(Matrix::new(gradient, rows, d_out), weights.t(), precision)
}

/// `xᵀ · gradient`, or the transpose of it, as the layout says.
///
/// # Shapes
///
/// - `gradient`: that of the output, `[rows, d_out]`
/// - `x`: `[rows, d_in]`
pub fn weight_gradient(
    gradient: &[f32],
    rows: usize,
    x: &[f32],
    [d_in, d_out]: [usize; 2],
    layout: Layout,
    precision: Precision,
) -> Vec<f32> {
    let x = Matrix::new(x, rows, d_in);
    let gradient = Matrix::new(gradient, rows, d_out);
    match layout {
        Layout::Inputs => all_threads(x.t(), gradient, precision),
        Layout::Outputs => all_threads(gradient.t(), x, precision),
    }
}

/// `[d_in, d_out]`, whatever the layout.
fn matrix<T>(weights: &[T], [d_in, d_out]: [usize; 2], layout: Layout) -> Matrix<'_, T> {
    match layout {
        Layout::Inputs => Matrix::new(weights, d_in, d_out),
        Layout::Outputs => Matrix::new(weights, d_out, d_in).t(),
    }
}

/// Row-major order from parts of `width` columns, each of them `[rows, width]`, that stand one after the other.
fn side_by_side(parts: &[f32], rows: usize, d_out: usize, width: usize) -> Vec<f32> {
    let mut output = Vec::with_capacity(parts.len());
    for row in 0..rows {
        for part in parts.chunks(rows * width) {
            let width = part.len() / rows;
            output.extend_from_slice(&part[row * width..][..width]);
        }
    }
    debug_assert_eq!(output.len(), rows * d_out);
    output
}
