//! How likely tokens are by the model itself.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Exchange;

/// A token, and how likely the model's own logits make it: before bias, penalties, temperature and whatever else chooses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The token.
    pub id: u32,
    /// Its log-probability, in nats.
    pub log_probability: f32,
    /// The likeliest tokens with their log-probabilities, as many as were asked for; of equal ones the smaller id comes
    /// first.
    pub likeliest: Vec<(u32, f32)>,
}

/// What is scored.
#[derive(Debug, Clone, Copy)]
pub struct ScoredRow<'a> {
    /// Of this rank's part of the vocabulary.
    pub logits: &'a [f32],
    /// The token, of any rank's part.
    pub id: u32,
    /// How many of the likeliest tokens to name.
    pub likeliest: usize,
}

/// What a rank knows of a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct PartOfRow {
    largest: f32,
    /// `Σ exp(logit − largest)`.
    mass: f64,
    /// That of the token, on the rank that has it.
    logit: Option<f32>,
    /// The likeliest ones with their logits.
    likeliest: Vec<(u32, f32)>,
}

/// The scores of each row. The logits are those of the ids from `first` on.
pub fn score(rows: &[ScoredRow], first: u32, exchange: &mut impl Exchange) -> Vec<Scored> {
    if rows.is_empty() {
        // Then no rank has any.
        return Vec::new();
    }
    let own: Vec<PartOfRow> = rows
        .par_iter()
        .map(|row| PartOfRow::of(row, first))
        .collect();
    let of_ranks = exchange.all(own);
    let whole = rows.iter().enumerate().map(|(place, row)| {
        let parts = of_ranks.iter().map(|rank| &rank[place]);
        let largest = parts.clone().map(|part| part.largest);
        let largest = largest.fold(f32::MIN, f32::max);
        let mass = parts.clone().map(|part| {
            let shift = f64::from(part.largest) - f64::from(largest);
            part.mass * shift.exp()
        });
        let log_mass = mass.sum::<f64>().ln();
        let log_probability =
            |logit: f32| (f64::from(logit) - f64::from(largest) - log_mass) as f32;
        let logit = parts.clone().find_map(|part| part.logit);
        let mut likeliest: Vec<(u32, f32)> =
            parts.flat_map(|part| &part.likeliest).copied().collect();
        likeliest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        likeliest.truncate(row.likeliest);
        Scored {
            id: row.id,
            log_probability: log_probability(logit.unwrap_or(f32::NAN)),
            likeliest: likeliest
                .into_iter()
                .map(|(id, logit)| (id, log_probability(logit)))
                .collect(),
        }
    });
    whole.collect()
}

impl PartOfRow {
    fn of(row: &ScoredRow, first: u32) -> Self {
        // A part of nothing but minus infinity sums up to 0.
        let largest = row.logits.iter().copied().fold(f32::MIN, f32::max);
        let weight = |&logit: &f32| (f64::from(logit) - f64::from(largest)).exp();
        let place = row.id.checked_sub(first).map(|place| place as usize);
        Self {
            largest,
            mass: row.logits.iter().map(weight).sum(),
            logit: place.and_then(|place| row.logits.get(place)).copied(),
            likeliest: likeliest(row.logits, first, row.likeliest),
        }
    }
}

/// The `count` largest logits with their ids, largest first, and of equal ones the smaller id first.
fn likeliest(logits: &[f32], first: u32, count: usize) -> Vec<(u32, f32)> {
    let mut kept: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return kept;
    }
    for (id, &logit) in (first..).zip(logits) {
        if kept.len() == count && logit.total_cmp(&kept[count - 1].1).is_le() {
            continue;
        }
        let place = kept.partition_point(|(_, other)| other.total_cmp(&logit).is_ge());
        kept.insert(place, (id, logit));
        kept.truncate(count);
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sampling::Alone;

    /// By the definition.
    fn plainly(logits: &[f32], id: u32, count: usize) -> (f64, Vec<u32>) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass: f64 = logits
            .iter()
            .map(|&logit| f64::from(logit - largest).exp())
            .sum();
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| {
            logits[b as usize]
                .total_cmp(&logits[a as usize])
                .then(a.cmp(&b))
        });
        ids.truncate(count);
        (f64::from(logits[id as usize] - largest) - mass.ln(), ids)
    }

    /// The parts of all ranks, of which one asks.
    struct Ranks(Vec<Vec<u8>>);

    impl Exchange for Ranks {
        fn ranks(&self) -> usize {
            self.0.len()
        }

        fn all<T: Serialize + serde::de::DeserializeOwned>(&mut self, _: T) -> Vec<T> {
            let parts = self.0.iter();
            parts
                .map(|part| postcard::from_bytes(part).unwrap())
                .collect()
        }
    }

    proptest! {
        #[test]
        fn scores_are_those_of_the_definition_however_the_vocabulary_is_divided(
            logits in prop::collection::vec(-20i8..20, 1..300),
            id in any::<prop::sample::Index>(),
            count in 0usize..25,
            cut in any::<prop::sample::Index>(),
        ) {
            // Many are equal.
            let mut logits: Vec<f32> = logits.into_iter().map(|n| f32::from(n) / 4.0).collect();
            // Tokens that cannot be.
            let last = logits.len() - 1;
            logits[..last / 3].fill(f32::NEG_INFINITY);
            let id = id.index(logits.len()) as u32;
            let row = ScoredRow { logits: &logits, id, likeliest: count };
            let found = score(&[row], 0, &mut Alone).remove(0);
            let (expected, ids) = plainly(&logits, id, count);
            let close = |a: f32, b: f64| f64::from(a) == b || (f64::from(a) - b).abs() < 1e-6;
            prop_assert!(close(found.log_probability, expected));
            prop_assert_eq!(found.likeliest.iter().map(|&(id, _)| id).collect::<Vec<_>>(), ids);
            for &(likely, value) in &found.likeliest {
                let alone = ScoredRow { logits: &logits, id: likely, likeliest: 0 };
                // The same number, so that a reader can tell the likeliest token by it.
                prop_assert_eq!(value, score(&[alone], 0, &mut Alone)[0].log_probability);
            }

            let cut = cut.index(logits.len());
            let parts = [(0, &logits[..cut]), (cut as u32, &logits[cut..])];
            let parts = parts.into_iter().filter(|(_, logits)| !logits.is_empty());
            let parts: Vec<_> = parts
                .map(|(first, logits)| {
                    let row = ScoredRow { logits, id, likeliest: count };
                    postcard::to_allocvec(&vec![PartOfRow::of(&row, first)]).unwrap()
                })
                .collect();
            let divided = score(&[row], 0, &mut Ranks(parts)).remove(0);
            prop_assert!(close(divided.log_probability, found.log_probability.into()));
            prop_assert_eq!(divided.likeliest.len(), found.likeliest.len());
            for (a, b) in divided.likeliest.iter().zip(&found.likeliest) {
                prop_assert_eq!(a.0, b.0);
                prop_assert!(close(a.1, b.1.into()));
            }
        }
    }
}
