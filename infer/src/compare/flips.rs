//! Tokens that are routed to different experts than on the reference, and the tokens that this affects.

use serde::Serialize;

use super::difference::softmax;
use super::trace_file::Matrix;

/// The flips of a layer: tokens for which its router selects other experts than the reference's router.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Flips {
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens whose set of experts differs.
    pub flipped: usize,
    /// Number of those that no earlier flip had touched, so that they differ by rounding or a fault of their own.
    pub first: usize,
    /// Largest gap of the `first` ones: the lead of the reference's lowest selected expert over its highest other expert,
    /// in probability plus selection bias. 0 without a flip.
    pub largest_gap: f64,
}

/// For each token, the lead of the lowest selected expert over the highest other expert on the reference, in softmax
/// probability plus selection bias.
///
/// # Panics
///
/// When `top_k` is 0 or greater than the number of experts.
pub(super) fn gaps(logits: &Matrix, bias: &[f32], top_k: usize) -> Vec<f64> {
    let gap = |scores: &[f32]| {
        let mut scores = softmax(scores);
        for (score, &bias) in scores.iter_mut().zip(bias) {
            *score += f64::from(bias);
        }
        scores.sort_by(|a, b| b.total_cmp(a));
        match scores.get(top_k) {
            Some(next) => scores[top_k - 1] - next,
            // All experts are selected.
            None => f64::INFINITY,
        }
    };
    logits.rows().map(gap).collect()
}

/// For each token, whether its set of experts differs.
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

/// The tokens that legitimately differ from the reference, because they or an earlier token of their sequence were
/// routed to other experts.
#[derive(Debug, Clone)]
pub(super) struct Touched {
    tokens: Vec<bool>,
    sequence: usize,
}

impl Touched {
    /// No touched tokens among `tokens` tokens, in sequences of length `sequence`.
    pub(super) fn none(tokens: usize, sequence: usize) -> Self {
        Self {
            tokens: vec![false; tokens],
            sequence,
        }
    }

    /// Attention: touches all later tokens of the sequences.
    pub(super) fn spread(&mut self) {
        for sequence in self.tokens.chunks_mut(self.sequence) {
            if let Some(first) = sequence.iter().position(|&touched| touched) {
                sequence[first..].fill(true);
            }
        }
    }

    /// Records the flips of a layer and returns their statistics.
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

    /// Whether a token is touched.
    pub(super) fn contains(&self, token: usize) -> bool {
        self.tokens[token]
    }

    /// Number of tokens that are not touched.
    pub(super) fn untouched(&self) -> usize {
        self.tokens.iter().filter(|&&touched| !touched).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_experts_is_not_a_flip() {
        let reference = Matrix::new(2, vec![0.0, 3.0, 1.0, 2.0]);
        let found = Matrix::new(2, vec![3.0, 0.0, 1.0, 3.0]);
        assert_eq!(flipped(&found, &reference), [false, true]);
    }

    #[test]
    fn a_gap_lies_between_the_last_selected_expert_and_the_next() {
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
    fn a_flip_touches_the_later_tokens_of_its_sequence() {
        let mut touched = Touched::none(6, 3);
        let flips = touched.flip(&[false, true, false, false, false, false], &[0.1; 6]);
        assert_eq!((flips.flipped, flips.first, flips.largest_gap), (1, 1, 0.1));
        assert_eq!(touched.untouched(), 5);
        touched.spread();
        assert!(touched.contains(2) && !touched.contains(0) && !touched.contains(3));
        // The third token follows the second; only the fourth one is a first flip.
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
