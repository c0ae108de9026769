//! Gradients, with the weights computed again block by block (FlashAttention-2, arXiv 2307.08691, algorithm 2).
//!
//! With weights P = exp(S − log_sum_exp), S the scores and dO the gradient of the output:
//! dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum(dO ∘ O)), dQ = dS K, dK = dSᵀ Q.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Saved;
use super::tile::Float2;
use crate::cube::{UNITS, empty_float, sum_of_group, units};

/// What the gradients of all three inputs are made of.
pub struct Pass<'a> {
    /// Of the forward pass.
    pub saved: &'a Saved,
    /// That of the output, `[batch · length, heads · head_dim]`.
    pub gradient: CubeTensor,
    /// ln Σ exp(score) and rowsum(dO ∘ O) of each row of scores, `[batch, length, heads, 2]`.
    pub rows: CubeTensor,
}

impl<'a> Pass<'a> {
    /// From the gradient of the output, in row-major order.
    pub fn new(saved: &'a Saved, gradient: CubeTensor) -> Self {
        let shape = saved.shape;
        let [batch, length, heads] = [shape.batch, shape.length, shape.heads];
        let rows = empty_float(&gradient, [batch, length, heads, 2]);
        let (count, dim) = units(&gradient.client, batch * length * heads);
        rows_kernel::launch(
            &gradient.client,
            count,
            dim,
            saved.output.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            saved.log_sum_exp.clone().into_buffer_arg(),
            rows.clone().into_buffer_arg(),
            shape.head_dim / 2,
        );
        Self {
            saved,
            gradient,
            rows,
        }
    }

    /// The gradient of the sinks, `[heads]`: of scores without a value, −exp(sink − log_sum_exp) · rowsum(dO ∘ O).
    pub fn sinks(&self) -> CubeTensor {
        let Saved { sinks, shape, .. } = self.saved;
        let output = empty_float(sinks, [shape.heads]);
        sinks_kernel::launch(
            &sinks.client,
            CubeCount::new_1d(shape.heads as u32),
            CubeDim::new_1d(UNITS as u32),
            self.rows.clone().into_buffer_arg(),
            sinks.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            shape.batch * shape.length,
            shape.heads,
        );
        output
    }

    /// Query, key, value, the gradient of the output, and the rows.
    pub fn inputs(&self) -> [CubeTensor; 5] {
        let saved = self.saved;
        [
            &saved.query,
            &saved.key,
            &saved.value,
            &self.gradient,
            &self.rows,
        ]
        .map(Clone::clone)
    }
}

/// A unit a row.
#[cube(launch)]
fn rows_kernel(
    output: &[Float2],
    gradient: &[Float2],
    log_sum_exp: &[f32],
    rows: &mut [Float2],
    pairs: usize,
) {
    if ABSOLUTE_POS >= rows.len() {
        terminate!();
    }
    let first = ABSOLUTE_POS * pairs;
    let mut sums = Float2::new(0.0f32);
    for place in first..first + pairs {
        sums += output[place] * gradient[place];
    }
    let mut row = Float2::new(log_sum_exp[ABSOLUTE_POS]);
    row.insert(1usize, sums.extract(0usize) + sums.extract(1usize));
    rows[ABSOLUTE_POS] = row;
}

/// A cube a head, whose units take every 256th token each.
#[cube(launch)]
fn sinks_kernel(rows: &[Float2], sinks: &[f32], output: &mut [f32], tokens: usize, heads: usize) {
    let head = CUBE_POS_X as usize;
    let sink = sinks[head];
    let mut sum = 0.0f32;
    let mut token = UNIT_POS as usize;
    while token < tokens {
        let row = rows[token * heads + head];
        sum -= (sink - row.extract(0usize)).exp() * row.extract(1usize);
        token += UNITS;
    }
    let sum = sum_of_group(sum, UNITS);
    if UNIT_POS == 0 {
        output[head] = sum;
    }
}
