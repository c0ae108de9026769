//! Tokens that are routed to different experts than on the reference, and the tokens that this affects.

use firebox_model::config::{RouterConfig, Scores};
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

/// For each token, the lead of the lowest selected expert over the highest other expert on the reference, in score plus
/// selection bias; or that of the lowest selected group of experts over the highest other group, if that is smaller.
///
/// # Panics
///
/// When `top_k` is 0 or greater than the number of experts.
pub(super) fn gaps(logits: &Matrix, bias: &[f32], router: &RouterConfig, top_k: usize) -> Vec<f64> {
    let gap = |logits: &[f32]| {
        let mut scores = match router.scores {
            Scores::Softmax => softmax(logits),
            Scores::Sigmoid => logits
                .iter()
                .map(|&x| 1.0 / (1.0 + f64::from(-x).exp()))
                .collect(),
        };
        for (score, &bias) in scores.iter_mut().zip(bias) {
            *score += f64::from(bias);
        }
        let descending = |a: &f64, b: &f64| b.total_cmp(a);
        let mut groups: Vec<(f64, Vec<f64>)> = scores
            .chunks(scores.len() / router.groups)
            .map(|group| {
                let mut group = group.to_vec();
                group.sort_by(descending);
                (group.iter().take(2).sum(), group)
            })
            .collect();
        groups.sort_by(|(a, _), (b, _)| descending(a, b));
        let by_group: Vec<f64> = groups.iter().map(|(score, _)| *score).collect();
        let selected = groups.into_iter().take(router.top_groups);
        let mut scores: Vec<f64> = selected.flat_map(|(_, group)| group).collect();
        scores.sort_by(descending);
        lead(&scores, top_k).min(lead(&by_group, router.top_groups))
    };
    logits.rows().map(gap).collect()
}

/// The lead of the lowest of the first `selected` of descending scores over the next; infinite if there is none.
fn lead(scores: &[f64], selected: usize) -> f64 {
    let next = scores.get(selected);
    next.map_or(f64::INFINITY, |next| scores[selected - 1] - next)
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
    use crate::testing::tiny_config;

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
        let mut router = tiny_config().moe.unwrap().router;
        let of = |router: &RouterConfig, bias: &[f32], top_k| gaps(&logits, bias, router, top_k)[0];
        close(of(&router, &[], 1), 0.25);
        close(of(&router, &[], 2), 0.125);
        close(of(&router, &[], 3), 0.0);
        close(of(&router, &[0.0, 0.0, 0.0, 0.0625], 2), 0.0625);
        assert_eq!(of(&router, &[], 4), f64::INFINITY);
        // Groups of 0.75 and 0.25; within the first, 0.5 and 0.25.
        (router.groups, router.top_groups) = (2, 1);
        close(of(&router, &[], 1), 0.25);
        close(of(&router, &[], 2), 0.5);
        close(of(&router, &[0.0, 0.0, 0.0, 0.375], 1), 0.125);
        // Sigmoids of ln x: 4/5, 2/3, 1/2, 1/2.
        router = tiny_config().moe.unwrap().router;
        router.scores = Scores::Sigmoid;
        close(of(&router, &[], 1), 4.0 / 5.0 - 2.0 / 3.0);
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
