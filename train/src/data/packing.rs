//! Training sequences at random access, so that a run goes on from nothing but a number.
//!
//! Documents in the mixture's order, each with the tokens that begin and end it, make one long stream of tokens. It
//! is cut into windows of `context` inputs with the targets one further on (window i has the inputs
//! i·c … i·c + c − 1), and the windows are shuffled within blocks, so that a long document is not
//! read in order.

use std::sync::Arc;

use firebox_model::batch::Sequence;

use super::error::DataError;
use super::hash::permutation;
use super::mixture::{MixtureSource, Turn, turns};
use super::shards::TokenSet;
use crate::config::Share;

/// Windows that are shuffled together.
const BLOCK: u64 = 4096;

/// Longest piece of a document, in tokens. Where pieces of different places meet, one window in many has a
/// seam; the longer the pieces, the fewer.
const PIECE: u64 = 4096;

/// Keeps these random orders apart from others of the same seed.
const PURPOSE: u64 = 2;

/// The sequences of a run, in the order in which it sees them.
#[derive(Debug, Clone)]
pub struct TrainingStream {
    sets: Arc<Vec<TokenSet>>,
    /// Where each piece ends in its set, by set.
    pieces: Vec<Vec<u64>>,
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
        let pieces: Vec<Vec<u64>> = sets.iter().map(|set| piece_ends(set, PIECE)).collect();
        let sources: Vec<MixtureSource> = pieces
            .iter()
            .zip(shares)
            .map(|(ends, &share)| MixtureSource {
                lengths: (0..ends.len()).map(|piece| length(ends, piece)).collect(),
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
            pieces,
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
        Sequence::of_window(&self.read(start, end), self.context)
    }

    /// Tokens from one place in the stream to another.
    fn read(&self, start: u64, end: u64) -> Vec<u32> {
        let mut tokens = Vec::with_capacity((end - start) as usize);
        let mut turn = self.ends.partition_point(|&turn_end| turn_end <= start);
        let mut place = start;
        while place < end {
            let Turn { source, document } = self.turns[turn];
            // The piece ends where its turn does.
            let piece_end = self.pieces[source as usize][document as usize];
            let from = piece_end - (self.ends[turn] - place);
            let stop = end.min(self.ends[turn]);
            self.sets[source as usize].read(from..from + (stop - place), &mut tokens);
            place = stop;
            turn += 1;
        }
        tokens
    }
}

/// Where the pieces of a set end: each document in as few parts of at most `longest` tokens as can be, of
/// about the same length.
fn piece_ends(set: &TokenSet, longest: u64) -> Vec<u64> {
    let mut ends = Vec::with_capacity(set.documents());
    for document in (0..set.documents()).map(|document| set.range(document)) {
        let tokens = document.end - document.start;
        let parts = tokens.div_ceil(longest);
        ends.extend((1..=parts).map(|part| document.start + tokens * part / parts));
    }
    ends
}

fn length(ends: &[u64], piece: usize) -> u64 {
    ends[piece] - piece.checked_sub(1).map_or(0, |before| ends[before])
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;
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
                let mut tokens: Vec<u32> = (next..next + length as u32).collect();
                tokens.push(0);
                next += length as u32;
                writer.push(&tokens, length as u64).unwrap();
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn pieces_are_short_and_end_where_documents_do(
            lengths in prop::collection::vec(0usize..50, 1..8),
            longest in 1u64..20,
        ) {
            let (_folder, sets) = sets(&[lengths]);
            let ends = piece_ends(&sets[0], longest);
            prop_assert!((0..ends.len()).all(|piece| (1..=longest).contains(&length(&ends, piece))));
            let documents = 0..sets[0].documents();
            prop_assert!(documents.map(|document| sets[0].range(document).end).all(|end| ends.contains(&end)));
        }
    }

    #[test]
    fn a_long_document_is_not_read_in_order() {
        let (_folder, sets) = sets(&[vec![60_000]]);
        let stream = TrainingStream::new(sets, &[Share::Epochs(1)], 10, 1, 0).unwrap();
        let early = (0..100).map(|index| stream.sequence(index).tokens[0]);
        let (least, most) = early.fold((u32::MAX, 0), |(least, most), token| {
            (least.min(token), most.max(token))
        });
        assert!(least < 10_000 && most > 50_000, "{least} … {most}");
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
            error.to_string().contains("1240") && error.exit_code() == 2,
            "{error}"
        );
    }
}
