//! The rule by which drafted tokens count.

/// Appends to a text what the model drew after it, and after each drafted token as long as the draft is what was drawn: a
/// drafted token counts when the model itself draws it. So the text is the one without a draft, whatever is drafted.
///
/// A token for which `ends` is true is the last. Returns the number of drafted tokens that were drawn.
pub fn verify(
    drawn: &[u32],
    text: &mut Vec<u32>,
    draft: &[u32],
    ends: impl Fn(u32) -> bool,
) -> usize {
    for (place, &drawn) in drawn.iter().enumerate() {
        text.push(drawn);
        let accepted = draft.get(place) == Some(&drawn);
        if !accepted || ends(drawn) {
            return place + usize::from(accepted);
        }
    }
    draft.len()
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;
    use crate::sampling::testing::{deviate, processed};
    use crate::sampling::{Draws, Memory, Sampler, Sampling};

    /// Tokens drafted at a time.
    const DEPTH: usize = 2;

    /// Tokens of a text.
    const LENGTH: usize = 3;

    const VOCABULARY: usize = 5;

    /// A target and a draft whose next token depends on the last one alone.
    struct Toy {
        target: [[f32; VOCABULARY]; VOCABULARY],
        draft: [[f32; VOCABULARY]; VOCABULARY],
        sampling: Sampling,
    }

    type Row = Vec<f64>;

    impl Toy {
        fn new() -> Self {
            let logits = |shift: f32, size: f32| {
                let logit = |last: usize, id: usize| {
                    size * ((3 * last + 5 * id) as f32 * 0.9 + shift).sin()
                };
                std::array::from_fn(|last| std::array::from_fn(|id| logit(last, id)))
            };
            Self {
                target: logits(0.0, 1.5),
                draft: logits(0.6, 1.2),
                sampling: Sampling {
                    temperature: 0.8,
                    top_p: 0.85,
                    ..Sampling::default()
                },
            }
        }

        fn processed(&self, logits: &[[f32; VOCABULARY]; VOCABULARY], last: u32) -> Row {
            processed(&logits[last as usize], &self.sampling, &[], &[])
        }

        fn raw(&self, last: u32) -> Row {
            let plain = Sampling {
                temperature: 1.0,
                ..Sampling::default()
            };
            processed(&self.target[last as usize], &plain, &[], &[])
        }

        /// The probability of every text.
        fn exact(&self) -> Row {
            let mut texts = vec![(0u32, 1.0)];
            for _ in 0..LENGTH {
                let next = texts.iter().flat_map(|&(last, probability)| {
                    let row = self.processed(&self.target, last).into_iter();
                    row.enumerate()
                        .map(move |(id, p)| (id as u32, probability * p))
                });
                texts = next.collect();
            }
            texts
                .into_iter()
                .map(|(_, probability)| probability)
                .collect()
        }

        /// How far the texts of a rule are from the exact ones, in standard deviations.
        fn deviate(&self, rule: impl Fn(&Self, u64) -> Vec<u32>) -> f64 {
            let mut counts = vec![0; VOCABULARY.pow(LENGTH as u32)];
            for seed in 0..20_000 {
                let text = rule(self, seed);
                let number = text[..LENGTH]
                    .iter()
                    .fold(0, |n, &id| n * VOCABULARY + id as usize);
                counts[number] += 1;
            }
            deviate(&counts, &self.exact())
        }

        /// Ours, with drafts of the same noise, or of other noise.
        fn coupled(&self, seed: u64, of_draft: u64) -> Vec<u32> {
            let with = |seed| Sampling {
                seed,
                ..self.sampling
            };
            let (sampling, mut drafter) = (with(seed), Sampler::new(with(of_draft)));
            let mut memory = Memory::default();
            let mut text = vec![0];
            while text.len() <= LENGTH {
                let mut guess = text.clone();
                for _ in 0..DEPTH {
                    let last = guess[guess.len() - 1] as usize;
                    let drawn = drafter.sample(&self.draft[last], &guess[..1], &guess[1..]);
                    guess.push(drawn);
                }
                let rows = guess[text.len() - 1..].iter();
                let logits: Vec<f32> = rows.flat_map(|&last| self.target[last as usize]).collect();
                let draft = guess.split_off(text.len());
                let drawn = Draws::new(sampling, &text, 1, &draft)
                    .alone(&logits.chunks(VOCABULARY).collect::<Vec<_>>(), &mut memory);
                verify(&drawn, &mut text, &draft, |_| false);
            }
            text[1..=LENGTH].to_vec()
        }

        /// Rejection sampling (arXiv 2211.17192), right or with a fault.
        fn rejected(&self, seed: u64, fault: Option<Fault>) -> Vec<u32> {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            let mut uniform = || (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            let target = |last: u32| match fault {
                Some(Fault::RawTarget) => self.raw(last),
                _ => self.processed(&self.target, last),
            };
            let mut text = vec![0u32];
            'steps: while text.len() <= LENGTH {
                for _ in 0..DEPTH {
                    let last = text[text.len() - 1];
                    let (p, q) = (target(last), self.processed(&self.draft, last));
                    let x = draw(&q, uniform());
                    let accepted = match fault {
                        Some(Fault::Threshold) => p[x] > 0.3,
                        _ => uniform() < p[x] / q[x],
                    };
                    if accepted {
                        text.push(x as u32);
                        continue;
                    }
                    let rest: Row = p
                        .iter()
                        .zip(&q)
                        .map(|(p, q)| match fault {
                            Some(Fault::Resampled) => *p,
                            Some(Fault::Unclamped) => (p - q).abs(),
                            _ => (p - q).max(0.0),
                        })
                        .collect();
                    text.push(draw(&rest, uniform()) as u32);
                    continue 'steps;
                }
                let last = text[text.len() - 1];
                let row = match fault {
                    Some(Fault::RawBonus) => self.raw(last),
                    Some(Fault::RowBefore) => target(text[text.len() - 2]),
                    _ => target(last),
                };
                text.push(draw(&row, uniform()) as u32);
            }
            text.split_off(1)
        }
    }

    /// What goes wrong in other implementations.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        /// The target's probabilities are not processed.
        RawTarget,
        /// What replaces a rejected token is drawn from the target.
        Resampled,
        /// … or from the difference without a sign.
        Unclamped,
        /// A drafted token counts when it is likely enough.
        Threshold,
        /// The token after an accepted draft is drawn from probabilities that are not processed.
        RawBonus,
        /// … or that belong to the position before.
        RowBefore,
    }

    /// An index with a probability in proportion to its weight.
    fn draw(weights: &[f64], uniform: f64) -> usize {
        let mut point = uniform * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            point -= weight;
            point < 0.0
        });
        drawn.unwrap_or(weights.len() - 1)
    }

    #[test]
    fn texts_with_drafts_have_the_probabilities_of_those_without() {
        let toy = Toy::new();
        for (name, found) in [
            (
                "the same noise",
                toy.deviate(|toy, seed| toy.coupled(seed, seed)),
            ),
            (
                "other noise",
                toy.deviate(|toy, seed| toy.coupled(seed, seed + 1_000_000)),
            ),
            (
                "rejection",
                toy.deviate(|toy, seed| toy.rejected(seed, None)),
            ),
        ] {
            assert!(found < 4.0, "{name}: {found}");
        }
        let agrees = |toy: &Toy, seed| toy.coupled(seed, seed) == toy.coupled(seed, seed + 99);
        assert!((0..500).all(|seed| agrees(&toy, seed)));
    }

    #[test]
    fn the_same_test_finds_every_wrong_rule() {
        let toy = Toy::new();
        for fault in [
            Fault::RawTarget,
            Fault::Resampled,
            Fault::Unclamped,
            Fault::Threshold,
            Fault::RawBonus,
            Fault::RowBefore,
        ] {
            let found = toy.deviate(|toy, seed| toy.rejected(seed, Some(fault)));
            assert!(found > 4.0, "{fault:?}: {found}");
        }
    }
}
