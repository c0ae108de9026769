//! Tokens that go to other experts than on the reference, and what that does to the tokens after them.

use serde::Serialize;

use super::difference::softmax;
use super::findings::Matrix;

/// What a layer's router chose otherwise than the reference's.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Flips {
    /// Tokens that chose.
    pub tokens: usize,
    /// Those whose set of experts is another.
    pub flipped: usize,
    /// Those among them that no earlier flip had touched: their own scores decided.
    pub first: usize,
    /// Of the first ones, the largest gap: by how much the worst of the reference's chosen experts beat the best of
    /// the others, in probability and, where there is one, with the bias. 0 without a flip.
    pub largest_gap: f64,
}

/// By token, how much the worst chosen expert leads the best of the others on the reference: in what the choice is
/// made by, the softmax of the scores plus the bias.
///
/// # Panics
///
/// When a token has fewer scores than experts to visit.
pub(super) fn gaps(logits: &Matrix, bias: &[f32], per_token: usize) -> Vec<f64> {
    let gap = |scores: &[f32]| {
        let mut scores = softmax(scores);
        for (score, &bias) in scores.iter_mut().zip(bias) {
            *score += f64::from(bias);
        }
        scores.sort_by(|a, b| b.total_cmp(a));
        match scores.get(per_token) {
            Some(next) => scores[per_token - 1] - next,
            // All are chosen.
            None => f64::INFINITY,
        }
    };
    logits.rows().map(gap).collect()
}

/// Whether each token's set of experts is another one.
pub(super) fn flipped(found: &Matrix, reference: &Matrix) -> Vec<bool> {
    let set = |row: &[f32]| {
        let mut set: Vec<u32> = row.iter().map(|&expert| expert as u32).collect();
        set.sort_unstable();
        set
    };
    found
        .rows()
        .zip(reference.rows())
        .map(|(a, b)| set(a) != set(b))
        .collect()
}

/// Which tokens differ from the reference for the good reason that they, or one before them in their sequence, went
/// to other experts.
#[derive(Debug, Clone)]
pub(super) struct Touched {
    tokens: Vec<bool>,
    sequence: usize,
}

impl Touched {
    /// None yet, of `tokens` tokens in sequences of `sequence`.
    pub(super) fn none(tokens: usize, sequence: usize) -> Self {
        Self {
            tokens: vec![false; tokens],
            sequence,
        }
    }

    /// Attention carries it to all that come later in a sequence.
    pub(super) fn spread(&mut self) {
        for sequence in self.tokens.chunks_mut(self.sequence) {
            if let Some(first) = sequence.iter().position(|&touched| touched) {
                sequence[first..].fill(true);
            }
        }
    }

    /// Notes the flips of a layer, and returns what there is to say of them.
    pub(super) fn flip(&mut self, flipped: &[bool], gaps: &[f64]) -> Flips {
        let mut flips = Flips {
            tokens: flipped.len(),
            ..Flips::default()
        };
        for ((touched, &flipped), &gap) in self.tokens.iter_mut().zip(flipped).zip(gaps) {
            if flipped && !*touched {
                flips.first += 1;
                flips.largest_gap = flips.largest_gap.max(gap);
            }
            flips.flipped += usize::from(flipped);
            *touched |= flipped;
        }
        flips
    }

    /// Whether a token is among them.
    pub(super) fn is(&self, token: usize) -> bool {
        self.tokens[token]
    }

    /// How many are not.
    pub(super) fn untouched(&self) -> usize {
        self.tokens.iter().filter(|&&touched| !touched).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_experts_is_no_flip() {
        let reference = Matrix::new(2, vec![0.0, 3.0, 1.0, 2.0]);
        let found = Matrix::new(2, vec![3.0, 0.0, 1.0, 3.0]);
        assert_eq!(flipped(&found, &reference), [false, true]);
    }

    #[test]
    fn a_gap_is_between_the_last_chosen_and_the_next() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits = Matrix::new(4, [4f32, 2.0, 1.0, 1.0].map(f32::ln).to_vec());
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-7, "{found}");
        close(gaps(&logits, &[], 1)[0], 0.25);
        close(gaps(&logits, &[], 2)[0], 0.125);
        close(gaps(&logits, &[], 3)[0], 0.0);
        close(gaps(&logits, &[0.0, 0.0, 0.0, 0.0625], 2)[0], 0.0625);
        assert_eq!(gaps(&logits, &[], 4), [f64::INFINITY]);
    }

    #[test]
    fn a_flip_touches_what_comes_after_it_in_its_sequence() {
        let mut touched = Touched::none(6, 3);
        let flips = touched.flip(&[false, true, false, false, false, false], &[0.1; 6]);
        assert_eq!((flips.flipped, flips.first, flips.largest_gap), (1, 1, 0.1));
        assert_eq!(touched.untouched(), 5);
        touched.spread();
        assert!(touched.is(2) && !touched.is(0) && !touched.is(3));
        // The third token follows the second; only the fourth one flips for a reason of its own.
        let flips = touched.flip(
            &[false, false, true, true, false, false],
            &[0.5, 0.5, 0.5, 1e-7, 0.5, 0.5],
        );
        assert_eq!(
            (flips.flipped, flips.first, flips.largest_gap),
            (2, 1, 1e-7)
        );
    }
}
