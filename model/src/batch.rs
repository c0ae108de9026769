//! Batches of sequences: rows of equal length with shifted targets.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// A window of text: input tokens and their targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The token after each of `tokens`.
    pub targets: Vec<u32>,
    /// Number of valid positions; the positions from here on are padding.
    pub valid: usize,
}

impl Sequence {
    /// A sequence of `context` inputs from up to `context + 1` successive tokens, padded at the end.
    ///
    /// # Panics
    ///
    /// When there are more than `context + 1` tokens.
    pub fn of_window(tokens: &[u32], context: usize) -> Self {
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
        Self {
            tokens: padded(&tokens[..valid]),
            targets: padded(tokens.get(1..).unwrap_or_default()),
            valid,
        }
    }
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
}

impl Batch {
    /// Puts sequences of equal length on a device.
    ///
    /// # Panics
    ///
    /// When there are no sequences, or their lengths differ.
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
        Self {
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
        let rows = [[5, 6, 7, 8].as_slice(), &[9, 10]].map(|tokens| Sequence::of_window(tokens, 3));
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
        let _ = Sequence::of_window(&[1, 2, 3, 4, 5], 3);
    }

    #[test]
    #[should_panic(expected = "one or more sequences of one length")]
    fn rows_are_of_one_length() {
        let rows = [3, 4].map(|context| Sequence::of_window(&[1, 2], context));
        let _ = Batch::new(&rows, &select(default_name()).unwrap());
    }

    #[test]
    fn a_short_window_is_padded() {
        let whole = Sequence {
            tokens: vec![97, 98, 256],
            targets: vec![98, 256, 99],
            valid: 3,
        };
        assert_eq!(Sequence::of_window(&[97, 98, 256, 99], 3), whole);
        let short = Sequence {
            tokens: vec![99, 0, 0],
            targets: vec![256, 0, 0],
            valid: 1,
        };
        assert_eq!(Sequence::of_window(&[99, 256], 3), short);
    }
}
