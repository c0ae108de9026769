//! The order in which documents are seen: a pure function of their lengths, the shares and the
//! seed.

use super::hash::permutation;
use crate::config::Share;

/// Keeps these random orders apart from others of the same seed.
const PURPOSE: u64 = 1;

/// A document in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Turn {
    pub source: u32,
    pub document: u32,
}

/// One source as the mixture sees it.
#[derive(Debug, Clone)]
pub(super) struct MixtureSource {
    /// Tokens of each document; none is 0.
    pub lengths: Vec<u64>,
    pub share: Share,
}

impl MixtureSource {
    /// What the source's tokens are measured against: all it will give, or its weight.
    fn target(&self) -> f64 {
        match self.share {
            Share::Epochs(epochs) => self.lengths.iter().sum::<u64>() as f64 * f64::from(epochs),
            Share::Weight(weight) => weight,
        }
    }

    fn is_done(&self, epoch: u64) -> bool {
        self.lengths.is_empty()
            || matches!(self.share, Share::Epochs(epochs) if epoch >= u64::from(epochs))
    }
}

/// The order of documents. Sources with epochs end when each document has had its turns; those with
/// weights go on without end, so take no more than needed.
///
/// - Each epoch of a source is a fresh permutation of its documents.
/// - Every draw takes from the source that has given the smallest part of its target so far (all
///   its epochs' tokens, or its weight), and of several from the first. So what each has given, as
///   a part of its target, differs between two sources by at most one document at any time, and
///   sources with epochs end together.
pub(super) fn turns(sources: &[MixtureSource], seed: u64) -> impl Iterator<Item = Turn> + '_ {
    let targets: Vec<f64> = sources.iter().map(MixtureSource::target).collect();
    let mut given = vec![0u64; sources.len()];
    let mut cursors: Vec<Cursor> = vec![Cursor::default(); sources.len()];
    std::iter::from_fn(move || {
        let part = |source: &usize| given[*source] as f64 / targets[*source];
        let source = (0..sources.len())
            .filter(|&source| !sources[source].is_done(cursors[source].epoch))
            .min_by(|a, b| part(a).total_cmp(&part(b)))?;
        let document = cursors[source].next(source as u64, sources[source].lengths.len(), seed);
        given[source] += sources[source].lengths[document as usize];
        Some(Turn {
            source: source as u32,
            document,
        })
    })
}

/// How far a source is: its epoch, and the place in that epoch's order.
#[derive(Debug, Clone, Default)]
struct Cursor {
    epoch: u64,
    place: usize,
    order: Vec<u32>,
}

impl Cursor {
    fn next(&mut self, source: u64, documents: usize, seed: u64) -> u32 {
        if self.place == 0 {
            self.order = permutation(documents as u32, seed, [PURPOSE, source, self.epoch]);
        }
        let document = self.order[self.place];
        self.place += 1;
        if self.place == documents {
            self.place = 0;
            self.epoch += 1;
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn with_epochs() -> impl Strategy<Value = Vec<MixtureSource>> {
        let source =
            (prop::collection::vec(1u64..200, 1..20), 1u32..5).prop_map(|(lengths, epochs)| {
                MixtureSource {
                    lengths,
                    share: Share::Epochs(epochs),
                }
            });
        prop::collection::vec(source, 1..5)
    }

    fn with_weights() -> impl Strategy<Value = Vec<MixtureSource>> {
        let source =
            (prop::collection::vec(1u64..200, 1..20), 0.1..10.0).prop_map(|(lengths, weight)| {
                MixtureSource {
                    lengths,
                    share: Share::Weight(weight),
                }
            });
        prop::collection::vec(source, 1..5)
    }

    /// At every prefix, no source is ahead of another by more than its longest document.
    fn check_proportions(sources: &[MixtureSource], turns: &[Turn]) -> Result<(), TestCaseError> {
        let mut given = vec![0; sources.len()];
        let ahead = |source: usize, given: &[u64]| given[source] as f64 / sources[source].target();
        for turn in turns {
            given[turn.source as usize] +=
                sources[turn.source as usize].lengths[turn.document as usize];
            for a in 0..sources.len() {
                let longest =
                    *sources[a].lengths.iter().max().unwrap() as f64 / sources[a].target();
                for b in 0..sources.len() {
                    let (a, b) = (ahead(a, &given), ahead(b, &given));
                    prop_assert!(a <= b + longest + 1e-9, "{} against {}", a, b);
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn every_document_is_seen_once_an_epoch(sources in with_epochs(), seed: u64) {
            let turns: Vec<Turn> = turns(&sources, seed).collect();
            let mut counts: HashMap<Turn, u32> = HashMap::new();
            let mut drawn: Vec<Vec<u32>> = vec![Vec::new(); sources.len()];
            for turn in &turns {
                *counts.entry(*turn).or_default() += 1;
                drawn[turn.source as usize].push(turn.document);
            }
            for (index, source) in sources.iter().enumerate() {
                let Share::Epochs(epochs) = source.share else { unreachable!() };
                prop_assert_eq!(drawn[index].len(), source.lengths.len() * epochs as usize);
                for epoch in drawn[index].chunks_mut(source.lengths.len()) {
                    epoch.sort_unstable();
                    prop_assert!(epoch.iter().copied().eq(0..source.lengths.len() as u32));
                }
                for document in 0..source.lengths.len() as u32 {
                    prop_assert_eq!(counts[&Turn { source: index as u32, document }], epochs);
                }
            }
            check_proportions(&sources, &turns)?;
        }

        #[test]
        fn weights_are_kept_at_every_prefix(sources in with_weights(), seed: u64) {
            let turns: Vec<Turn> = turns(&sources, seed).take(300).collect();
            prop_assert_eq!(turns.len(), 300);
            check_proportions(&sources, &turns)?;
        }

        #[test]
        fn the_order_depends_on_the_seed_alone(sources in with_epochs(), seed: u64) {
            let first: Vec<Turn> = turns(&sources, seed).collect();
            prop_assert!(turns(&sources, seed).eq(first.iter().copied()));
            let documents: usize = sources.iter().map(|source| source.lengths.len()).max().unwrap();
            if documents > 12 {
                prop_assert!(!turns(&sources, seed.wrapping_add(1)).eq(first));
            }
        }
    }

    #[test]
    fn epochs_come_in_different_orders() {
        let source = MixtureSource {
            lengths: vec![1; 50],
            share: Share::Epochs(2),
        };
        let documents: Vec<u32> = turns(&[source], 0).map(|turn| turn.document).collect();
        assert_ne!(documents[..50], documents[50..]);
    }
}
