//! The tokens that `top_k`, `top_p` and `min_p` leave.
//!
//! Each rank looks at its own part of the vocabulary. The ranks find together where the likeliest tokens end, by counts and
//! masses of ever fewer tokens; they never exchange the logits themselves.

use serde::{Deserialize, Serialize};

use super::{Exchange, Sampling};

/// Bits of a key that a round decides.
const DIGIT_BITS: u32 = 8;

/// Probabilities are summed as integers, where the likeliest token counts this much: such a sum does not depend on the
/// order, so that ranks cannot disagree with each other, or with a rank that has all of the vocabulary.
const UNIT: f64 = (1u64 << 62) as f64;

/// What makes probabilities of a row's logits.
#[derive(Debug, Clone, Copy)]
pub struct Scores {
    /// The largest of them, over the whole vocabulary.
    pub largest: f64,
    /// Greater than 0.
    pub temperature: f64,
}

impl Scores {
    /// A token's probability over that of the likeliest one. NaN is nothing.
    pub fn weight(&self, logit: f32) -> f64 {
        self.log_weight(logit).exp()
    }

    fn log_weight(&self, logit: f32) -> f64 {
        let logit = match logit.is_nan() {
            true => f32::NEG_INFINITY,
            false => logit,
        };
        (f64::from(logit) - self.largest) / self.temperature
    }
}

/// A token and its logit as a number that is the larger the likelier the token is, and among equals the smaller its id.
fn key(id: u32, logit: f32) -> u64 {
    let logit = match logit.is_nan() {
        true => f32::NEG_INFINITY,
        false => logit,
    };
    // The order of `total_cmp`, but for the two zeros, which are equal.
    let bits = (logit + 0.0).to_bits();
    let ordered = match bits >> 31 {
        0 => bits | 1 << 31,
        _ => !bits,
    };
    u64::from(ordered) << 32 | u64::from(!id)
}

fn id(key: u64) -> u32 {
    !(key as u32)
}

/// This rank's candidates of a row, in the order of their ids.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    keys: Vec<u64>,
}

impl Candidates {
    /// The ids.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.keys.iter().map(|&key| id(key))
    }
}

/// A row of which only some tokens may be drawn.
pub struct Choice<'a> {
    /// Of this rank's part of the vocabulary.
    pub logits: &'a [f32],
    /// Id of the first of them.
    pub first: u32,
    /// Over the whole vocabulary.
    pub scores: Scores,
    /// What may be drawn.
    pub sampling: Sampling,
    /// Takes this rank's part of the tokens that are left.
    pub candidates: &'a mut Candidates,
}

impl Choice<'_> {
    /// Whether such options leave out any token.
    pub fn is_needed(sampling: &Sampling) -> bool {
        sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0
    }

    fn logit(&self, key: u64) -> f32 {
        self.logits[(id(key) - self.first) as usize]
    }

    /// The share of the mass of all candidates that the likeliest ones reach, or their number.
    fn search(&self, goal: Goal) -> Search {
        let measure = |&key: &u64| match goal {
            Goal::Count(_) => (key, 1),
            Goal::Share(_) => {
                let weight = self.scores.weight(self.logit(key));
                (key, (weight * UNIT) as u64)
            }
        };
        Search {
            open: self.candidates.keys.iter().map(measure).collect(),
            goal,
            total: None,
            above: 0,
            prefix: 0,
            shift: u64::BITS - DIGIT_BITS,
            cutoff: None,
        }
    }
}

/// Leaves each row the tokens that its options say, always with the likeliest one.
pub fn select(rows: &mut [Choice], exchange: &mut impl Exchange) {
    for row in rows.iter_mut() {
        let keys = &mut row.candidates.keys;
        keys.clear();
        let logits = (row.first..).zip(row.logits);
        keys.extend(logits.map(|(id, &logit)| key(id, logit)));
    }
    let top_k = |sampling: &Sampling| (sampling.top_k > 0).then_some(Goal::Count(sampling.top_k));
    keep_likeliest(rows, top_k, exchange);
    let top_p = |sampling: &Sampling| (sampling.top_p < 1.0).then_some(Goal::Share(sampling.top_p));
    keep_likeliest(rows, top_p, exchange);
    for row in rows.iter_mut().filter(|row| row.sampling.min_p > 0.0) {
        let least = row.sampling.min_p.ln();
        let mut keys = std::mem::take(&mut row.candidates.keys);
        keys.retain(|&key| row.scores.log_weight(row.logit(key)) >= least);
        row.candidates.keys = keys;
    }
}

/// Keeps, of the candidates of each row that has a goal, the smallest set of likeliest ones that reaches it.
fn keep_likeliest(
    rows: &mut [Choice],
    goal: impl Fn(&Sampling) -> Option<Goal>,
    exchange: &mut impl Exchange,
) {
    let searches = rows
        .iter()
        .map(|row| goal(&row.sampling).map(|goal| row.search(goal)));
    let mut searches: Vec<Option<Search>> = searches.collect();
    loop {
        let mut open: Vec<&mut Search> = searches
            .iter_mut()
            .flatten()
            .filter(|search| search.cutoff.is_none())
            .collect();
        if open.is_empty() {
            break;
        }
        let own: Vec<Vec<Bucket>> = open.iter().map(|search| search.buckets()).collect();
        let of_ranks = exchange.all(own);
        for (place, search) in open.iter_mut().enumerate() {
            search.narrow(of_ranks.iter().flat_map(|rank| &rank[place]));
        }
    }
    for (row, search) in rows.iter_mut().zip(searches) {
        if let Some(cutoff) = search.and_then(|search| search.cutoff) {
            row.candidates.keys.retain(|&key| key >= cutoff);
        }
    }
}

/// Where the search stops.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// So many.
    Count(usize),
    /// This share of the mass of all.
    Share(f64),
}

/// The candidates whose keys have the same next digit.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Bucket {
    digit: u8,
    count: u32,
    /// Number or mass.
    measure: u128,
}

/// Looks for the smallest key of the likeliest tokens that reach a goal, a digit a round.
#[derive(Debug)]
struct Search {
    /// Keys with this prefix, and what each of them counts.
    open: Vec<(u64, u64)>,
    goal: Goal,
    /// Of all candidates of all ranks.
    total: Option<u128>,
    /// What the keys above those with this prefix count.
    above: u128,
    prefix: u64,
    /// Of the next digit.
    shift: u32,
    /// Keys from here on are kept.
    cutoff: Option<u64>,
}

impl Search {
    /// This rank's, without the empty ones.
    fn buckets(&self) -> Vec<Bucket> {
        let mut buckets = [(0u32, 0u128); 1 << DIGIT_BITS];
        for &(key, measure) in &self.open {
            let bucket = &mut buckets[usize::from((key >> self.shift) as u8)];
            *bucket = (bucket.0 + 1, bucket.1 + u128::from(measure));
        }
        let occupied = (0..=u8::MAX)
            .zip(buckets)
            .filter(|(_, (count, _))| *count > 0);
        occupied
            .map(|(digit, (count, measure))| Bucket {
                digit,
                count,
                measure,
            })
            .collect()
    }

    /// Continues in the bucket in which the goal is reached, given those of all ranks.
    fn narrow<'a>(&mut self, of_ranks: impl Iterator<Item = &'a Bucket>) {
        let mut buckets = [(0u64, 0u128); 1 << DIGIT_BITS];
        for bucket in of_ranks {
            let sum = &mut buckets[usize::from(bucket.digit)];
            *sum = (sum.0 + u64::from(bucket.count), sum.1 + bucket.measure);
        }
        let all = || buckets.iter().map(|bucket| bucket.1).sum();
        let total = *self.total.get_or_insert_with(all);
        let reached = |sum: u128| match self.goal {
            Goal::Count(count) => sum >= count as u128,
            Goal::Share(share) => sum as f64 >= share * total as f64,
        };
        for (digit, &(count, measure)) in buckets.iter().enumerate().rev() {
            if count > 0 && reached(self.above + measure) {
                self.prefix |= (digit as u64) << self.shift;
                if count == 1 || self.shift == 0 {
                    self.cutoff = Some(self.prefix);
                    return;
                }
                let (prefix, shift) = (self.prefix, self.shift);
                self.open.retain(|(key, _)| key >> shift == prefix >> shift);
                self.shift -= DIGIT_BITS;
                return;
            }
            self.above += measure;
        }
        // All together do not reach it.
        self.cutoff = Some(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sampling::Alone;

    fn compare(logits: &[f32], a: u32, b: u32) -> std::cmp::Ordering {
        let logit = |id: u32| logits[id as usize];
        let logit = |id: u32| logit(id) + 0.0;
        logit(b).total_cmp(&logit(a)).then(a.cmp(&b))
    }

    /// By a sort of all.
    fn plainly(logits: &[f32], scores: &Scores, sampling: &Sampling) -> Vec<u32> {
        let weight = |id: u32| scores.weight(logits[id as usize]);
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| compare(logits, a, b));
        if sampling.top_k > 0 {
            ids.truncate(sampling.top_k);
        }
        let total: f64 = ids.iter().map(|&id| weight(id)).sum();
        let mut before = 0.0;
        ids.retain(|&id| {
            let kept = sampling.top_p >= 1.0 || before < sampling.top_p * total * (1.0 - 1e-12);
            before += weight(id);
            kept
        });
        ids.retain(|&id| weight(id) >= sampling.min_p * (1.0 - 1e-12));
        ids.sort_unstable();
        ids
    }

    #[test]
    fn keys_are_in_the_order_of_likelihood() {
        let logits = [
            f32::NEG_INFINITY,
            -2.0,
            -1e-40,
            -0.0,
            0.0,
            -0.0,
            1e-40,
            1.0,
            f32::MAX,
            f32::INFINITY,
            1.0,
        ];
        for a in 0..logits.len() as u32 {
            assert_eq!(id(key(a, logits[a as usize])), a);
            for b in 0..logits.len() as u32 {
                let keys = [b, a].map(|id| key(id, logits[id as usize]));
                assert_eq!(keys[0].cmp(&keys[1]), compare(&logits, a, b), "{a}, {b}");
            }
        }
        assert_eq!(key(3, f32::NAN), key(3, f32::NEG_INFINITY));
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
            let scores = Scores { largest, temperature };
            let sampling = Sampling { top_k, top_p, min_p, ..Sampling::default() };
            let mut candidates = Candidates::default();
            let row = Choice { logits: &logits, first: 0, scores, sampling, candidates: &mut candidates };
            select(&mut [row], &mut Alone);
            let found: Vec<u32> = candidates.ids().collect();
            prop_assert!(!found.is_empty());
            prop_assert_eq!(found, plainly(&logits, &scores, &sampling));
        }
    }
}
