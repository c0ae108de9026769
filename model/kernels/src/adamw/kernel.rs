//! AdamW over slices.

use rayon::prelude::*;

use crate::host::simd::vectorized;

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

/// The numbers of an [`AdamWUpdate`] as values are multiplied by them, rounded once.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    /// Of the gradient.
    pub gradient: f32,
    /// Of the moments as they were.
    pub kept: [f32; 2],
    /// Of the gradient and of its square, on their way into the moments.
    pub new: [f32; 2],
    /// What the second moment is divided by.
    pub second_correction: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Of the quotient of the moments: the learning rate, with the correction of the first.
    pub rate: f32,
    /// Of the weight as it was.
    pub weight: f32,
}

impl AdamWUpdate {
    /// In f32.
    pub(super) fn factors(&self) -> Factors {
        Factors {
            gradient: self.gradient_scale as f32,
            kept: self.betas.map(|beta| beta as f32),
            new: self.betas.map(|beta| (1.0 - beta) as f32),
            second_correction: self.corrections[1] as f32,
            epsilon: self.epsilon as f32,
            rate: (self.learning_rate / self.corrections[0]) as f32,
            weight: (1.0 - self.decay) as f32,
        }
    }
}

/// Values that a thread takes at once; the four slices of them fit into a core's second cache.
const BLOCK_VALUES: usize = 1 << 14;

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
    let factors = update.factors();
    let blocks = weights
        .par_chunks_mut(BLOCK_VALUES)
        .zip(gradient.par_chunks(BLOCK_VALUES))
        .zip(first.par_chunks_mut(BLOCK_VALUES))
        .zip(second.par_chunks_mut(BLOCK_VALUES));
    blocks.for_each(|(((weights, gradient), first), second)| {
        vectorized(
            #[inline(always)]
            || update_block(weights, gradient, first, second, &factors),
        );
    });
}

#[inline(always)]
fn update_block(
    weights: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    factors: &Factors,
) {
    let values = weights.iter_mut().zip(gradient).zip(first).zip(second);
    for (((weight, gradient), first), second) in values {
        let gradient = gradient * factors.gradient;
        *first = *first * factors.kept[0] + gradient * factors.new[0];
        *second = *second * factors.kept[1] + gradient * gradient * factors.new[1];
        let root = (*second / factors.second_correction).sqrt() + factors.epsilon;
        *weight = *weight * factors.weight - *first / root * factors.rate;
    }
}
