//! Training sequences with random access: the number of sequences seen is all that a resume needs.

use std::sync::Arc;

use firebox_model::batch::Sequence;

use super::error::DataError;
use super::order::{Order, OrderSource, Place};
use super::shards::TokenSet;
use crate::config::Share;

/// The sequences of a run, in the order in which it sees them.
#[derive(Debug, Clone)]
pub struct TrainingStream {
    sets: Arc<Vec<TokenSet>>,
    order: Order,
    context: usize,
    /// See [`Sequence::of_window`].
    document_end: Option<u32>,
}

impl TrainingStream {
    /// The stream of these sources (a share for each set), in the order that `seed` decides.
    pub(super) fn new(
        sets: Arc<Vec<TokenSet>>,
        shares: &[Share],
        context: usize,
        seed: u64,
        document_end: Option<u32>,
    ) -> Result<Self, DataError> {
        let context = context.max(1);
        let sources = sets.iter().zip(shares).map(|(set, &share)| OrderSource {
            tokens: set.tokens(),
            sequence: context as u64,
            share,
        });
        let sources: Vec<OrderSource> = sources.collect();
        let totals: Option<Vec<u128>> = sources.iter().map(OrderSource::total).collect();
        if let Some(largest) = totals.and_then(|totals| totals.into_iter().max())
            && largest < context as u128
        {
            return Err(DataError::ContextTooLong {
                context,
                tokens: largest as u64,
            });
        }
        Ok(Self {
            sets,
            order: Order::new(sources, seed),
            context,
            document_end,
        })
    }

    /// Number of sequences; `None` if the sources repeat without end. One sequence per source may be
    /// padded at its end.
    pub fn sequences(&self) -> Option<u64> {
        self.order.sequences()
    }

    /// Checks that there are enough sequences for a run of this many.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn require(&self, sequences: u64) -> Result<(), DataError> {
        match self.sequences() {
            Some(available) if available < sequences => Err(DataError::TooLittle {
                needed: sequences,
                available,
                context: self.context,
            }),
            _ => Ok(()),
        }
    }

    /// The sequence that a run sees at `index`: `context` inputs and as many targets.
    ///
    /// # Errors
    ///
    /// When the tokens cannot be read.
    ///
    /// # Panics
    ///
    /// When there are no more than `index` sequences.
    pub fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        if let Some(count) = self.sequences() {
            assert!(index < count, "sequence {index} of {count}");
        }
        let place = self.order.place(index);
        let tokens = window(&self.sets[place.source], place)?;
        Ok(Sequence::of_window(
            &tokens,
            self.context,
            self.document_end,
        ))
    }
}

/// The inputs at a place of a source, and the target of the last one.
///
/// # Errors
///
/// When the tokens cannot be read.
pub(super) fn window(set: &TokenSet, place: Place) -> Result<Vec<u32>, DataError> {
    let count = place.length as usize + 1;
    let mut tokens = Vec::with_capacity(count);
    let mut start = place.start;
    // The last token is followed by the first one.
    while tokens.len() < count {
        let end = set.tokens().min(start + (count - tokens.len()) as u64);
        set.read(start..end, &mut tokens)?;
        start = 0;
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;

    use super::super::shards::tests::sets;
    use super::*;

    fn all(stream: &TrainingStream) -> Vec<Sequence> {
        let count = stream.sequences().unwrap();
        (0..count)
            .map(|index| stream.sequence(index).unwrap())
            .collect()
    }

    #[test]
    fn sequences_are_the_text_of_their_source_and_come_the_same_in_any_order() {
        // Tokens 1 … 9, 0, 10 … 16, 0 and 17, 0.
        let (_folder, sets) = sets(&[vec![9, 7], vec![1]]);
        let stream =
            TrainingStream::new(sets, &[Share::Epochs(1), Share::Epochs(3)], 6, 1, None).unwrap();
        let first = all(&stream);
        let again: Vec<Sequence> = (0..4)
            .rev()
            .map(|index| stream.sequence(index).unwrap())
            .collect();
        assert!(again.iter().rev().eq(&first));

        let mut rows: Vec<(Vec<u32>, Vec<u32>)> = Vec::new();
        for sequence in &first {
            let valid = ..sequence.valid;
            rows.push((
                sequence.tokens[valid].to_vec(),
                sequence.targets[valid].to_vec(),
            ));
            assert_eq!((sequence.tokens.len(), sequence.targets.len()), (6, 6));
        }
        rows.sort();
        let row = |tokens: &[u32], targets: &[u32]| (tokens.to_vec(), targets.to_vec());
        let expected = [
            row(&[1, 2, 3, 4, 5, 6], &[2, 3, 4, 5, 6, 7]),
            row(&[7, 8, 9, 0, 10, 11], &[8, 9, 0, 10, 11, 12]),
            row(&[12, 13, 14, 15, 16, 0], &[13, 14, 15, 16, 0, 1]),
            row(&[17, 0, 17, 0, 17, 0], &[0, 17, 0, 17, 0, 17]),
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn too_little_data_is_an_error_with_both_numbers() {
        let (_folder, sets) = sets(&[vec![30; 20], vec![5]]);
        let epochs = [Share::Epochs(2), Share::Epochs(1)];
        let stream = TrainingStream::new(sets.clone(), &epochs, 10, 0, None).unwrap();
        // 2 · 20 · 31 tokens, and 6.
        assert_eq!(stream.sequences(), Some(125));
        assert!(stream.require(125).is_ok());
        let error = stream.require(126).unwrap_err();
        assert!(
            error.to_string().contains("126 sequences") && error.to_string().contains("has 125"),
            "{error}"
        );
        assert!(TrainingStream::new(sets.clone(), &epochs, 1240, 0, None).is_ok());
        let error = TrainingStream::new(sets.clone(), &epochs, 1241, 0, None).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("1241") && text.contains("1240") && error.exit_code() == 2,
            "{text}"
        );

        // Weights repeat for as long as a run takes.
        let weights = [Share::Weight(1.0), Share::Weight(2.0)];
        let endless = TrainingStream::new(sets, &weights, 1241, 0, None).unwrap();
        assert!(endless.sequences().is_none() && endless.require(1 << 40).is_ok());
        assert_eq!(endless.sequence(1 << 40).unwrap().valid, 1241);
    }
}
