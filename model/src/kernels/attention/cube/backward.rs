//! Gradients, with the weights computed again block by block (FlashAttention-2, arXiv 2307.08691, algorithm 2).
//!
//! With weights P = exp(S − log_sum_exp), S the scores and dO the gradient of the output:
//! dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum(dO ∘ O)), dQ = dS K, dK = dSᵀ Q.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Saved;
use super::tile::Pair;
use crate::kernels::cube::{empty_float, units};

/// What the gradients of all three inputs are made of.
pub struct Pass<'a> {
    /// Of the forward pass.
    pub saved: &'a Saved,
    /// That of the output, `[batch · length, heads · head_dim]`.
    pub gradient: CubeTensor,
    /// rowsum(dO ∘ O), `[batch, length, heads]`.
    pub shifts: CubeTensor,
}

impl<'a> Pass<'a> {
    /// From the gradient of the output, in row-major order.
    pub fn new(saved: &'a Saved, gradient: CubeTensor) -> Self {
        let shifts = empty_float(&gradient, saved.log_sum_exp.shape());
        let (count, dim) = units(&gradient.client, shifts.shape().num_elements());
        shifts_kernel::launch(
            &gradient.client,
            count,
            dim,
            saved.output.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            shifts.clone().into_buffer_arg(),
            saved.shape.head_dim / 2,
        );
        Self {
            saved,
            gradient,
            shifts,
        }
    }

    /// Query, key, value, the gradient of the output, ln Σ exp(score) and the shifts.
    pub fn inputs(&self) -> [CubeTensor; 6] {
        let saved = self.saved;
        [
            &saved.query,
            &saved.key,
            &saved.value,
            &self.gradient,
            &saved.log_sum_exp,
            &self.shifts,
        ]
        .map(Clone::clone)
    }
}

/// A unit a row.
#[cube(launch)]
fn shifts_kernel(output: &[Pair], gradient: &[Pair], shifts: &mut [f32], pairs: usize) {
    if ABSOLUTE_POS >= shifts.len() {
        terminate!();
    }
    let first = ABSOLUTE_POS * pairs;
    let mut sums = Pair::new(0.0f32);
    for place in first..first + pairs {
        sums += output[place] * gradient[place];
    }
    shifts[ABSOLUTE_POS] = sums.extract(0usize) + sums.extract(1usize);
}
