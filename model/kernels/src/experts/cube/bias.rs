//! What biases need besides the rest: their sum with products, and their gradients.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::Plan;
use crate::cube::{UNITS, empty_float, sum_of_group, units};

/// Units that work on one row, or on one column of a gradient.
const LANES: usize = 64;

/// Adds each row's expert's bias to it, in place.
///
/// # Shapes
///
/// - `rows`: `[rows, width]`
/// - `bias`: `[experts, width]`
pub fn add(plan: &Plan, rows: &CubeTensor, bias: &CubeTensor) {
    let (count, dim) = units(&rows.client, rows.shape().num_elements());
    add_kernel::launch(
        &rows.client,
        count,
        dim,
        rows.clone().into_buffer_arg(),
        bias.clone().into_buffer_arg(),
        plan.chosen.clone().into_buffer_arg(),
        plan.assignment_of_row.clone().into_buffer_arg(),
        bias.shape()[1],
    );
}

/// Adds to the gradient of each router weight what it has by the bias of its expert's output, in place: the product of that
/// bias with the gradient of its token.
///
/// # Shapes
///
/// - `of_weights`: `[tokens, top_k]`
/// - `bias`: `[experts, width]`
/// - `gradient`: `[tokens, width]`
pub fn add_products(
    plan: &Plan,
    of_weights: &CubeTensor,
    bias: &CubeTensor,
    gradient: &CubeTensor,
) {
    let dim = CubeDim::new_1d(UNITS as u32);
    products_kernel::launch(
        &bias.client,
        calculate_cube_count_elemwise(&bias.client, plan.rows() * LANES, dim),
        dim,
        of_weights.clone().into_buffer_arg(),
        bias.clone().into_buffer_arg(),
        gradient.clone().into_buffer_arg(),
        plan.chosen.clone().into_buffer_arg(),
        bias.shape()[1],
        plan.top_k,
    );
}

/// What the gradient of a bias is the sum of, over the rows of each expert.
#[derive(Debug, Clone, Copy)]
pub enum Summand<'a> {
    /// Rows sorted by expert, `[rows, width]`.
    Rows(&'a CubeTensor),
    /// Tokens, `[tokens, width]`, of which each row takes its own, times its router weight, `[tokens, top_k]`.
    Tokens(&'a CubeTensor, &'a CubeTensor),
}

/// The gradient of a bias, `[experts, width]`.
pub fn gradient(plan: &Plan, summand: Summand) -> CubeTensor {
    let (values, weights) = match summand {
        Summand::Rows(rows) => (rows, None),
        Summand::Tokens(tokens, weights) => (tokens, Some(weights)),
    };
    let width = values.shape()[1];
    let gradient = empty_float(values, [plan.experts, width]);
    let columns = width.div_ceil(UNITS / LANES);
    gradient_kernel::launch(
        &values.client,
        CubeCount::new_2d(columns as u32, plan.experts as u32),
        CubeDim::new_1d(UNITS as u32),
        values.clone().into_buffer_arg(),
        weights.unwrap_or(values).clone().into_buffer_arg(),
        plan.assignment_of_row.clone().into_buffer_arg(),
        plan.offsets.clone().into_buffer_arg(),
        gradient.clone().into_buffer_arg(),
        width,
        plan.top_k,
        weights.is_some(),
    );
    gradient
}

/// A unit a value.
#[cube(launch)]
fn add_kernel(
    rows: &mut [f32],
    bias: &[f32],
    chosen: &[i32],
    assignment_of_row: &[i32],
    width: usize,
) {
    if ABSOLUTE_POS >= rows.len() {
        terminate!();
    }
    let expert = chosen[assignment_of_row[ABSOLUTE_POS / width] as usize] as usize;
    rows[ABSOLUTE_POS] += bias[expert * width + ABSOLUTE_POS % width];
}

/// A cube four assignments; the 64 units of one take every 64th value of the width.
#[cube(launch)]
fn products_kernel(
    of_weights: &mut [f32],
    bias: &[f32],
    gradient: &[f32],
    chosen: &[i32],
    width: usize,
    top_k: usize,
) {
    let assignment = ABSOLUTE_POS / LANES;
    let lane = ABSOLUTE_POS % LANES;
    let mut place = lane;
    let mut of_bias = 0usize;
    let mut of_token = 0usize;
    if assignment < chosen.len() {
        of_bias = chosen[assignment] as usize * width;
        of_token = assignment / top_k * width;
    } else {
        place = width;
    }
    let mut sum = 0.0f32;
    while place < width {
        sum += bias[of_bias + place] * gradient[of_token + place];
        place += LANES;
    }
    let sum = sum_of_group(sum, LANES);
    if assignment < chosen.len() && lane == 0 {
        of_weights[assignment] += sum;
    }
}

/// A cube four columns of one expert; the 64 units of a column take every 64th row.
#[cube(launch)]
fn gradient_kernel(
    values: &[f32],
    weights: &[f32],
    assignment_of_row: &[i32],
    offsets: &[i32],
    gradient: &mut [f32],
    width: usize,
    top_k: usize,
    #[comptime] by_token: bool,
) {
    let expert = CUBE_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let lane = unit % LANES;
    let column = CUBE_POS_X as usize * comptime!(UNITS / LANES) + unit / LANES;
    let mut row = offsets[expert] as usize + lane;
    let mut end = offsets[expert + 1] as usize;
    if column >= width {
        end = 0usize;
    }
    let mut sum = 0.0f32;
    while row < end {
        if comptime!(by_token) {
            let assignment = assignment_of_row[row] as usize;
            sum += weights[assignment] * values[assignment / top_k * width + column];
        } else {
            sum += values[row * width + column];
        }
        row += LANES;
    }
    let sum = sum_of_group(sum, LANES);
    if column < width && lane == 0 {
        gradient[expert * width + column] = sum;
    }
}
