//! Training sequences at random access, so that a run goes on from nothing but a number.
//!
//! Documents in the mixture's order, each ended by end of text, make one long stream of tokens. It
//! is cut into windows of `context` inputs with the targets one further on (window i has the inputs
//! i·c … i·c + c − 1), and the windows are shuffled within blocks, so that a long document is not
//! read in order.

use std::sync::Arc;

use firebox_model::batch::Sequence;
use firebox_model::tokenizer::packing::window;

use super::error::DataError;
use super::hash::permutation;
use super::mixture::{MixtureSource, Turn, turns};
use super::shards::TokenSet;
use crate::config::Share;

/// Windows that are shuffled together.
const BLOCK: u64 = 4096;

/// Keeps these random orders apart from others of the same seed.
const PURPOSE: u64 = 2;

/// The sequences of a run, in the order in which it sees them.
#[derive(Debug, Clone)]
pub struct TrainingStream {
    sets: Arc<Vec<TokenSet>>,
    turns: Vec<Turn>,
    /// Where each turn ends in the stream, in tokens.
    ends: Vec<u64>,
    context: usize,
    seed: u64,
}

impl TrainingStream {
    /// The stream of these sources (a share for each set). Sources with weights repeat for as long
    /// as `needed` sequences take; those with epochs have the length that they have.
    pub(super) fn new(
        sets: Arc<Vec<TokenSet>>,
        shares: &[Share],
        context: usize,
        seed: u64,
        needed: u64,
    ) -> Result<Self, DataError> {
        let context = context.max(1);
        let sources: Vec<MixtureSource> = sets
            .iter()
            .zip(shares)
            .map(|(set, &share)| MixtureSource {
                lengths: set.lengths(),
                share,
            })
            .collect();
        // Whole blocks: a longer run must begin with the very sequences of a shorter one.
        let is_endless = shares.iter().any(|share| matches!(share, Share::Weight(_)));
        let enough = needed
            .div_ceil(BLOCK)
            .saturating_mul(BLOCK)
            .saturating_mul(context as u64)
            .saturating_add(1);
        let (mut order, mut ends) = (Vec::new(), Vec::new());
        let mut end = 0;
        for turn in turns(&sources, seed) {
            end += sources[turn.source as usize].lengths[turn.document as usize];
            order.push(turn);
            ends.push(end);
            if is_endless && end >= enough {
                break;
            }
        }
        if end <= context as u64 {
            return Err(DataError::ContextTooLong {
                context,
                tokens: end,
            });
        }
        Ok(Self {
            sets,
            turns: order,
            ends,
            context,
            seed,
        })
    }

    /// How many sequences there are; the last may be filled up with padding.
    pub fn sequences(&self) -> u64 {
        (self.tokens() - 1).div_ceil(self.context as u64)
    }

    /// Tokens of the stream.
    pub fn tokens(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Makes sure that a run of so many sequences has them.
    ///
    /// # Errors
    ///
    /// When it has not, with both numbers.
    pub fn require(&self, sequences: u64) -> Result<(), DataError> {
        if sequences <= self.sequences() {
            return Ok(());
        }
        Err(DataError::TooLittle {
            needed: sequences,
            available: self.sequences(),
            context: self.context,
        })
    }

    /// The sequence that a run sees at `index`: `context` inputs and as many targets.
    ///
    /// # Panics
    ///
    /// When there are no more than `index` sequences.
    pub fn sequence(&self, index: u64) -> Sequence {
        let count = self.sequences();
        assert!(index < count, "sequence {index} of {count}");
        let block = index / BLOCK;
        let first = block * BLOCK;
        let size = BLOCK.min(count - first);
        // Shuffling a block anew for each sequence costs microseconds, and leaves nothing to keep
        // in step.
        let order = permutation(size as u32, self.seed, [PURPOSE, block, 0]);
        let start = (first + u64::from(order[(index - first) as usize])) * self.context as u64;
        let end = self.tokens().min(start + self.context as u64 + 1);
        window(&self.read(start, end), self.context)
    }

    /// Tokens from one place in the stream to another.
    fn read(&self, start: u64, end: u64) -> Vec<u32> {
        let mut tokens = Vec::with_capacity((end - start) as usize);
        let mut turn = self.ends.partition_point(|&turn_end| turn_end <= start);
        let mut place = start;
        while place < end {
            let Turn { source, document } = self.turns[turn];
            let set = &self.sets[source as usize];
            let document = set.range(document as usize);
            // The document ends where its turn does.
            let from = document.end - (self.ends[turn] - place);
            let stop = end.min(self.ends[turn]);
            set.read(from..from + (stop - place), &mut tokens);
            place = stop;
            turn += 1;
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::shards::SetWriter;
    use super::*;

    /// Sets whose tokens tell document and place apart, and a folder that holds them.
    fn sets(sources: &[Vec<usize>]) -> (tempfile::TempDir, Arc<Vec<TokenSet>>) {
        let folder = tempfile::tempdir().unwrap();
        let mut next = 1;
        let sets = sources.iter().enumerate().map(|(index, lengths)| {
            let mut writer =
                SetWriter::create(folder.path(), &format!("{index}"), 1 << 17).unwrap();
            for &length in lengths {
                let tokens: Vec<u32> = (next..next + length as u32).collect();
                next += length as u32;
                writer.push(&tokens, 0, length as u64).unwrap();
            }
            TokenSet::open(folder.path(), &writer.finish().unwrap()).unwrap()
        });
        let sets = Arc::new(sets.collect());
        (folder, sets)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_place_of_the_stream_is_covered_once(
            sources in prop::collection::vec(prop::collection::vec(0usize..40, 1..8), 1..4),
            epochs in 1u32..4,
            context in 1usize..12,
            seed: u64,
        ) {
            let (_folder, sets) = sets(&sources);
            let shares = vec![Share::Epochs(epochs); sources.len()];
            let Ok(stream) = TrainingStream::new(sets, &shares, context, seed, 0) else {
                let tokens: usize = sources.iter().flatten().map(|length| length + 1).sum();
                prop_assert!(tokens * epochs as usize <= context);
                return Ok(());
            };
            let whole = stream.read(0, stream.tokens());
            let expected: usize = sources.iter().flatten().map(|length| length + 1).sum();
            prop_assert_eq!(whole.len(), expected * epochs as usize);
            let mut counts = vec![0u32; 1 + sources.iter().flatten().sum::<usize>()];
            for &token in &whole {
                counts[token as usize] += 1;
            }
            prop_assert_eq!(counts[0], sources.iter().flatten().count() as u32 * epochs);
            prop_assert!(counts[1..].iter().all(|&count| count == epochs));

            let sequences: Vec<Sequence> = (0..stream.sequences()).map(|index| stream.sequence(index)).collect();
            let valid: usize = sequences.iter().map(|sequence| sequence.valid).sum();
            prop_assert_eq!(valid, whole.len() - 1);
            let mut windows: Vec<&[u32]> = whole[..whole.len() - 1].chunks(context).collect();
            let mut targets: Vec<&[u32]> = whole[1..].chunks(context).collect();
            let mut seen: Vec<&[u32]> = sequences.iter().map(|sequence| &sequence.tokens[..sequence.valid]).collect();
            let mut seen_targets: Vec<&[u32]> =
                sequences.iter().map(|sequence| &sequence.targets[..sequence.valid]).collect();
            for list in [&mut windows, &mut targets, &mut seen, &mut seen_targets] {
                list.sort_unstable();
            }
            prop_assert_eq!(windows, seen);
            prop_assert_eq!(targets, seen_targets);

            // Any order of access gives the same.
            for index in (0..stream.sequences()).rev() {
                prop_assert_eq!(&stream.sequence(index), &sequences[index as usize]);
            }
        }
    }

    #[test]
    fn a_longer_run_begins_like_a_shorter_one() {
        let (_folder, sets) = sets(&[vec![30; 20], vec![7; 9]]);
        let shares = [Share::Weight(1.0), Share::Weight(2.0)];
        let stream = |needed| TrainingStream::new(sets.clone(), &shares, 3, 5, needed).unwrap();
        let (short, long) = (stream(10), stream(3 * BLOCK));
        assert!(short.sequences() >= 10 && long.require(3 * BLOCK).is_ok());
        for index in 0..BLOCK {
            assert_eq!(short.sequence(index), long.sequence(index));
        }
    }

    #[test]
    fn too_little_data_is_an_error_with_both_numbers() {
        let (_folder, sets) = sets(&[vec![30; 20]]);
        let stream = TrainingStream::new(sets.clone(), &[Share::Epochs(2)], 10, 0, 0).unwrap();
        assert_eq!(stream.sequences(), 124);
        assert!(stream.require(124).is_ok());
        let error = stream.require(125).unwrap_err();
        assert!(
            error.to_string().contains("125 sequences") && error.to_string().contains("has 124"),
            "{error}"
        );
        let error = TrainingStream::new(sets, &[Share::Epochs(2)], 1240, 0, 0).unwrap_err();
        assert!(
            error.to_string().contains("1240") && error.is_usage(),
            "{error}"
        );
    }
}
