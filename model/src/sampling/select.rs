//! The tokens that `top_k`, `top_p` and `min_p` leave.

use std::cmp::Ordering;

use super::Sampling;

/// Tokens that are sorted first to find the nucleus; eight times as many each time that they are not enough.
const FIRST_PART: usize = 64;

/// Logits, and what makes probabilities of them.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// By id.
    pub logits: &'a [f32],
    /// The largest of them.
    pub largest: f64,
    /// Greater than 0.
    pub temperature: f64,
}

impl Scores<'_> {
    /// A token's probability over that of the likeliest one.
    pub fn weight(&self, id: u32) -> f64 {
        self.log_weight(id).exp()
    }

    fn log_weight(&self, id: u32) -> f64 {
        (self.logit(id) as f64 - self.largest) / self.temperature
    }

    /// NaN is nothing.
    fn logit(&self, id: u32) -> f32 {
        let logit = self.logits[id as usize];
        if logit.is_nan() {
            f32::NEG_INFINITY
        } else {
            logit
        }
    }

    /// Likeliest first, the smallest id among equals.
    fn compare(&self, a: u32, b: u32) -> Ordering {
        self.logit(b).total_cmp(&self.logit(a)).then(a.cmp(&b))
    }
}

/// Memory for the tokens that are kept.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    ids: Vec<u32>,
}

impl Candidates {
    /// The tokens to draw from, always with the likeliest one; `None` if that is all of them.
    pub fn select(&mut self, scores: &Scores, sampling: &Sampling) -> Option<&[u32]> {
        let all = scores.logits.len();
        let top_k = match sampling.top_k {
            0 => all,
            top_k => top_k.min(all),
        };
        if top_k == all && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
            return None;
        }
        self.ids.clear();
        self.ids.extend(0..all as u32);
        if top_k < all {
            self.ids
                .select_nth_unstable_by(top_k - 1, |&a, &b| scores.compare(a, b));
            self.ids.truncate(top_k);
        }
        if sampling.top_p < 1.0 {
            self.keep_nucleus(scores, sampling.top_p);
        }
        if sampling.min_p > 0.0 {
            let least = sampling.min_p.ln();
            self.ids.retain(|&id| scores.log_weight(id) >= least);
        }
        Some(&self.ids)
    }

    /// Of the candidates, the smallest set of likeliest ones whose mass reaches `top_p` of all. As many as it takes are
    /// sorted, not the whole vocabulary.
    fn keep_nucleus(&mut self, scores: &Scores, top_p: f64) {
        let total: f64 = self.ids.iter().map(|&id| scores.weight(id)).sum();
        let mut mass = 0.0;
        let (mut sorted, mut part) = (0, FIRST_PART);
        while sorted < self.ids.len() {
            let rest = &mut self.ids[sorted..];
            let part_end = part.min(rest.len());
            if part_end < rest.len() {
                rest.select_nth_unstable_by(part_end - 1, |&a, &b| scores.compare(a, b));
            }
            let next = &mut rest[..part_end];
            next.sort_unstable_by(|&a, &b| scores.compare(a, b));
            for &id in next.iter() {
                mass += scores.weight(id);
                sorted += 1;
                if mass >= top_p * total {
                    self.ids.truncate(sorted);
                    return;
                }
            }
            part *= 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By a sort of all.
    fn plainly(scores: &Scores, sampling: &Sampling) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..scores.logits.len() as u32).collect();
        ids.sort_by(|&a, &b| scores.compare(a, b));
        if sampling.top_k > 0 {
            ids.truncate(sampling.top_k);
        }
        let total: f64 = ids.iter().map(|&id| scores.weight(id)).sum();
        let mut before = 0.0;
        ids.retain(|&id| {
            let kept = sampling.top_p >= 1.0 || before < sampling.top_p * total * (1.0 - 1e-12);
            before += scores.weight(id);
            kept
        });
        ids.retain(|&id| scores.weight(id) >= sampling.min_p * (1.0 - 1e-12));
        ids.sort_unstable();
        ids
    }

    proptest! {
        #[test]
        fn the_same_tokens_as_by_a_sort(
            logits in prop::collection::vec(-40i8..40, 1..900),
            top_k in prop_oneof![Just(0), 1usize..1000],
            top_p in prop_oneof![Just(1.0), 0.01f64..1.0],
            min_p in prop_oneof![Just(0.0), 0.001f64..1.0],
            temperature in 0.2f64..30.0,
        ) {
            // Many are equal.
            let logits: Vec<f32> = logits.into_iter().map(|n| f32::from(n) / 8.0).collect();
            let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            let scores = Scores { logits: &logits, largest, temperature };
            let sampling = Sampling { top_k, top_p, min_p, ..Sampling::default() };
            let mut candidates = Candidates::default();
            let mut found = match candidates.select(&scores, &sampling) {
                Some(kept) => kept.to_vec(),
                None => (0..logits.len() as u32).collect(),
            };
            found.sort_unstable();
            prop_assert!(!found.is_empty());
            prop_assert_eq!(found, plainly(&scores, &sampling));
        }
    }
}
