//! RMSNorm in CubeCL: a cube works on eight rows at a time.
//!
//! Forward is one launch. Backward is two: each cube of the first turns the gradients of a block of rows into those
//! of `x` and adds up what they give to γ's; the second adds up the blocks, in their order.

use burn::backend::{Cube, TensorMetadata};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::RmsNorm;
use crate::cube::{UNITS, contiguous, empty_float, owned, sum_of_group, vector_size, zeros};
use crate::operation::Operation;

/// Rows that a cube works on at a time.
const ROWS: usize = 8;
/// Units that work on one row, or on one column of the blocks' sums.
const UNITS_PER_ROW: usize = UNITS / ROWS;

/// Blocks of rows at most: enough for any device, and few enough for their sums to be quickly added up.
const BLOCKS: usize = 1024;

impl Operation<Cube, 2> for RmsNorm {
    /// `x`, `gamma`, and `1 / √(mean(x²) + ε)` of each row.
    type Saved = [CubeTensor; 3];

    fn forward_saving(self, [x, gamma]: [CubeTensor; 2]) -> (CubeTensor, Self::Saved) {
        let width = gamma.shape().num_elements();
        let rows = x.shape().num_elements() / width;
        let inverse = empty_float(&x, [rows]);
        let output = empty_float(&x, x.shape());
        if rows == 0 {
            return (output, [x, gamma, inverse]);
        }
        let size = vector_size(width);
        let dim = CubeDim::new_1d(UNITS as u32);
        forward_kernel::launch(
            &x.client,
            calculate_cube_count_elemwise(&x.client, rows * UNITS_PER_ROW, dim),
            dim,
            size,
            contiguous(x.clone()).into_buffer_arg(),
            contiguous(gamma.clone()).into_buffer_arg(),
            inverse.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            width / size,
            self.epsilon,
        );
        (output, [x, gamma, inverse])
    }

    fn backward(
        [x, gamma, inverse]: Self::Saved,
        gradient: CubeTensor,
        _: [bool; 2],
    ) -> [Option<CubeTensor>; 2] {
        let width = gamma.shape().num_elements();
        let rows = inverse.shape().num_elements();
        if rows == 0 {
            let none = zeros(&gamma, gamma.shape(), DType::F32);
            return [Some(gradient), Some(none)];
        }
        let gradient = owned(gradient);
        let turns = rows.div_ceil(ROWS * BLOCKS);
        let blocks = rows.div_ceil(ROWS * turns);
        let parts = empty_float(&x, [blocks, width]);
        let size = vector_size(width);
        let dim = CubeDim::new_1d(UNITS as u32);
        backward_kernel::launch(
            &x.client,
            CubeCount::new_1d(blocks as u32),
            dim,
            size,
            gradient.clone().into_buffer_arg(),
            contiguous(x.clone()).into_buffer_arg(),
            contiguous(gamma.clone()).into_buffer_arg(),
            inverse.into_buffer_arg(),
            parts.clone().into_buffer_arg(),
            width / size,
            turns,
        );
        let gamma_gradient = empty_float(&gamma, [width]);
        columns_kernel::launch(
            &x.client,
            calculate_cube_count_elemwise(&x.client, width * ROWS, dim),
            dim,
            parts.into_buffer_arg(),
            gamma_gradient.clone().into_buffer_arg(),
            blocks,
        );
        [Some(gradient), Some(gamma_gradient)]
    }
}

/// A cube eight rows of `width` vectors; the 32 units of a row take every 32nd vector of it.
#[cube(launch)]
fn forward_kernel<N: Size>(
    x: &[Vector<f32, N>],
    gamma: &[Vector<f32, N>],
    inverse: &mut [f32],
    output: &mut [Vector<f32, N>],
    width: usize,
    epsilon: f32,
) {
    let row = ABSOLUTE_POS / UNITS_PER_ROW;
    let lane = ABSOLUTE_POS % UNITS_PER_ROW;
    let start = row * width;
    let mut end = start;
    if row < inverse.len() {
        end += width;
    }
    let mut place = start + lane;
    let mut squares = Vector::<f32, N>::new(0.0f32);
    while place < end {
        let vector = x[place];
        squares += vector * vector;
        place += UNITS_PER_ROW;
    }
    let sum = sum_of_group(squares.vector_sum(), UNITS_PER_ROW);
    let scale = 1.0f32 / (sum / (width * N::value()) as f32 + epsilon).sqrt();
    if row < inverse.len() && lane == 0 {
        inverse[row] = scale;
    }
    let mut place = start + lane;
    while place < end {
        output[place] = x[place] * Vector::new(scale) * gamma[place - start];
        place += UNITS_PER_ROW;
    }
}

/// A cube a block of `turns` times eight rows of `width` vectors. In each turn the 32 units of a row find
/// `s³ mean(h ⊙ x)`, then all of them pass over the columns of the eight rows, which are still in the cache.
#[cube(launch)]
fn backward_kernel<N: Size>(
    gradient: &mut [Vector<f32, N>],
    x: &[Vector<f32, N>],
    gamma: &[Vector<f32, N>],
    inverse: &[f32],
    parts: &mut [Vector<f32, N>],
    width: usize,
    turns: usize,
) {
    let unit = UNIT_POS as usize;
    let mut along = Shared::<[f32]>::new_slice(ROWS);
    for turn in 0..turns {
        let first = (CUBE_POS * turns + turn) * ROWS;
        let row = first + unit / UNITS_PER_ROW;
        let start = row * width;
        let mut end = start;
        if row < inverse.len() {
            end += width;
        }
        let mut place = start + unit % UNITS_PER_ROW;
        let mut products = Vector::<f32, N>::new(0.0f32);
        while place < end {
            products += gradient[place] * gamma[place - start] * x[place];
            place += UNITS_PER_ROW;
        }
        let sum = sum_of_group(products.vector_sum(), UNITS_PER_ROW);
        if row < inverse.len() && unit.is_multiple_of(UNITS_PER_ROW) {
            let scale = inverse[row];
            along[unit / UNITS_PER_ROW] =
                scale * scale * scale * (sum / (width * N::value()) as f32);
        }
        sync_cube();

        let last = usize::min(first + ROWS, inverse.len());
        let mut column = unit;
        while column < width {
            let gain = gamma[column];
            let part = CUBE_POS * width + column;
            let mut sum = Vector::<f32, N>::new(0.0f32);
            if turn > 0 {
                sum = parts[part];
            }
            for row in first..last {
                let place = row * width + column;
                let value = x[place];
                let scaled = gradient[place] * Vector::new(inverse[row]);
                sum += scaled * value;
                gradient[place] = scaled * gain - value * Vector::new(along[row - first]);
            }
            parts[part] = sum;
            column += UNITS;
        }
        sync_cube();
    }
}

/// Adds up the blocks' sums; a cube 32 columns, eight units each.
#[cube(launch)]
fn columns_kernel(parts: &[f32], output: &mut [f32], blocks: usize) {
    let unit = UNIT_POS as usize;
    let width = output.len();
    let column = CUBE_POS * UNITS_PER_ROW + unit % UNITS_PER_ROW;
    let mut sum = 0.0f32;
    if column < width {
        let mut block = unit / UNITS_PER_ROW;
        while block < blocks {
            sum += parts[block * width + column];
            block += ROWS;
        }
    }
    let mut sums = Shared::<[f32]>::new_slice(UNITS);
    sums[unit] = sum;
    sync_cube();
    if unit < UNITS_PER_ROW && column < width {
        let mut total = 0.0f32;
        for line in 0..ROWS {
            total += sums[line * UNITS_PER_ROW + unit];
        }
        output[column] = total;
    }
}
