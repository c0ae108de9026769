//! The elementwise part of a SwiGLU, forward and backward.
//!
//! `pulp` compiles each loop for several widths of vectors and chooses one at run time. The sums are taken in
//! lanes of a fixed number, so that the choice changes no bit.

use std::mem::MaybeUninit;

use pulp::{Arch, Simd, WithSimd};

use crate::host::exp::exp;

/// Partial sums of a row.
const LANES: usize = 16;

/// `silu(gate) ⊙ up` into `hidden`, with `silu(g) = g · σ(g)`. All of one length.
pub fn activate<'a>(gate: &[f32], up: &[f32], hidden: &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] {
    assert!(gate.len() == hidden.len() && up.len() == hidden.len());
    Arch::new().dispatch(Activate {
        gate,
        up,
        hidden: &mut *hidden,
    });
    // SAFETY: all three have one length, as was asserted, so that each value was written.
    #[allow(unsafe_code)]
    unsafe {
        hidden.assume_init_mut()
    }
}

struct Activate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    hidden: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for ((hidden, &gate), &up) in self.hidden.iter_mut().zip(self.gate).zip(self.up) {
            hidden.write(gate * sigmoid(gate) * up);
        }
    }
}

/// The backward pass of `output = factor · (silu(gate) ⊙ up) · W_down` up to the products, in place.
///
/// With `p = d(output) · W_downᵀ` and `h = silu(gate) ⊙ up`, for each row:
///
/// - d(factor) `= Σ h ⊙ p`
/// - d(gate) `= factor · p ⊙ up ⊙ silu'(gate)`, with `silu'(g) = σ(g) (1 + g (1 − σ(g)))`
/// - d(up) `= factor · p ⊙ silu(gate)`
///
/// # Shapes
///
/// - `gate`, `up`, `products`: `[rows, width]`; hold gate, up and p before, and d(gate), d(up) and `factor · h`
///   after
/// - `factors`: `[rows]`; holds d(factor) after
pub fn activate_backward(
    gate: &mut [f32],
    up: &mut [f32],
    products: &mut [f32],
    factors: &mut [f32],
    width: usize,
) {
    let size = factors.len() * width;
    assert!(gate.len() == size && up.len() == size && products.len() == size);
    Arch::new().dispatch(ActivateBackward {
        gate,
        up,
        products,
        factors,
        width,
    });
}

struct ActivateBackward<'a> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
    products: &'a mut [f32],
    factors: &'a mut [f32],
    width: usize,
}

impl WithSimd for ActivateBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self
            .gate
            .chunks_exact_mut(self.width)
            .zip(self.up.chunks_exact_mut(self.width))
            .zip(self.products.chunks_exact_mut(self.width));
        for (((gate, up), products), factor) in rows.zip(self.factors) {
            *factor = backward_of_row(gate, up, products, *factor);
        }
    }
}

#[inline(always)]
fn backward_of_row(gate: &mut [f32], up: &mut [f32], products: &mut [f32], factor: f32) -> f32 {
    let (gate, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (up, up_rest) = up.as_chunks_mut::<LANES>();
    let (products, products_rest) = products.as_chunks_mut::<LANES>();
    let mut sums = [0.0f32; LANES];
    for ((gate, up), product) in gate.iter_mut().zip(up).zip(products) {
        for lane in 0..LANES {
            sums[lane] +=
                backward_of_value(&mut gate[lane], &mut up[lane], &mut product[lane], factor);
        }
    }
    let mut sum = 0.0;
    for lane in sums {
        sum += lane;
    }
    let rest = gate_rest.iter_mut().zip(up_rest).zip(products_rest);
    for ((gate, up), product) in rest {
        sum += backward_of_value(gate, up, product, factor);
    }
    sum
}

/// Returns `h · p`.
#[inline(always)]
fn backward_of_value(gate: &mut f32, up: &mut f32, product: &mut f32, factor: f32) -> f32 {
    let sigma = sigmoid(*gate);
    let silu = *gate * sigma;
    let hidden = silu * *up;
    let term = hidden * *product;
    let gradient = factor * *product;
    *product = factor * hidden;
    *gate = gradient * *up * (sigma * (1.0 + *gate * (1.0 - sigma)));
    *up = gradient * silu;
    term
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
