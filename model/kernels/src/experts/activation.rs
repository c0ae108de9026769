//! The elementwise part of an expert, forward and backward.
//!
//! `pulp` compiles each loop for several widths of vectors and chooses one at run time. The sums are taken in
//! lanes of a fixed number, so that the choice changes no bit.

use std::mem::MaybeUninit;

use pulp::{Arch, Simd, WithSimd};

use super::spec::Activation;
use crate::host::exp::exp;

/// Partial sums of a row.
const LANES: usize = 16;

/// The formula of an [`Activation`], so that loops over it are compiled for each by itself.
trait Formula: Copy {
    /// The hidden activation.
    fn value(self, gate: f32, up: f32) -> f32;

    /// The hidden activation, and the gradients of gate and up from that of it.
    fn backward(self, gate: f32, up: f32, gradient: f32) -> [f32; 3];
}

#[derive(Clone, Copy)]
struct Swiglu;

impl Formula for Swiglu {
    #[inline(always)]
    fn value(self, gate: f32, up: f32) -> f32 {
        gate * sigmoid(gate) * up
    }

    #[inline(always)]
    fn backward(self, gate: f32, up: f32, gradient: f32) -> [f32; 3] {
        let sigma = sigmoid(gate);
        let silu = gate * sigma;
        let of_gate = gradient * up * (sigma * (1.0 + gate * (1.0 - sigma)));
        [silu * up, of_gate, gradient * silu]
    }
}

#[derive(Clone, Copy)]
struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
}

impl ClampedSwiglu {
    /// `g` and `u + 1`. Comparisons that let NaN pass.
    #[inline(always)]
    fn clamped(self, gate: f32, up: f32) -> (f32, f32) {
        let limit = self.limit;
        let gate = if gate > limit { limit } else { gate };
        let up = if up > limit { limit } else { up };
        let up = if up < -limit { -limit } else { up };
        (gate, up + 1.0)
    }
}

impl Formula for ClampedSwiglu {
    #[inline(always)]
    fn value(self, gate: f32, up: f32) -> f32 {
        let (gate, up) = self.clamped(gate, up);
        up * gate * sigmoid(self.alpha * gate)
    }

    #[inline(always)]
    fn backward(self, gate: f32, up: f32, gradient: f32) -> [f32; 3] {
        let (inside, raised) = self.clamped(gate, up);
        let scaled = self.alpha * inside;
        let sigma = sigmoid(scaled);
        let gated = inside * sigma;
        let of_gate = gradient * raised * (sigma * (1.0 + scaled * (1.0 - sigma)));
        let of_gate = if gate > self.limit { 0.0 } else { of_gate };
        let of_up = if up.abs() > self.limit {
            0.0
        } else {
            gradient * gated
        };
        [raised * gated, of_gate, of_up]
    }
}

/// The hidden activations of `gate` and `up` into `hidden`. All of one length.
pub fn activate<'a>(
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    hidden: &'a mut [MaybeUninit<f32>],
) -> &'a mut [f32] {
    assert!(gate.len() == hidden.len() && up.len() == hidden.len());
    match activation {
        Activation::Swiglu => activate_by(Swiglu, gate, up, hidden),
        Activation::ClampedSwiglu { alpha, limit } => {
            activate_by(ClampedSwiglu { alpha, limit }, gate, up, hidden);
        }
    }
    // SAFETY: all three have one length, as was asserted, so that each value was written.
    #[allow(unsafe_code)]
    unsafe {
        hidden.assume_init_mut()
    }
}

fn activate_by(formula: impl Formula, gate: &[f32], up: &[f32], hidden: &mut [MaybeUninit<f32>]) {
    Arch::new().dispatch(Activate {
        formula,
        gate,
        up,
        hidden,
    });
}

struct Activate<'a, F> {
    formula: F,
    gate: &'a [f32],
    up: &'a [f32],
    hidden: &'a mut [MaybeUninit<f32>],
}

impl<F: Formula> WithSimd for Activate<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for ((hidden, &gate), &up) in self.hidden.iter_mut().zip(self.gate).zip(self.up) {
            hidden.write(self.formula.value(gate, up));
        }
    }
}

/// The backward pass of `output = factor · h · W_down` up to the products, in place, with h the hidden activations.
///
/// With `p = d(output) · W_downᵀ`, for each row:
///
/// - d(factor) `= Σ h ⊙ p`
/// - d(gate) `= factor · p ⊙ ∂h/∂gate`: of a SwiGLU `up ⊙ silu'(gate)`, with `silu'(g) = σ(g) (1 + g (1 − σ(g)))`
/// - d(up) `= factor · p ⊙ ∂h/∂up`: of a SwiGLU `silu(gate)`
///
/// # Shapes
///
/// - `gate`, `up`, `products`: `[rows, width]`; hold gate, up and p before, and d(gate), d(up) and `factor · h`
///   after
/// - `factors`: `[rows]`; holds d(factor) after
pub fn activate_backward(
    activation: Activation,
    [gate, up, products]: [&mut [f32]; 3],
    factors: &mut [f32],
    width: usize,
) {
    let size = factors.len() * width;
    assert!(gate.len() == size && up.len() == size && products.len() == size);
    let values = [gate, up, products];
    match activation {
        Activation::Swiglu => backward_by(Swiglu, values, factors, width),
        Activation::ClampedSwiglu { alpha, limit } => {
            backward_by(ClampedSwiglu { alpha, limit }, values, factors, width);
        }
    }
}

fn backward_by(formula: impl Formula, values: [&mut [f32]; 3], factors: &mut [f32], width: usize) {
    Arch::new().dispatch(ActivateBackward {
        formula,
        values,
        factors,
        width,
    });
}

struct ActivateBackward<'a, F> {
    formula: F,
    /// Gate, up and products.
    values: [&'a mut [f32]; 3],
    factors: &'a mut [f32],
    width: usize,
}

impl<F: Formula> WithSimd for ActivateBackward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [gate, up, products] = self
            .values
            .map(|values| values.chunks_exact_mut(self.width));
        let rows = gate.zip(up).zip(products);
        for (((gate, up), products), factor) in rows.zip(self.factors) {
            *factor = backward_of_row(self.formula, [gate, up, products], *factor);
        }
    }
}

#[inline(always)]
fn backward_of_row(
    formula: impl Formula,
    [gate, up, products]: [&mut [f32]; 3],
    factor: f32,
) -> f32 {
    let (gate, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (up, up_rest) = up.as_chunks_mut::<LANES>();
    let (products, products_rest) = products.as_chunks_mut::<LANES>();
    let mut sums = [0.0f32; LANES];
    for ((gate, up), product) in gate.iter_mut().zip(up).zip(products) {
        for lane in 0..LANES {
            let values = [&mut gate[lane], &mut up[lane], &mut product[lane]];
            sums[lane] += backward_of_value(formula, values, factor);
        }
    }
    let mut sum = 0.0;
    for lane in sums {
        sum += lane;
    }
    let rest = gate_rest.iter_mut().zip(up_rest).zip(products_rest);
    for ((gate, up), product) in rest {
        sum += backward_of_value(formula, [gate, up, product], factor);
    }
    sum
}

/// Returns `h · p`.
#[inline(always)]
fn backward_of_value(
    formula: impl Formula,
    [gate, up, product]: [&mut f32; 3],
    factor: f32,
) -> f32 {
    let [hidden, of_gate, of_up] = formula.backward(*gate, *up, factor * *product);
    let term = hidden * *product;
    (*gate, *up) = (of_gate, of_up);
    *product = factor * hidden;
    term
}

/// `Σ a ⊙ b`, of one length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    Arch::new().dispatch(Dot { a, b })
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        let (a, a_rest) = self.a.as_chunks::<LANES>();
        let (b, b_rest) = self.b.as_chunks::<LANES>();
        let mut sums = [0.0f32; LANES];
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                sums[lane] += a[lane] * b[lane];
            }
        }
        let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
        sums.into_iter()
            .chain(rest)
            .fold(0.0, |sum, term| sum + term)
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
