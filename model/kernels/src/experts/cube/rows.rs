//! What stands between the products: activation, and the sum over a token's rows.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::super::Activation;
use super::Plan;
use crate::cube::{UNITS, empty_float, sum_of_group, units};

/// Units that work on one row.
const LANES: usize = 64;

/// Whether an activation is clamped; its alpha and its limit, or two numbers that nobody reads.
fn clamp_of(activation: Activation) -> (bool, f32, f32) {
    match activation {
        Activation::Swiglu => (false, 0.0, 0.0),
        Activation::ClampedSwiglu { alpha, limit } => (true, alpha, limit),
    }
}

/// The hidden activations of gate and up, all `[rows, d_ff]`.
pub fn activate(activation: Activation, gate: &CubeTensor, up: &CubeTensor) -> CubeTensor {
    let hidden = empty_float(gate, gate.shape());
    let (count, dim) = units(&gate.client, gate.shape().num_elements());
    let (clamped, alpha, limit) = clamp_of(activation);
    activate_kernel::launch(
        &gate.client,
        count,
        dim,
        gate.clone().into_buffer_arg(),
        up.clone().into_buffer_arg(),
        hidden.clone().into_buffer_arg(),
        alpha,
        limit,
        clamped,
    );
    hidden
}

/// The elementwise part of the backward pass, in place, with the formulas of
/// [`activate_backward`](super::super::activation::activate_backward): `gate`, `up` and `products`, `[rows, d_ff]`,
/// hold d(gate), d(up) and the hidden activations times the router weight after. Returns d(weights),
/// `[tokens, top_k]`.
pub fn activate_backward(
    plan: &Plan,
    activation: Activation,
    [gate, up, products]: [&CubeTensor; 3],
    weights: &CubeTensor,
) -> CubeTensor {
    let [rows, width] = gate.shape().dims();
    let gradient = empty_float(weights, weights.shape());
    let dim = CubeDim::new_1d(UNITS as u32);
    let (clamped, alpha, limit) = clamp_of(activation);
    activate_backward_kernel::launch(
        &gate.client,
        calculate_cube_count_elemwise(&gate.client, rows * LANES, dim),
        dim,
        gate.clone().into_buffer_arg(),
        up.clone().into_buffer_arg(),
        products.clone().into_buffer_arg(),
        weights.clone().into_buffer_arg(),
        plan.assignment_of_row.clone().into_buffer_arg(),
        gradient.clone().into_buffer_arg(),
        width,
        alpha,
        limit,
        clamped,
    );
    gradient
}

/// `output[t] = Σ_j weights[t, j] · rows[row of (t, j)]`, `[tokens, width]`; weights of 1 when absent.
pub fn combine(plan: &Plan, rows: &CubeTensor, weights: Option<&CubeTensor>) -> CubeTensor {
    let [_, width] = rows.shape().dims();
    let output = empty_float(rows, [plan.tokens, width]);
    let (count, dim) = units(&rows.client, plan.tokens * width);
    combine_kernel::launch(
        &rows.client,
        count,
        dim,
        rows.clone().into_buffer_arg(),
        weights.unwrap_or(rows).clone().into_buffer_arg(),
        plan.row_of_assignment.clone().into_buffer_arg(),
        output.clone().into_buffer_arg(),
        width,
        plan.top_k,
        weights.is_some(),
    );
    output
}

#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}

/// A unit a value.
#[cube(launch)]
fn activate_kernel(
    gate: &[f32],
    up: &[f32],
    hidden: &mut [f32],
    alpha: f32,
    limit: f32,
    #[comptime] clamped: bool,
) {
    if ABSOLUTE_POS >= hidden.len() {
        terminate!();
    }
    let mut value = gate[ABSOLUTE_POS];
    let mut factor = up[ABSOLUTE_POS];
    if comptime!(clamped) {
        value = at_most(value, limit);
        factor = -at_most(-at_most(factor, limit), limit) + 1.0f32;
        hidden[ABSOLUTE_POS] = value * sigmoid(alpha * value) * factor;
    } else {
        hidden[ABSOLUTE_POS] = value * sigmoid(value) * factor;
    }
}

/// A comparison that lets NaN pass.
#[cube]
fn at_most(value: f32, limit: f32) -> f32 {
    let mut result = value;
    if value > limit {
        result = limit;
    }
    result
}

/// A cube four rows; the 64 units of a row take every 64th value of it.
#[cube(launch)]
fn activate_backward_kernel(
    gate: &mut [f32],
    up: &mut [f32],
    products: &mut [f32],
    weights: &[f32],
    assignment_of_row: &[i32],
    gradient: &mut [f32],
    width: usize,
    alpha: f32,
    limit: f32,
    #[comptime] clamped: bool,
) {
    let row = ABSOLUTE_POS / LANES;
    let lane = ABSOLUTE_POS % LANES;
    let mut assignment = 0usize;
    let mut end = 0usize;
    if row < assignment_of_row.len() {
        assignment = assignment_of_row[row] as usize;
        end = (row + 1) * width;
    }
    let factor = weights[assignment];
    let mut place = row * width + lane;
    let mut sum = 0.0f32;
    while place < end {
        let before = gate[place];
        let factor_before = up[place];
        let mut value = before;
        let mut raised = factor_before;
        let mut scaled = before;
        if comptime!(clamped) {
            value = at_most(before, limit);
            raised = -at_most(-at_most(factor_before, limit), limit) + 1.0f32;
            scaled = alpha * value;
        }
        let sigma = sigmoid(scaled);
        let gated = value * sigma;
        let hidden = gated * raised;
        let product = products[place];
        sum += hidden * product;
        let mut of_gate =
            factor * product * raised * (sigma * (1.0f32 + scaled * (1.0f32 - sigma)));
        let mut of_up = factor * product * gated;
        if comptime!(clamped) {
            if before > limit {
                of_gate = 0.0f32;
            }
            if factor_before.abs() > limit {
                of_up = 0.0f32;
            }
        }
        gate[place] = of_gate;
        up[place] = of_up;
        products[place] = factor * hidden;
        place += LANES;
    }
    let sum = sum_of_group(sum, LANES);
    if row < assignment_of_row.len() && lane == 0 {
        gradient[assignment] = sum;
    }
}

/// A unit a value of the output.
#[cube(launch)]
fn combine_kernel(
    rows: &[f32],
    weights: &[f32],
    row_of_assignment: &[i32],
    output: &mut [f32],
    width: usize,
    top_k: usize,
    #[comptime] weighted: bool,
) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let first = ABSOLUTE_POS / width * top_k;
    let column = ABSOLUTE_POS % width;
    let mut sum = 0.0f32;
    for assignment in first..first + top_k {
        let value = rows[row_of_assignment[assignment] as usize * width + column];
        if comptime!(weighted) {
            sum += weights[assignment] * value;
        } else {
            sum += value;
        }
    }
    output[ABSOLUTE_POS] = sum;
}
