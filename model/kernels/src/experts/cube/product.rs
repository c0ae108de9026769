//! Products of rows sorted by expert with the experts' matrices, in tiles.
//!
//! How many tiles of rows an expert has is known on the device alone: `rows / 64 + experts` of them are launched,
//! which is enough for every load, each cube finds its expert from the offsets, and those that are left over stop at
//! once. A launch takes at most 65,535 of them, which is 4 million rows.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Plan;
use super::tile::{DEPTH, Float4, SIDE, TILE, UNIT, UNITS, bring, line_of_unit, multiply, size};
use crate::cube::empty_float;

/// An operand with a line for each row.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// Rows sorted by expert, `[rows, width]`.
    Rows(&'a CubeTensor),
    /// Tokens, `[tokens, width]`, of which each row takes its own.
    Tokens(&'a CubeTensor),
}

impl Operand<'_> {
    fn tensor(self) -> CubeTensor {
        let (Self::Rows(tensor) | Self::Tokens(tensor)) = self;
        tensor.clone()
    }

    fn width(self) -> usize {
        self.tensor().shape()[1]
    }

    fn is_by_token(self) -> bool {
        matches!(self, Self::Tokens(_))
    }
}

/// `left · W` with the matrix of each row's expert, `[rows, d_out]`.
///
/// # Shapes
///
/// - `stack`: `[experts, d_in, d_out]`
pub fn rows_by_stack(plan: &Plan, left: Operand, stack: &CubeTensor) -> CubeTensor {
    let output = empty_float(stack, [plan.rows(), stack.shape()[2]]);
    rows_product(plan, left, stack, &output, false, false);
    output
}

/// `left · Wᵀ` with the matrix of each row's expert, `[rows, d_out]`; added to `sum`, where there is one.
///
/// # Shapes
///
/// - `stack`: `[experts, d_out, d_in]`
pub fn rows_by_transposed(
    plan: &Plan,
    left: Operand,
    stack: &CubeTensor,
    sum: Option<CubeTensor>,
) -> CubeTensor {
    let add = sum.is_some();
    let output = sum.unwrap_or_else(|| empty_float(stack, [plan.rows(), stack.shape()[1]]));
    rows_product(plan, left, stack, &output, true, add);
    output
}

fn rows_product(
    plan: &Plan,
    left: Operand,
    stack: &CubeTensor,
    output: &CubeTensor,
    transposed: bool,
    add: bool,
) {
    let d_out = output.shape()[1];
    let tiles = [d_out.div_ceil(TILE), plan.rows() / TILE + plan.experts];
    // SAFETY: every index is compared with the sizes of its tensor before it is used.
    #[allow(unsafe_code)]
    unsafe {
        rows_kernel::launch_unchecked(
            &stack.client,
            CubeCount::new_2d(tiles[0] as u32, tiles[1] as u32),
            CubeDim::new_1d(UNITS as u32),
            left.tensor().into_buffer_arg(),
            stack.clone().into_buffer_arg(),
            plan.assignment_of_row.clone().into_buffer_arg(),
            plan.offsets.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            left.width(),
            d_out,
            plan.top_k,
            plan.experts,
            left.is_by_token(),
            transposed,
            add,
        );
    }
}

/// `leftᵀ · right` over the rows of each expert, `[experts, left, right]`; zeros for an expert without rows.
pub fn stack_gradient(plan: &Plan, left: Operand, right: Operand) -> CubeTensor {
    let shape = [plan.experts, left.width(), right.width()];
    let output = empty_float(&left.tensor(), shape);
    let [experts, tiles_left, tiles_right] =
        [shape[0], shape[1].div_ceil(TILE), shape[2].div_ceil(TILE)].map(|count| count as u32);
    // SAFETY: every index is compared with the sizes of its tensor before it is used.
    #[allow(unsafe_code)]
    unsafe {
        stack_kernel::launch_unchecked(
            &output.client,
            CubeCount::new_3d(tiles_right, tiles_left, experts),
            CubeDim::new_1d(UNITS as u32),
            left.tensor().into_buffer_arg(),
            right.tensor().into_buffer_arg(),
            plan.assignment_of_row.clone().into_buffer_arg(),
            plan.offsets.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            left.width(),
            right.width(),
            plan.top_k,
            left.is_by_token(),
            right.is_by_token(),
        );
    }
    output
}

/// A cube a tile of rows and columns.
#[cube(launch_unchecked)]
fn rows_kernel(
    left: &[f32],
    stack: &[f32],
    assignment_of_row: &[i32],
    offsets: &[i32],
    output: &mut [f32],
    d_in: usize,
    d_out: usize,
    top_k: usize,
    experts: usize,
    #[comptime] by_token: bool,
    #[comptime] transposed: bool,
    #[comptime] add: bool,
) {
    // The expert that this tile belongs to, and its first row.
    let mut expert = 0usize;
    let mut first = CUBE_POS_Y as usize;
    let mut tiles = tiles_of(offsets, 0usize);
    while expert < experts && first >= tiles {
        first -= tiles;
        expert += 1;
        tiles = 0usize;
        if expert < experts {
            tiles = tiles_of(offsets, expert);
        }
    }
    if expert == experts {
        terminate!();
    }
    let row = offsets[expert] as usize + first * TILE;
    let end = offsets[expert + 1] as usize;
    let column = CUBE_POS_X as usize * TILE;
    let unit = UNIT_POS as usize;
    let matrix = expert * d_in * d_out;

    let mut left_tile = Shared::<[Float4]>::new_slice(comptime!(size(true)));
    let mut right_tile = Shared::<[Float4]>::new_slice(comptime!(size(transposed)));
    let mut sums = Array::<f32>::new(UNIT * UNIT);
    #[unroll]
    for place in 0..UNIT * UNIT {
        sums[place] = 0.0f32;
    }

    let mut start = 0usize;
    while start < d_in {
        let rows = (row, end);
        bring(
            left,
            0usize,
            d_in,
            rows,
            start,
            assignment_of_row,
            top_k,
            &mut left_tile,
            true,
            by_token,
        );
        if comptime!(transposed) {
            let columns = (column, d_out);
            bring(
                stack,
                matrix,
                d_in,
                columns,
                start,
                assignment_of_row,
                top_k,
                &mut right_tile,
                true,
                false,
            );
        } else {
            let depth = (start, d_in);
            bring(
                stack,
                matrix,
                d_out,
                depth,
                column,
                assignment_of_row,
                top_k,
                &mut right_tile,
                false,
                false,
            );
        }
        sync_cube();
        multiply(&left_tile, &right_tile, &mut sums, true, transposed);
        sync_cube();
        start += DEPTH;
    }

    #[unroll]
    for i in 0..UNIT {
        let line = row + line_of_unit(unit / SIDE, i, true);
        #[unroll]
        for j in 0..UNIT {
            let across = column + line_of_unit(unit % SIDE, j, transposed);
            if line < end && across < d_out {
                let place = line * d_out + across;
                if comptime!(add) {
                    output[place] += sums[i * UNIT + j];
                } else {
                    output[place] = sums[i * UNIT + j];
                }
            }
        }
    }
}

/// A cube a tile of one expert's matrix; the depth is the expert's rows.
#[cube(launch_unchecked)]
fn stack_kernel(
    left: &[f32],
    right: &[f32],
    assignment_of_row: &[i32],
    offsets: &[i32],
    output: &mut [f32],
    d_left: usize,
    d_right: usize,
    top_k: usize,
    #[comptime] left_by_token: bool,
    #[comptime] right_by_token: bool,
) {
    let expert = CUBE_POS_Z as usize;
    let mut start = offsets[expert] as usize;
    let end = offsets[expert + 1] as usize;
    let line = CUBE_POS_Y as usize * TILE;
    let column = CUBE_POS_X as usize * TILE;
    let unit = UNIT_POS as usize;

    let mut left_tile = Shared::<[Float4]>::new_slice(comptime!(size(false)));
    let mut right_tile = Shared::<[Float4]>::new_slice(comptime!(size(false)));
    let mut sums = Array::<f32>::new(UNIT * UNIT);
    #[unroll]
    for place in 0..UNIT * UNIT {
        sums[place] = 0.0f32;
    }

    while start < end {
        let rows = (start, end);
        bring(
            left,
            0usize,
            d_left,
            rows,
            line,
            assignment_of_row,
            top_k,
            &mut left_tile,
            false,
            left_by_token,
        );
        let rows = (start, end);
        bring(
            right,
            0usize,
            d_right,
            rows,
            column,
            assignment_of_row,
            top_k,
            &mut right_tile,
            false,
            right_by_token,
        );
        sync_cube();
        multiply(&left_tile, &right_tile, &mut sums, false, false);
        sync_cube();
        start += DEPTH;
    }

    let matrix = expert * d_left * d_right;
    #[unroll]
    for i in 0..UNIT {
        let down = line + line_of_unit(unit / SIDE, i, false);
        #[unroll]
        for j in 0..UNIT {
            let across = column + line_of_unit(unit % SIDE, j, false);
            if down < d_left && across < d_right {
                output[matrix + down * d_right + across] = sums[i * UNIT + j];
            }
        }
    }
}

/// Tiles that an expert's rows fill.
#[cube]
fn tiles_of(offsets: &[i32], expert: usize) -> usize {
    ((offsets[expert + 1] - offsets[expert]) as usize).div_ceil(TILE)
}
