//! The steps of which experts consist, in plain tensor operations on any device: [`dispatch`], [`grouped`], [`combine`].
//!
//! [`experts`](super::experts) does the three at once, by kernels where the device has them.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{Activation, ExpertWeights};
use crate::dispatch::{ELSEWHERE, HostPlan};
use crate::linear_reference;
use crate::precision::Precision;
use crate::weight::Weight;

/// A row for each assignment of a token to an expert of the plan, by expert: the token's activations.
///
/// # Shapes
///
/// - `x`: `[tokens, d_model]`
/// - output: `[rows, d_model]`
///
/// # Panics
///
/// When the plan has more tokens.
pub fn dispatch(x: Tensor<2>, plan: &HostPlan) -> Tensor<2> {
    if plan.token_of_row.is_empty() {
        // Some backends refuse to select nothing.
        return Tensor::empty([0, x.dims()[1]], &x.device());
    }
    let rows = indices(&plan.token_of_row, &x.device());
    x.select(0, rows)
}

/// What each expert makes of its rows.
///
/// # Shapes
///
/// - `rows`, output: `[rows, d_model]`, by expert
/// - `experts`: as [`experts`](super::experts) takes them
///
/// # Panics
///
/// When the shapes do not fit those of the plan.
pub fn grouped(
    rows: Tensor<2>,
    experts: ExpertWeights,
    plan: &HostPlan,
    activation: Activation,
    precision: Precision,
) -> Tensor<2> {
    let of = |stack: &Tensor<3>, expert| stack.clone().narrow(0, expert, 1).squeeze_dim::<2>(0);
    let ExpertWeights {
        gate,
        up,
        down,
        biases,
    } = experts;
    let [gate, up, down] = [gate, up, down].map(Weight::dequantized);
    let occupied = (0..plan.experts).filter(|&e| plan.offsets[e] < plan.offsets[e + 1]);
    let outputs = occupied.map(|expert| {
        let (start, end) = (plan.offsets[expert], plan.offsets[expert + 1]);
        let biases = biases.as_ref().map(|biases| {
            [&biases.gate, &biases.up, &biases.down].map(|b| b.clone().narrow(0, expert, 1))
        });
        let x = rows.clone().narrow(0, start, end - start);
        let stacks = [of(&gate, expert), of(&up, expert), of(&down, expert)];
        expert_reference(x, stacks, biases, activation, precision)
    });
    let outputs: Vec<Tensor<2>> = outputs.collect();
    match outputs.is_empty() {
        true => rows,
        false => Tensor::cat(outputs, 0),
    }
}

/// Each token's weighted sum of its rows; zeros for a token that has none.
///
/// # Shapes
///
/// - `rows`: `[rows, d_model]`, by expert
/// - `weights`: `[tokens, top_k]`
/// - output: `[tokens, d_model]`
///
/// # Panics
///
/// When the shapes do not fit those of the plan.
pub fn combine(rows: Tensor<2>, weights: Tensor<2>, plan: &HostPlan) -> Tensor<2> {
    let [count, d_model] = rows.dims();
    let [tokens, top_k] = weights.dims();
    let device = rows.device();
    if tokens == 0 || count == 0 {
        return Tensor::zeros([tokens, d_model], &device);
    }
    let (rows, places) = match plan.row_of_assignment.contains(&ELSEWHERE) {
        false => (rows, plan.row_of_assignment.clone()),
        // A row of zeros behind the others stands for those that are not here.
        true => {
            let places = plan.row_of_assignment.iter();
            let places = places.map(|&row| row.min(count as u32)).collect();
            let zeros = Tensor::zeros([1, d_model], &device);
            (Tensor::cat(vec![rows, zeros], 0), places)
        }
    };
    let rows = rows
        .select(0, indices(&places, &device)) // back in the order of tokens
        .reshape([tokens, top_k, d_model]);
    (rows * weights.unsqueeze_dim(2))
        .sum_dim(1)
        .reshape([tokens, d_model])
}

fn indices(values: &[u32], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

/// One expert's outputs, `[rows, d_model]`; biases are `[1, width]`.
pub(super) fn expert_reference(
    x: Tensor<2>,
    [gate, up, down]: [Tensor<2>; 3],
    biases: Option<[Tensor<2>; 3]>,
    activation: Activation,
    precision: Precision,
) -> Tensor<2> {
    let gate = linear_reference(x.clone(), gate, precision);
    let up = linear_reference(x, up, precision);
    let Some([of_gate, of_up, of_down]) = biases else {
        return linear_reference(activation.reference(gate, up), down, precision);
    };
    let hidden = activation.reference(gate + of_gate, up + of_up);
    linear_reference(hidden, down, precision) + of_down
}
