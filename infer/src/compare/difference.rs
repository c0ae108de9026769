//! Differences between two devices' values: pure functions, in f64 on the host.

use serde::Serialize;

use super::trace_file::Matrix;

/// The difference of some values from their reference.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Difference {
    /// The largest |a − b|; infinite if a value is not finite.
    pub absolute: f64,
    /// ‖a − b‖ / ‖b‖; infinite if a value is not finite.
    pub relative: f64,
}

/// Accumulates differences.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    largest: f64,
    squares: f64,
    reference: f64,
}

impl Sums {
    fn add(&mut self, values: &[f32], reference: &[f32]) {
        for (&a, &b) in values.iter().zip(reference) {
            let (a, b) = (f64::from(a), f64::from(b));
            let difference = if a.is_finite() && b.is_finite() {
                (a - b).abs()
            } else {
                f64::INFINITY
            };
            self.largest = self.largest.max(difference);
            self.squares += difference * difference;
            self.reference += b * b;
        }
    }

    fn difference(&self) -> Difference {
        let relative = match self.largest {
            0.0 => 0.0,
            largest if largest.is_infinite() => f64::INFINITY,
            _ => (self.squares / self.reference).sqrt(),
        };
        Difference {
            absolute: self.largest,
            relative,
        }
    }
}

impl Difference {
    /// Over all rows.
    pub(super) fn of(values: &Matrix, reference: &Matrix) -> Self {
        Self::over(values, reference, |_| true)
    }

    /// Over all rows, relative to a norm of at least `negligible`.
    pub(super) fn of_gradient(values: &Matrix, reference: &Matrix, negligible: f64) -> Self {
        let Self { absolute, relative } = Self::of(values, reference);
        let norm = reference.squares().sqrt();
        // Of nothing to compare with, the relative difference is infinite, or not a number.
        let relative = match absolute.is_finite() && norm < negligible {
            true => values.distance(reference) / negligible,
            false => relative,
        };
        Self { absolute, relative }
    }

    /// Over the rows for which `included` is true.
    ///
    /// # Panics
    ///
    /// When the shapes differ.
    pub(super) fn over(
        values: &Matrix,
        reference: &Matrix,
        included: impl Fn(usize) -> bool,
    ) -> Self {
        assert_eq!(values.columns(), reference.columns(), "columns");
        assert_eq!(values.values.len(), reference.values.len(), "values");
        let mut sums = Sums::default();
        for (row, (a, b)) in values.rows().zip(reference.rows()).enumerate() {
            if included(row) {
                sums.add(a, b);
            }
        }
        sums.difference()
    }
}

/// Natural logarithm of the softmax of logits.
fn log_softmax(scores: &[f32]) -> Vec<f64> {
    let largest = scores
        .iter()
        .fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
    let sum: f64 = scores.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    let normalizer = largest + sum.ln();
    scores.iter().map(|&x| f64::from(x) - normalizer).collect()
}

/// Softmax of logits.
pub(super) fn softmax(scores: &[f32]) -> Vec<f64> {
    log_softmax(scores).into_iter().map(f64::exp).collect()
}

/// The mean cross-entropy of the targets, in nats.
pub(super) fn nats(logits: &Matrix, targets: &[u32]) -> f64 {
    let losses = logits
        .rows()
        .zip(targets)
        .map(|(scores, &target)| -log_softmax(scores)[target as usize]);
    losses.sum::<f64>() / targets.len() as f64
}

/// Mean and maximum over the rows of the Kullback–Leibler divergence Σ p (ln p − ln q) of the softmaxes, where p is
/// the reference's; in nats.
pub(super) fn divergence(values: &Matrix, reference: &Matrix) -> (f64, f64) {
    let mut sum = 0.0;
    let mut largest = 0.0f64;
    let mut rows = 0;
    for (row, reference) in values.rows().zip(reference.rows()) {
        let (q, p) = (log_softmax(row), log_softmax(reference));
        let terms = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q));
        let row = terms.sum::<f64>();
        // Rounding can make the divergence slightly negative. NaN counts as infinitely far.
        let row = if row.is_nan() {
            f64::INFINITY
        } else {
            row.max(0.0)
        };
        sum += row;
        largest = largest.max(row);
        rows += 1;
    }
    (sum / f64::from(rows.max(1)), largest)
}

/// The index of the largest logit, and its lead in probability over the second.
pub(super) fn greedy(scores: &[f32]) -> (usize, f64) {
    let probabilities = softmax(scores);
    let mut best = (0, f64::NEG_INFINITY);
    let mut second = f64::NEG_INFINITY;
    for (index, &probability) in probabilities.iter().enumerate() {
        if probability > best.1 {
            second = best.1;
            best = (index, probability);
        } else {
            second = second.max(probability);
        }
    }
    (best.0, best.1 - second.max(0.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gradient_that_is_nothing_but_rounding_differs_by_nothing() {
        let matrix = |values: &[f32]| Matrix::new(2, values.to_vec());
        let (a, b) = (matrix(&[1e-9, -2e-9]), matrix(&[-1e-9, 1e-9]));
        let relative = |negligible| Difference::of_gradient(&a, &b, negligible).relative;
        assert!(relative(0.0) > 2.0);
        assert!(relative(0.01) < 1e-6);
        // What is not small is as before.
        let (a, b) = (matrix(&[3.0, 4.0]), matrix(&[3.0, 4.5]));
        let found = Difference::of_gradient(&a, &b, 0.01);
        assert_eq!(found.relative, Difference::of(&a, &b).relative);
        let lost = Difference::of_gradient(&matrix(&[f32::NAN, 0.0]), &b, 100.0);
        assert_eq!(lost.relative, f64::INFINITY);
    }

    #[test]
    fn a_difference_is_largest_and_relative() {
        let reference = Matrix::new(2, vec![3.0, 4.0, 0.0, 0.0]);
        let found = Matrix::new(2, vec![3.0, 4.5, 1.0, 0.0]);
        let all = Difference::of(&found, &reference);
        assert_eq!(all.absolute, 1.0);
        assert!((all.relative - 1.25f64.sqrt() / 5.0).abs() < 1e-12);
        let first = Difference::over(&found, &reference, |row| row == 0);
        assert_eq!((first.absolute, first.relative), (0.5, 0.1));
        let nothing = Difference::over(&found, &reference, |_| false);
        assert_eq!(nothing, Difference::default());
    }

    #[test]
    fn nan_is_infinitely_far() {
        let reference = Matrix::new(1, vec![1.0, 2.0]);
        let broken = Matrix::new(1, vec![1.0, f32::NAN]);
        assert_eq!(Difference::of(&broken, &reference).relative, f64::INFINITY);
        let broken = Matrix::new(2, vec![1.0, f32::NAN]);
        let reference = Matrix::new(2, vec![1.0, 2.0]);
        assert_eq!(divergence(&broken, &reference).1, f64::INFINITY);
    }

    #[test]
    fn the_greedy_token_and_its_lead() {
        let (index, lead) = greedy(&[0.0, 2f32.ln(), 0.0]);
        assert_eq!(index, 1);
        assert!((lead - 0.25).abs() < 1e-7);
        // Ties go to the first, as in the devices' own argmax.
        assert_eq!(greedy(&[1.0, 1.0]), (0, 0.0));
    }

    #[test]
    fn uniform_logits_cost_the_logarithm_of_the_vocabulary() {
        let logits = Matrix::new(8, vec![0.5; 16]);
        assert!((nats(&logits, &[0, 7]) - 8f64.ln()).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn divergence_is_zero_of_itself_and_never_negative(
            a in prop::collection::vec(-20f32..20.0, 6), b in prop::collection::vec(-20f32..20.0, 6)
        ) {
            let (a, b) = (Matrix::new(3, a), Matrix::new(3, b));
            prop_assert_eq!(divergence(&a, &a), (0.0, 0.0));
            let (mean, largest) = divergence(&a, &b);
            prop_assert!(0.0 <= mean && mean <= largest);
        }
    }
}
