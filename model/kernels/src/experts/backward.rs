//! Backward over slices.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::activation::{activate_backward, dot};
use super::forward::{Inputs, Saved};
use super::rows::{Block, block_rows, blocks, combine, gather, pieces, sum_by_expert};
use crate::dispatch::{ELSEWHERE, HostPlan};
use crate::host::gemm::{Accumulate, Matrix};
use crate::host::product::{Left, On, Right, product, product_uninit};
use crate::host::uninit::{vec_uninit_with, vecs_uninit_with};
use crate::precision::Precision;

/// The most rows of a weight matrix's gradient that are computed by one task; a multiple of 32.
const GRADIENT_ROWS: usize = 128;

/// One value for each input that has a gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByInput<T> {
    /// `[tokens, d_model]`
    pub x: T,
    /// `[tokens, top_k]`
    pub weights: T,
    /// `[experts, d_model, d_ff]`
    pub gate: T,
    /// `[experts, d_model, d_ff]`
    pub up: T,
    /// `[experts, d_ff, d_model]`
    pub down: T,
    /// `[experts, d_ff]`
    pub gate_bias: T,
    /// `[experts, d_ff]`
    pub up_bias: T,
    /// `[experts, d_model]`
    pub down_bias: T,
}

impl<T> From<[T; 8]> for ByInput<T> {
    fn from([x, weights, gate, up, down, gate_bias, up_bias, down_bias]: [T; 8]) -> Self {
        Self {
            x,
            weights,
            gate,
            up,
            down,
            gate_bias,
            up_bias,
            down_bias,
        }
    }
}

impl<T> From<ByInput<T>> for [T; 8] {
    fn from(by_input: ByInput<T>) -> Self {
        let ByInput {
            x,
            weights,
            gate,
            up,
            down,
            gate_bias,
            up_bias,
            down_bias,
        } = by_input;
        [x, weights, gate, up, down, gate_bias, up_bias, down_bias]
    }
}

/// The gradients of the inputs that need one, from that of the output, `[tokens, d_model]`.
///
/// Row by row, with `D` the gradients of the rows' tokens and `w` their router weights: first
/// `P = D · W_downᵀ` and what follows from it elementwise, in the places of what was saved (see
/// [`activate_backward`]); then each weight matrix's gradient, a product over all rows of its expert:
/// `d(W_down) = (w h)ᵀ D`, `d(W_gate) = Xᵀ d(gate)`, `d(W_up) = Xᵀ d(up)`; then
/// `d(X) = d(gate) · W_gateᵀ + d(up) · W_upᵀ`, in the place of `D`. Gradients of biases are sums over the rows of each
/// expert: of d(gate), of d(up), and of `w D`.
pub fn backward(
    inputs: &Inputs,
    saved: Saved,
    gradient: &[f32],
    needs_grad: ByInput<bool>,
) -> ByInput<Option<Vec<f32>>> {
    let (plan, d_model, d_ff) = (inputs.plan, inputs.d_model, inputs.d_ff);
    let precision = inputs.precision;
    let blocks = blocks(plan, block_rows(precision));
    let Saved { mut gate, mut up } = saved;
    let mut factors = vec![0.0; plan.token_of_row.len()];
    for (&row, &weight) in plan.row_of_assignment.iter().zip(inputs.weights) {
        if row != ELSEWHERE {
            factors[row as usize] = weight;
        }
    }
    let biased = inputs.biases.is_some();
    let weight_of_row = (biased && needs_grad.down_bias).then(|| factors.clone());
    let (mut by_row, hidden) = hidden_gradients(
        inputs,
        &blocks,
        gradient,
        [&mut gate, &mut up, &mut factors],
    );

    let down = needs_grad.down.then(|| {
        let hidden = transposed(plan, &hidden, d_ff, precision);
        stack_gradient(plan, (&hidden, d_ff), (&by_row, d_model), precision)
    });
    drop(hidden);
    let rows = (needs_grad.gate || needs_grad.up).then(|| gather_all(inputs, &blocks));
    let rows = rows
        .as_deref()
        .map(|rows| transposed(plan, rows, d_model, precision));
    let from_rows = |right: &[f32]| {
        let rows = rows
            .as_deref()
            .expect("there, as one of the two needs a gradient");
        stack_gradient(plan, (rows, d_model), (right, d_ff), precision)
    };
    let sum_of = |rows: &[f32]| sum_by_expert(plan, rows, None, d_ff);
    ByInput {
        down,
        gate_bias: (biased && needs_grad.gate_bias).then(|| sum_of(&gate)),
        up_bias: (biased && needs_grad.up_bias).then(|| sum_of(&up)),
        down_bias: weight_of_row
            .map(|weights| sum_by_expert(plan, &by_row, Some(&weights), d_model)),
        gate: needs_grad.gate.then(|| from_rows(&gate)),
        up: needs_grad.up.then(|| from_rows(&up)),
        weights: needs_grad.weights.then(|| {
            let rows = plan.row_of_assignment.iter();
            let factor = |&row: &u32| factors.get(row as usize).copied().unwrap_or(0.0);
            rows.map(factor).collect()
        }),
        x: needs_grad.x.then(|| {
            row_gradients(inputs, &blocks, [&gate, &up], &mut by_row);
            combine(plan, &by_row, 1, None, d_model)
        }),
    }
}

/// Turns gate, up and router weights of each row, `[rows, d_ff]`, `[rows, d_ff]` and `[rows]`, into their
/// gradients. Returns the output's gradient by row, `[rows, d_model]`, and the hidden activations times the
/// router weight, `[rows, d_ff]`.
fn hidden_gradients(
    inputs: &Inputs,
    blocks: &[Block],
    gradient: &[f32],
    [gate, up, factors]: [&mut [f32]; 3],
) -> (Vec<f32>, Vec<f32>) {
    let (rows, d_model, d_ff) = (factors.len(), inputs.d_model, inputs.d_ff);
    let lengths = |width| blocks.iter().map(move |block| block.rows.len() * width);
    let fill = |[by_row, hidden]: [&mut [MaybeUninit<f32>]; 2]| {
        blocks
            .par_iter()
            .zip(pieces(gate, lengths(d_ff)))
            .zip(pieces(up, lengths(d_ff)))
            .zip(pieces(factors, lengths(1)))
            .zip(pieces(by_row, lengths(d_model)))
            .zip(pieces(hidden, lengths(d_ff)))
            .with_max_len(1)
            .for_each(|(((((block, gate), up), factors), by_row), hidden)| {
                let tokens = &inputs.plan.token_of_row[block.rows.clone()];
                let of_rows: &[f32] = gather(gradient, tokens, d_model, by_row);
                let by_row = Matrix::new(of_rows, tokens.len(), d_model);
                let by_row = Left::new(by_row, inputs.precision, On::ThisThread);
                let down = Matrix::new(inputs.matrix(inputs.down, block.expert), d_ff, d_model);
                let down = Right::new(down.t(), inputs.precision, On::ThisThread);
                let products = product_uninit((&by_row, 0..tokens.len()), &down, hidden);
                activate_backward(inputs.activation, [gate, up, products], factors, d_ff);
                // The bias is a part of what the router's weight multiplies.
                if let Some(biases) = &inputs.biases {
                    let bias = &biases.down[block.expert * d_model..][..d_model];
                    for (factor, row) in factors.iter_mut().zip(of_rows.chunks_exact(d_model)) {
                        *factor += dot(bias, row);
                    }
                }
            });
    };
    // SAFETY: the blocks' pieces fill both, and each is written.
    #[allow(unsafe_code)]
    let [by_row, hidden] = unsafe { vecs_uninit_with([rows * d_model, rows * d_ff], fill) };
    (by_row, hidden)
}

/// x by row, `[rows, d_model]`.
fn gather_all(inputs: &Inputs, blocks: &[Block]) -> Vec<f32> {
    let (plan, d_model) = (inputs.plan, inputs.d_model);
    let length = plan.token_of_row.len() * d_model;
    let fill = |rows: &mut [MaybeUninit<f32>]| {
        let of_block = blocks.iter().map(|block| block.rows.len() * d_model);
        let of_block = pieces(rows, of_block);
        blocks.par_iter().zip(of_block).for_each(|(block, rows)| {
            let tokens = &plan.token_of_row[block.rows.clone()];
            gather(inputs.x, tokens, d_model, rows);
        });
    };
    // SAFETY: the blocks' pieces fill the rows, and each is written.
    #[allow(unsafe_code)]
    unsafe {
        vec_uninit_with(length, fill)
    }
}

/// The rows of each expert, transposed: `[width, rows of the expert]`; `None` for an expert without rows.
fn transposed<'a>(
    plan: &HostPlan,
    rows: &'a [f32],
    width: usize,
    precision: Precision,
) -> Vec<Option<Left<'a>>> {
    of_each_expert(plan, rows, width, |matrix| {
        Left::new(matrix.t(), precision, On::ThisThread)
    })
}

/// What `make` makes of the rows of each expert; `None` for an expert without rows.
fn of_each_expert<'a, R: Send>(
    plan: &HostPlan,
    rows: &'a [f32],
    width: usize,
    make: impl Fn(Matrix<'a>) -> R + Sync,
) -> Vec<Option<R>> {
    let ranges = plan.offsets.par_windows(2).with_max_len(1);
    let ready = ranges.map(|range| {
        let values = &rows[range[0] * width..range[1] * width];
        let rows = range[1] - range[0];
        (rows > 0).then(|| make(Matrix::new(values, rows, width)))
    });
    ready.collect()
}

/// `leftᵀ right` over the rows of each expert, `[experts, left, right]`, each value written once: zeros for an
/// expert without rows.
///
/// A task computes some rows of one matrix from all rows of its expert, so that an expert with most of the load
/// still occupies every core, and sums do not depend on how work is shared out.
///
/// # Shapes
///
/// - `left`: [`transposed`], each `[d_left, rows of the expert]`
/// - `right`: `[rows, d_right]`
fn stack_gradient(
    plan: &HostPlan,
    (left, d_left): (&[Option<Left<'_>>], usize),
    (right, d_right): (&[f32], usize),
    precision: Precision,
) -> Vec<f32> {
    let right = of_each_expert(plan, right, d_right, |matrix| {
        Right::new(matrix, precision, On::ThisThread)
    });
    let length = plan.experts * d_left * d_right;
    let tasks: Vec<_> = left
        .iter()
        .zip(&right)
        .flat_map(|factors| {
            let starts = (0..d_left).step_by(GRADIENT_ROWS);
            starts.map(move |start| (factors, start..(start + GRADIENT_ROWS).min(d_left)))
        })
        .collect();
    let fill =
        |gradient: &mut [MaybeUninit<f32>]| {
            let of_task = tasks.iter().map(|(_, part)| part.len() * d_right);
            let of_task = pieces(gradient, of_task);
            tasks.par_iter().zip(of_task).with_max_len(1).for_each(
                |((factors, part), gradient)| match factors {
                    (Some(left), Some(right)) => {
                        product_uninit((left, part.clone()), right, gradient);
                    }
                    _ => gradient.fill(MaybeUninit::new(0.0)),
                },
            );
        };
    // SAFETY: the tasks' pieces fill the gradient, and each is written.
    #[allow(unsafe_code)]
    unsafe {
        vec_uninit_with(length, fill)
    }
}

/// d(x) by row, `[rows, d_model]`, in place of what is there.
fn row_gradients(inputs: &Inputs, blocks: &[Block], [gate, up]: [&[f32]; 2], by_row: &mut [f32]) {
    let (d_model, d_ff) = (inputs.d_model, inputs.d_ff);
    let of_block = blocks.iter().map(|block| block.rows.len() * d_model);
    blocks
        .par_iter()
        .zip(pieces(by_row, of_block))
        .with_max_len(1)
        .for_each(|(block, by_row)| {
            for (hidden, stack, into) in [
                (gate, inputs.gate, Accumulate::Replace),
                (up, inputs.up, Accumulate::Add),
            ] {
                let hidden = &hidden[block.rows.start * d_ff..block.rows.end * d_ff];
                let rows = block.rows.len();
                let hidden = Matrix::new(hidden, rows, d_ff);
                let hidden = Left::new(hidden, inputs.precision, On::ThisThread);
                let weight = Matrix::new(inputs.matrix(stack, block.expert), d_model, d_ff);
                let weight = Right::new(weight.t(), inputs.precision, On::ThisThread);
                product((&hidden, 0..rows), &weight, into, by_row, d_model);
            }
        });
}
