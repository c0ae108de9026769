//! Which keys a query sees, where that is less than all that come before it.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::IntTensor;
use burn::backend::{Autodiff, Backend, Dispatch, ExtensionType};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// The first key that each query of a batch sees: the query at position i of a sequence sees the keys at
/// `first[i] ..= i`.
///
/// That is a document mask where `first` is the start of the query's document (arXiv 2402.13991), a sliding window of n
/// where it is i − n + 1 (Mistral 7B, arXiv 2310.06825), and both at once where it is the larger of the two. Padding in
/// front of a sequence is like a document. Made once per forward pass and shared by all layers; the window of a layer is
/// in its [`AttentionSpec`](super::AttentionSpec).
#[derive(Debug, Clone)]
pub struct KeyRanges {
    first: Tensor<1, Int>, // [tokens]
}

impl KeyRanges {
    /// Of `first`, sequence by sequence, and counted within the sequence.
    ///
    /// # Panics
    ///
    /// When the number of tokens is not a multiple of `length`, or `first` decreases within a sequence or lies
    /// behind its query.
    pub fn new(first: &[usize], length: usize, device: &Device) -> Self {
        let fits = |sequence: &[usize]| {
            sequence.len() == length
                && sequence.is_sorted()
                && sequence.iter().enumerate().all(|(i, &first)| first <= i)
        };
        assert!(
            first.chunks(length.max(1)).all(fits),
            "in sequences of {length} positions, the first key that each query sees is {first:?}"
        );
        let values: Vec<i32> = first.iter().map(|&first| first as i32).collect();
        Self {
            first: Tensor::from_data(TensorData::new(values, [first.len()]), device),
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.first.dims()[0]
    }

    /// `[batch, 1, length, length]`, true where the query of a row does not see the key of a column.
    pub(super) fn hidden(&self, batch: usize) -> Tensor<4, Bool> {
        let length = self.tokens() / batch.max(1);
        let positions = Tensor::<1, Int>::arange(0..length as i64, &self.first.device());
        let square = [batch, 1, length, length];
        let keys = positions.clone().reshape([1, 1, 1, length]).expand(square);
        let queries = positions.reshape([1, 1, length, 1]).expand(square);
        let first = self.first.clone().reshape([batch, 1, length, 1]);
        let first = first.expand(square);
        keys.clone().lower(first).bool_or(keys.greater(queries))
    }
}

/// [`KeyRanges`] as they cross the border between backends.
#[derive(Debug, Clone, ExtensionType)]
pub enum FirstKeys<B: Backend> {
    /// That of the sequence, for every query.
    OfSequence,
    /// That of each query, `[tokens]`.
    OfQuery(IntTensor<B>),
}

impl From<Option<&KeyRanges>> for FirstKeys<Dispatch> {
    fn from(ranges: Option<&KeyRanges>) -> Self {
        match ranges {
            None => Self::OfSequence,
            Some(ranges) => Self::OfQuery(ranges.first.clone().into_dispatch()),
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> FirstKeys<Autodiff<B, C>> {
    /// The same without autodiff, which has no part in integers.
    pub fn without_autodiff(self) -> FirstKeys<B> {
        match self {
            Self::OfSequence => FirstKeys::OfSequence,
            Self::OfQuery(first) => FirstKeys::OfQuery(first),
        }
    }
}
