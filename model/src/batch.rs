//! Batches of sequences: rows of equal length with shifted targets.

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::layout::Placement;

/// A window of text: input tokens and their targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The token after each of `tokens`.
    pub targets: Vec<u32>,
    /// Number of valid positions; the positions from here on are padding.
    pub valid: usize,
    /// The position of each of `tokens` in its document, where each token attends to its own document alone; `None` where
    /// it attends to all before it.
    pub positions: Option<Vec<u32>>,
}

impl Sequence {
    /// A sequence of `context` inputs from up to `context + 1` successive tokens, padded at the end. With `end_of_text`,
    /// the token that ends a document, each token attends to its own document alone; a document that began before the
    /// sequence begins with it.
    ///
    /// # Panics
    ///
    /// When there are more than `context + 1` tokens.
    pub fn of_window(tokens: &[u32], context: usize, end_of_text: Option<u32>) -> Self {
        assert!(
            tokens.len() <= context + 1,
            "{} tokens for a window of {context}",
            tokens.len()
        );
        let valid = tokens.len().saturating_sub(1);
        let padded = |tokens: &[u32]| {
            let mut tokens = tokens.to_vec();
            tokens.resize(context, 0);
            tokens
        };
        let inputs = padded(&tokens[..valid]);
        Self {
            positions: end_of_text.map(|end| positions_in_documents(&inputs, valid, end)),
            tokens: inputs,
            targets: padded(tokens.get(1..).unwrap_or_default()),
            valid,
        }
    }
}

/// The position of each token in its document, where documents end with the token `end_of_text`. Padding behind the
/// `valid` tokens belongs to the last one.
fn positions_in_documents(tokens: &[u32], valid: usize, end_of_text: u32) -> Vec<u32> {
    let mut next = 0;
    let positions = tokens.iter().enumerate().map(|(place, &token)| {
        let position = next;
        let ends = place < valid && token == end_of_text;
        next = if ends { 0 } else { position + 1 };
        position
    });
    positions.collect()
}

/// A batch of sequences on a device.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[rows, length]`
    pub tokens: Tensor<2, Int>,
    /// `[rows · length]`
    pub targets: Tensor<1, Int>,
    /// The loss mask, `[rows · length]`: 1 for a valid position and 0 for padding; `None` without padding.
    pub valid: Option<Tensor<1>>,
    /// Number of valid positions.
    pub valid_tokens: u64,
    /// Where the tokens stand, and what each of them attends to.
    pub placement: Placement,
}

impl Batch {
    /// Puts sequences of equal length on a device.
    ///
    /// # Panics
    ///
    /// When there are no sequences, or their lengths differ, or only some of them have positions of their own.
    pub fn new(sequences: &[Sequence], device: &Device) -> Self {
        let rows = sequences.len();
        let length = sequences
            .first()
            .map_or(0, |sequence| sequence.tokens.len());
        assert!(
            rows > 0
                && sequences
                    .iter()
                    .all(|s| s.tokens.len() == length && s.targets.len() == length),
            "a batch is one or more sequences of one length"
        );
        let ids = |of: fn(&Sequence) -> &[u32]| {
            let values: Vec<i32> = sequences.iter().flat_map(of).map(|&id| id as i32).collect();
            values
        };
        let valid_tokens = sequences.iter().map(|sequence| sequence.valid as u64).sum();
        let valid = (valid_tokens < (rows * length) as u64).then(|| {
            let flags = sequences.iter().flat_map(|sequence| {
                (0..length).map(|position| f32::from(position < sequence.valid))
            });
            let flags: Vec<f32> = flags.collect();
            Tensor::from_data(TensorData::new(flags, [rows * length]), device)
        });
        let positions: Vec<&[u32]> = sequences
            .iter()
            .filter_map(|sequence| sequence.positions.as_deref())
            .collect();
        let placement = match positions.len() {
            0 => Placement::causal(),
            some => {
                assert_eq!(some, rows, "positions of some sequences of a batch");
                Placement::documents(&positions.concat(), length, device)
            }
        };
        Self {
            placement,
            tokens: Tensor::from_data(TensorData::new(ids(|s| &s.tokens), [rows, length]), device),
            targets: Tensor::from_data(
                TensorData::new(ids(|s| &s.targets), [rows * length]),
                device,
            ),
            valid,
            valid_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebox_runtime::device::{default_name, select};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::values;

    on_every_device!(rows_stand_side_by_side);

    fn rows_stand_side_by_side(device: Device) {
        let rows =
            [[5, 6, 7, 8].as_slice(), &[9, 10]].map(|tokens| Sequence::of_window(tokens, 3, None));
        let batch = Batch::new(&rows, &device);
        let ids = |tensor: Tensor<1, Int>| tensor.into_data().iter::<i64>().collect::<Vec<i64>>();
        assert_eq!(batch.tokens.dims(), [2, 3]);
        assert_eq!(ids(batch.tokens.flatten(0, 1)), [5, 6, 7, 9, 0, 0]);
        assert_eq!(ids(batch.targets), [6, 7, 8, 10, 0, 0]);
        assert_eq!(values(batch.valid.unwrap()), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(batch.valid_tokens, 4);
        let whole = Batch::new(&rows[..1], &device);
        assert!(whole.valid.is_none(), "there is no padding");
        assert_eq!(whole.valid_tokens, 3);
    }

    #[test]
    #[should_panic(expected = "5 tokens for a window of 3")]
    fn a_window_takes_one_token_more_than_the_context() {
        let _ = Sequence::of_window(&[1, 2, 3, 4, 5], 3, None);
    }

    #[test]
    #[should_panic(expected = "one or more sequences of one length")]
    fn rows_are_of_one_length() {
        let rows = [3, 4].map(|context| Sequence::of_window(&[1, 2], context, None));
        let _ = Batch::new(&rows, &select(default_name()).unwrap());
    }

    #[test]
    fn a_short_window_is_padded() {
        let whole = Sequence {
            tokens: vec![97, 98, 256],
            targets: vec![98, 256, 99],
            valid: 3,
            positions: None,
        };
        assert_eq!(Sequence::of_window(&[97, 98, 256, 99], 3, None), whole);
        let short = Sequence {
            tokens: vec![99, 0, 0],
            targets: vec![256, 0, 0],
            valid: 1,
            positions: None,
        };
        assert_eq!(Sequence::of_window(&[99, 256], 3, None), short);
    }

    #[test]
    fn positions_begin_again_behind_the_end_of_a_document() {
        let positions = |tokens: &[u32]| Sequence::of_window(tokens, 6, Some(0)).positions.unwrap();
        assert_eq!(positions(&[5, 6, 0, 7, 0, 0, 9]), [0, 1, 2, 0, 1, 0]);
        assert_eq!(positions(&[0, 5, 6, 7, 8, 9, 0]), [0, 0, 1, 2, 3, 4]);
        // Padding is 0 too.
        assert_eq!(positions(&[5, 0, 6, 7]), [0, 1, 0, 1, 2, 3]);
    }
}
