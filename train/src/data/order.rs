//! The order in which a run sees its text: a pure function of the sources' sizes and shares, the
//! lengths of their sequences and the seed. It is computed on demand and never stored, so that 13 trillion tokens take
//! as little memory as a thousand.

use firebox_model::permutation::Permutation;

use super::mixture::{MOST, Mixture};
use crate::config::Share;

/// The rate of the largest weight: rates are integers, so that all arithmetic is exact.
const LARGEST_WEIGHT: f64 = (1u64 << 40) as f64;

/// Maps the index of a sequence to its place in the text.
///
/// - A source's tokens, repeated once per epoch, are cut into sequences of so many inputs; the
///   targets are one token further on. Cuts continue across epochs, so that each epoch is cut at
///   other positions, and only the last sequence of a source may be shorter. The last token is
///   followed by the first one: every token is an input once per epoch, and a target once per epoch.
/// - The sequences that begin in the same epoch are shuffled. Documents are not: short documents that
///   are neighbours in the source are neighbours in a sequence. In return, a sequence is contiguous
///   text of one source, and a batch is a random sample of the whole epoch.
/// - Sources interleave in proportion to their total number of sequences (with epochs) or to their
///   weights, to within half a sequence of each at any prefix. Sources with epochs end together.
///   Sources with weights never end, so that a longer run begins with the sequences of a shorter one.
#[derive(Debug, Clone)]
pub(super) struct Order {
    sources: Vec<OrderSource>,
    mixture: Mixture,
    seed: u64,
}

/// A source as the order sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrderSource {
    /// Tokens of its text; not 0.
    pub tokens: u64,
    /// Inputs of a sequence; not 0. Captions of pictures, each of which is a sequence, count as one.
    pub sequence: u64,
    /// How much of it is seen.
    pub share: Share,
}

impl OrderSource {
    /// Tokens of all its epochs; `None` if it has a weight and repeats without end.
    pub fn total(&self) -> Option<u128> {
        match self.share {
            Share::Epochs(epochs) => Some(u128::from(self.tokens) * u128::from(epochs)),
            Share::Weight(_) => None,
        }
    }

    /// Sequences of all its epochs.
    fn sequences(&self) -> Option<u128> {
        Some(self.total()?.div_ceil(self.sequence.into()))
    }
}

/// The place of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// The source.
    pub source: usize,
    /// Its first input, in tokens from the start of the source's text.
    pub start: u64,
    /// Inputs, and targets: those of a sequence of the source, or fewer at the end of all epochs.
    pub length: u64,
}

impl Order {
    /// The order of sources that all have epochs, or all weights.
    ///
    /// # Panics
    ///
    /// When there is no source, or one has sequences of nothing.
    pub fn new(sources: Vec<OrderSource>, seed: u64) -> Self {
        let is_empty = |source: &OrderSource| source.sequence == 0;
        assert!(!sources.iter().any(is_empty), "sequences of nothing");
        let weight = |source: &OrderSource| match source.share {
            Share::Weight(weight) => weight,
            Share::Epochs(_) => 0.0,
        };
        let largest = sources.iter().map(weight).fold(0.0, f64::max);
        let rate = |source: &OrderSource| match source.sequences() {
            Some(sequences) => sequences.min(MOST.into()) as u64,
            None => ((weight(source) / largest * LARGEST_WEIGHT).round() as u64).max(1),
        };
        Self {
            mixture: Mixture::new(sources.iter().map(rate).collect()),
            sources,
            seed,
        }
    }

    /// Number of sequences; `None` if the sources repeat without end.
    pub fn sequences(&self) -> Option<u64> {
        let counts = self.sources.iter().map(OrderSource::sequences);
        let all: u128 = counts.sum::<Option<u128>>()?;
        Some(u64::try_from(all).unwrap_or(u64::MAX))
    }

    /// The place of the sequence at `index`, which must be below [`sequences`](Self::sequences).
    pub fn place(&self, index: u64) -> Place {
        let turn = self.mixture.turn(index);
        let source = self.sources[turn.source];
        let (context, tokens) = (u128::from(source.sequence), u128::from(source.tokens));
        // The range of sequences that begin in the same epoch.
        let epoch = u128::from(turn.number) * context / tokens;
        let first = (epoch * tokens).div_ceil(context) as u64;
        let end = ((epoch + 1) * tokens).div_ceil(context) as u64;
        let purpose = [turn.source as u64, epoch as u64];
        let order = Permutation::new(end - first, self.seed, purpose);
        let number = first + order.at(turn.number - first);

        let begin = u128::from(number) * context;
        let left = source.total().map_or(context, |total| total - begin);
        Place {
            source: turn.source,
            start: (begin % tokens) as u64,
            length: left.min(context) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn with_epochs(sources: &[(u64, u32)], context: u64, seed: u64) -> Order {
        let source = |&(tokens, epochs)| OrderSource {
            tokens,
            sequence: context,
            share: Share::Epochs(epochs),
        };
        Order::new(sources.iter().map(source).collect(), seed)
    }

    fn with_weights(sources: &[(u64, f64)], context: u64, seed: u64) -> Order {
        let source = |&(tokens, weight)| OrderSource {
            tokens,
            sequence: context,
            share: Share::Weight(weight),
        };
        Order::new(sources.iter().map(source).collect(), seed)
    }

    fn places(order: &Order) -> Vec<Place> {
        let count = order.sequences().unwrap();
        (0..count).map(|index| order.place(index)).collect()
    }

    /// The described GPT-4's 13 trillion tokens: text twice, code four times.
    fn gpt4() -> Order {
        with_epochs(&[(4_000_000_000_000, 2), (1_250_000_000_000, 4)], 8192, 11)
    }

    proptest! {
        #[test]
        fn every_token_is_an_input_and_a_target_once_an_epoch(
            sources in prop::collection::vec((1u64..120, 1u32..5), 1..5),
            context in 1u64..40,
            seed: u64,
        ) {
            let order = with_epochs(&sources, context, seed);
            let mut inputs: Vec<Vec<u32>> = sources.iter().map(|(tokens, _)| vec![0; *tokens as usize]).collect();
            let mut targets = inputs.clone();
            for Place { source, start, length } in places(&order) {
                prop_assert!((1..=context).contains(&length));
                for token in start..start + length {
                    let tokens = sources[source].0;
                    inputs[source][(token % tokens) as usize] += 1;
                    targets[source][((token + 1) % tokens) as usize] += 1;
                }
            }
            for (source, (_, epochs)) in sources.iter().enumerate() {
                prop_assert!(inputs[source].iter().all(|count| count == epochs), "{:?}", inputs[source]);
                prop_assert!(targets[source].iter().all(|count| count == epochs), "{:?}", targets[source]);
            }
        }

        #[test]
        fn proportions_are_kept_at_every_prefix(
            sources in prop::collection::vec((1u64..3000, 1u32..5), 1..5),
            context in 1u64..40,
            seed: u64,
        ) {
            let order = with_epochs(&sources, context, seed);
            let all: f64 = sources.iter().map(|(tokens, epochs)| (tokens * u64::from(*epochs)) as f64).sum();
            let (mut given, mut seen) = (vec![0; sources.len()], 0);
            for place in places(&order) {
                given[place.source] += place.length;
                seen += place.length;
                for (given, (tokens, epochs)) in given.iter().zip(&sources) {
                    let part = (tokens * u64::from(*epochs)) as f64 / all;
                    let off = *given as f64 - seen as f64 * part;
                    // Half a turn of each source, and what the last sequences are short of.
                    let most = (sources.len() as u64 + 2) * context;
                    prop_assert!(off.abs() <= most as f64, "{off} tokens");
                }
            }
        }

        #[test]
        fn weights_are_kept_at_every_prefix(
            sources in prop::collection::vec((1u64..3000, 0.01f64..10.0), 1..5),
            context in 1u64..40,
            seed: u64,
        ) {
            let order = with_weights(&sources, context, seed);
            prop_assert_eq!(order.sequences(), None);
            let all: f64 = sources.iter().map(|(_, weight)| weight).sum();
            let mut given = vec![0u32; sources.len()];
            for index in 0..300 {
                let place = order.place(index);
                prop_assert_eq!(place.length, context);
                given[place.source] += 1;
                for (given, (_, weight)) in given.iter().zip(&sources) {
                    let off = f64::from(*given) - (index + 1) as f64 * weight / all;
                    prop_assert!(off.abs() <= sources.len() as f64, "{off} sequences");
                }
            }
        }

        #[test]
        fn the_order_depends_on_the_seed_alone(
            sources in prop::collection::vec((1000u64..5000, 1u32..5), 1..5),
            seed: u64,
        ) {
            let first = places(&with_epochs(&sources, 8, seed));
            prop_assert_eq!(&places(&with_epochs(&sources, 8, seed)), &first);
            prop_assert_ne!(&places(&with_epochs(&sources, 8, seed.wrapping_add(1))), &first);
        }
    }

    #[test]
    fn epochs_are_cut_elsewhere_and_come_in_different_orders() {
        let starts = |tokens| -> Vec<u64> {
            let places = places(&with_epochs(&[(tokens, 2)], 10, 0));
            places.iter().map(|place| place.start).collect()
        };
        let same_cuts = starts(500);
        assert_ne!(same_cuts[..50], same_cuts[50..]);
        let [mut first, mut second] = [0, 51].map(|at| starts(505)[at..][..50].to_vec());
        first.sort_unstable();
        second.sort_unstable();
        assert!(first.iter().all(|start| start % 10 == 0));
        assert!(second.iter().all(|start| start % 10 == 5));
    }

    #[test]
    fn sources_interleave_by_sequences_whatever_their_lengths() {
        let source = |tokens, sequence| OrderSource {
            tokens,
            sequence,
            share: Share::Epochs(2),
        };
        // 40 sequences of one token, and 20 of ten.
        let order = Order::new(vec![source(20, 1), source(100, 10)], 3);
        assert_eq!(order.sequences(), Some(60));
        let places = places(&order);
        let of_second = |places: &[Place]| places.iter().filter(|place| place.source == 1).count();
        assert_eq!((of_second(&places[..30]), of_second(&places)), (10, 20));
        assert!(
            places
                .iter()
                .all(|place| place.length == [1, 10][place.source])
        );
    }

    #[test]
    fn a_long_document_is_not_read_in_order() {
        let order = with_epochs(&[(60_000, 1)], 10, 1);
        let early: Vec<u64> = (0..100).map(|index| order.place(index).start).collect();
        let (least, most) = (early.iter().min().unwrap(), early.iter().max().unwrap());
        assert!(*least < 5_000 && *most > 55_000, "{least} … {most}");
    }

    #[test]
    fn a_source_shorter_than_a_sequence_repeats_within_it() {
        let order = with_weights(&[(3, 1.0)], 8, 0);
        let starts: Vec<u64> = (0..3).map(|index| order.place(index).start).collect();
        assert_eq!(starts, [0, 2, 1]);
        // 4 · 3 tokens: a whole sequence and a half.
        let order = with_epochs(&[(3, 4)], 8, 0);
        let lengths: Vec<u64> = places(&order).iter().map(|place| place.length).collect();
        assert_eq!(lengths, [8, 4]);
    }

    #[test]
    fn thirteen_trillion_tokens_are_in_order() {
        let order = gpt4();
        // 8 and 5 trillion tokens, in sequences of 8192.
        let (text, code) = (976_562_500, 610_351_563);
        let count = order.sequences().unwrap();
        assert_eq!(count, text + code);
        // Samples all over the run: no sequence comes twice, none leaves its source, and the shares are 8 to 5.
        let samples = 20_000;
        let mut seen = HashSet::new();
        let mut of_text = 0;
        for sample in 0..samples {
            let index = sample * (count / samples);
            let place = order.place(index);
            let epoch =
                order.mixture.turn(index).number * 8192 / order.sources[place.source].tokens;
            assert!(seen.insert((place, epoch)), "{place:?}");
            assert!(place.start < order.sources[place.source].tokens);
            of_text += u64::from(place.source == 0);
        }
        let share = of_text as f64 / samples as f64;
        assert!((share - 8.0 / 13.0).abs() < 0.02, "{share}");
        let last = [count - 2, count - 1].map(|index| order.mixture.turn(index));
        assert_eq!(
            last.map(|turn| (turn.source, turn.number)),
            [(1, code - 1), (0, text - 1)]
        );
    }
}
