//! Muon over slices.

use rayon::prelude::*;

use super::{FACTORS, LEAST_NORM, SIZE};
use crate::host::gemm::{Accumulate, Matrix, gemm};
use crate::host::simd::vectorized;
use crate::sum_of_squares::of_slice;

/// The numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonUpdate {
    /// What the gradient is multiplied by first (that of clipping).
    pub gradient_scale: f64,
    /// How much of the momentum stays (μ).
    pub momentum: f64,
    /// η
    pub learning_rate: f64,
    /// What a weight loses for its size alone, as a fraction of it (η λ).
    pub decay: f64,
    /// Which of the matrices are updated.
    pub turns: Turns,
}

/// Which matrices of a stack are updated: each in every k-th update, by k times the learning rate and decay, so that matrices take
/// turns. The momentum of all of them takes in every gradient.
///
/// Made for experts, each of which sees a fraction of the tokens: it costs a k-th of the products that make directions orthogonal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// From one update of a matrix to its next one (k), at least 1.
    pub every: usize,
    /// The number of this update, from 0, plus the place of the first matrix in its stack.
    pub offset: usize,
}

impl Turns {
    /// Every matrix is updated each time.
    pub const ALL: Self = Self {
        every: 1,
        offset: 0,
    };

    /// Whether the matrix at this index is updated.
    pub fn includes(self, index: usize) -> bool {
        (self.offset + index).is_multiple_of(self.every)
    }
}

impl MuonUpdate {
    /// That of a matrix which has its turn.
    pub(super) fn of_turn(&self) -> Self {
        let times = self.turns.every as f64;
        Self {
            learning_rate: times * self.learning_rate,
            decay: times * self.decay,
            ..*self
        }
    }
}

/// One update of a stack of matrices and their momentum, in place. Matrices are shared out among the threads, and within one
/// the rows of its products.
///
/// # Panics
///
/// When the lengths differ, or are not those of matrices.
pub fn update(
    weights: &mut [f32],
    gradient: &[f32],
    momentum: &mut [f32],
    [rows, columns]: [usize; 2],
    update: &MuonUpdate,
) {
    let (length, size) = (weights.len(), rows * columns);
    assert!(
        gradient.len() == length && momentum.len() == length && (length == 0 || length % size == 0),
        "{length} weights in matrices of {size}, {} gradients, {} values of momentum",
        gradient.len(),
        momentum.len()
    );
    if length == 0 {
        return;
    }
    let update = &update.of_turn();
    let matrices = weights
        .par_chunks_mut(size)
        .zip(gradient.par_chunks(size))
        .zip(momentum.par_chunks_mut(size))
        .enumerate();
    matrices
        .with_max_len(1)
        .for_each(|(index, ((weights, gradient), momentum))| {
            if !update.turns.includes(index) {
                return take_in(gradient, momentum, update);
            }
            let mut direction = vec![0.0; size];
            advance(weights, gradient, momentum, &mut direction, update);
            let direction = Matrix::new(&direction, rows, columns);
            let change = -update.learning_rate * SIZE * (rows.max(columns) as f64).sqrt();
            // Of the shorter side the square is taken.
            match rows <= columns {
                true => {
                    let factor = factor(direction, change);
                    add_product(Matrix::new(&factor, rows, rows), direction, weights);
                }
                false => {
                    let factor = factor(direction.t(), change);
                    add_product(direction, Matrix::new(&factor, columns, columns), weights);
                }
            }
        });
}

/// Values that a thread takes at once; the four slices of them fit into a core's second cache.
const BLOCK_VALUES: usize = 1 << 14;

/// What a gradient adds to the momentum.
fn take_in(gradient: &[f32], momentum: &mut [f32], update: &MuonUpdate) {
    let kept = update.momentum as f32;
    let new = ((1.0 - update.momentum) * update.gradient_scale) as f32;
    vectorized(
        #[inline(always)]
        || {
            for (momentum, gradient) in momentum.iter_mut().zip(gradient) {
                *momentum = *momentum * kept + gradient * new;
            }
        },
    );
}

/// What is done to each value by itself: momentum, direction, and the decay of the weight.
fn advance(
    weights: &mut [f32],
    gradient: &[f32],
    momentum: &mut [f32],
    direction: &mut [f32],
    update: &MuonUpdate,
) {
    let kept = update.momentum as f32;
    let new = ((1.0 - update.momentum) * update.gradient_scale) as f32;
    let weight_kept = (1.0 - update.decay) as f32;
    let blocks = weights
        .par_chunks_mut(BLOCK_VALUES)
        .zip(gradient.par_chunks(BLOCK_VALUES))
        .zip(momentum.par_chunks_mut(BLOCK_VALUES))
        .zip(direction.par_chunks_mut(BLOCK_VALUES));
    blocks.for_each(|(((weights, gradient), momentum), direction)| {
        vectorized(
            #[inline(always)]
            || {
                let values = weights
                    .iter_mut()
                    .zip(gradient)
                    .zip(momentum.iter_mut())
                    .zip(direction.iter_mut());
                for (((weight, gradient), momentum), direction) in values {
                    let gradient = gradient * new;
                    *momentum = *momentum * kept + gradient;
                    *direction = *momentum * kept + gradient;
                    *weight *= weight_kept;
                }
            },
        );
    });
}

/// The symmetric matrix with which `x`, no higher than wide, is multiplied from the left to be made orthogonal, times `scale`.
fn factor(x: Matrix<'_>, scale: f64) -> Vec<f32> {
    let [side, _] = x.shape();
    let mut square = symmetric_product(x, x.t());
    let norm = (0..side)
        .map(|place| f64::from(square[place * side + place]))
        .sum::<f64>()
        .sqrt();
    let one = (norm + LEAST_NORM).powi(-2);
    let scaled = |values: &mut [f32], scale: f64| {
        let values = values.iter_mut();
        values.for_each(|value| *value = (f64::from(*value) * scale) as f32);
    };
    // That of a matrix with a norm of 1, whose squares cannot exceed the largest f32.
    scaled(&mut square, one);
    // No singular value is larger than the root of this norm, which is 1/√side or more.
    let size = f64::from(of_slice(&square)).sqrt();
    let size = size.max((side as f64).sqrt().recip());
    scaled(&mut square, size.recip());
    let unit = one / size;

    let product = |a: &[f32], b: &[f32]| {
        let [a, b] = [a, b].map(|values| Matrix::new(values, side, side));
        symmetric_product(a, b)
    };
    let mut factor: Option<Vec<f32>> = None;
    for (index, [a, b, c]) in FACTORS.into_iter().enumerate() {
        let mut polynomial = product(&square, &square);
        let pairs = polynomial.iter_mut().zip(&square);
        pairs.for_each(|(second, first)| *second = *second * c as f32 + *first * b as f32);
        (0..side).for_each(|place| polynomial[place * side + place] += a as f32);
        if index + 1 < FACTORS.len() {
            // All of them are polynomials of one matrix, and their products symmetric as they are.
            square = product(&polynomial, &product(&polynomial, &square));
        }
        factor = Some(match factor {
            Some(before) => product(&polynomial, &before),
            None => {
                let scale = (scale * unit.sqrt()) as f32;
                polynomial.iter().map(|value| value * scale).collect()
            }
        });
    }
    factor.expect("one iteration or more")
}

/// Rows of a task.
const PART: usize = 64;

/// `a b` that is known to be symmetric: what lies right of the diagonal is copied.
fn symmetric_product(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let [side, _] = a.shape();
    let mut product = vec![0.0; side * side];
    let parts = product.par_chunks_mut(PART * side).enumerate();
    parts.for_each(|(index, output)| {
        let start = index * PART;
        let end = start + output.len() / side;
        let columns = b.t().part(0..end).t();
        let rows = a.part(start..end);
        gemm(rows, columns, 1.0, Accumulate::Replace, output, side);
    });
    mirror(&mut product, side);
    product
}

/// Copies what lies left of the diagonal to the right, in squares whose lines stay in the cache.
fn mirror(values: &mut [f32], side: usize) {
    const SQUARE: usize = 16;
    for top in (0..side).step_by(SQUARE) {
        for left in (top..side).step_by(SQUARE) {
            for row in top..side.min(top + SQUARE) {
                for column in left.max(row + 1)..side.min(left + SQUARE) {
                    values[row * side + column] = values[column * side + row];
                }
            }
        }
    }
}

/// Adds `a b` to the output.
fn add_product(a: Matrix<'_>, b: Matrix<'_>, output: &mut [f32]) {
    let [_, columns] = b.shape();
    let parts = output.par_chunks_mut(PART * columns).enumerate();
    parts.for_each(|(index, output)| {
        let start = index * PART;
        let rows = a.part(start..start + output.len() / columns);
        gemm(rows, b, 1.0, Accumulate::Add, output, columns);
    });
}
