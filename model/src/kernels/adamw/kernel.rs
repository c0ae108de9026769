//! AdamW over slices.

use rayon::prelude::*;

use crate::kernels::simd::vectorized;

/// The numbers of one update; all parameters share all of them but the decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWUpdate {
    /// What the gradient is multiplied by first (that of clipping).
    pub gradient_scale: f64,
    /// How much of the first and of the second moment stays (β₁, β₂).
    pub betas: [f64; 2],
    /// The sum of the weights that a moment has given to gradients so far (1 − βᵗ).
    pub corrections: [f64; 2],
    /// Added to the root of the second moment (ε).
    pub epsilon: f64,
    /// η
    pub learning_rate: f64,
    /// What a weight loses for its size alone, as a fraction of it (η λ).
    pub decay: f64,
}

/// Values that a thread takes at once; the four slices of them fit into a core's second cache.
const BLOCK: usize = 1 << 14;

/// One update of `weights` and of both moments, in place: each number is read once and written once.
///
/// # Panics
///
/// When the lengths differ.
pub fn update(
    weights: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    update: &AdamWUpdate,
) {
    let length = weights.len();
    assert!(
        gradient.len() == length && first.len() == length && second.len() == length,
        "{length} weights, {} gradients, {} and {} moments",
        gradient.len(),
        first.len(),
        second.len()
    );
    let blocks = weights
        .par_chunks_mut(BLOCK)
        .zip(gradient.par_chunks(BLOCK))
        .zip(first.par_chunks_mut(BLOCK))
        .zip(second.par_chunks_mut(BLOCK));
    blocks.for_each(|(((weights, gradient), first), second)| {
        vectorized(
            #[inline(always)]
            || update_block(weights, gradient, first, second, update),
        );
    });
}

#[inline(always)]
fn update_block(
    weights: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    update: &AdamWUpdate,
) {
    let scale = update.gradient_scale as f32;
    let [kept_first, kept_second] = update.betas.map(|beta| beta as f32);
    let [new_first, new_second] = update.betas.map(|beta| (1.0 - beta) as f32);
    let second_correction = update.corrections[1] as f32;
    let epsilon = update.epsilon as f32;
    let rate = (update.learning_rate / update.corrections[0]) as f32;
    let kept = (1.0 - update.decay) as f32;
    let values = weights.iter_mut().zip(gradient).zip(first).zip(second);
    for (((weight, gradient), first), second) in values {
        let gradient = gradient * scale;
        *first = *first * kept_first + gradient * new_first;
        *second = *second * kept_second + gradient * gradient * new_second;
        let root = (*second / second_correction).sqrt() + epsilon;
        *weight = *weight * kept - *first / root * rate;
    }
}
