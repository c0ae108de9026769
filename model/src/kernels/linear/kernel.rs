//! The product over slices, shared out among threads by its columns.

use rayon::prelude::*;

use crate::kernels::weights::{FEW, Layout, Weights};
use crate::number::Number;

/// The least bytes of weights that are worth another thread, where rows are few: handing them out takes as long as a
/// tenth of them.
const SHARE: usize = 1 << 17;

/// Columns of a task with many rows.
const COLUMNS: usize = 256;

/// `x · f32(weights)`
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
pub fn linear<T: Number>(
    x: &[f32],
    rows: usize,
    weights: &[T],
    [d_in, d_out]: [usize; 2],
    layout: Layout,
) -> Vec<f32> {
    let weights = Weights::new(weights, d_in, d_out, layout);
    let width = match rows <= FEW {
        // The cut changes no bit: a column's sum is the same wherever it is taken.
        true => {
            let parts = (weights.bytes() / SHARE).clamp(1, rayon::current_num_threads());
            d_out.div_ceil(parts).next_multiple_of(64)
        }
        false => COLUMNS,
    };
    let length = rows * d_out;
    let mut output = Vec::with_capacity(length);
    let places = &mut output.spare_capacity_mut()[..length];
    if width >= d_out {
        weights.product(x, rows, &mut Vec::new(), places);
    } else {
        // Each part writes its columns of every row side by side.
        places
            .par_chunks_mut((rows * width).max(1))
            .with_max_len(1)
            .enumerate()
            .for_each_init(Vec::new, |panel, (part, places)| {
                let columns = part * width..((part + 1) * width).min(d_out);
                weights.outputs(columns).product(x, rows, panel, places);
            });
    }
    // SAFETY: the parts cover the output, and each product writes all of its part.
    #[allow(unsafe_code)]
    unsafe {
        output.set_len(length);
    }
    if rows > 1 && width < d_out {
        return side_by_side(&output, rows, d_out, width);
    }
    output
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
