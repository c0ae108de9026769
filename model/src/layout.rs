//! Where the tokens of a forward pass stand, and what each of them attends to.

use crate::vision::Sight;
use burn::tensor::{Device, Int, Tensor, TensorData};
use firebox_kernels::KeyRanges;
use firebox_kernels::rope::Rotary;

/// Where the tokens of sequences of equal length stand, where that is not simply one after the other from position 0.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// The position of each token, `[tokens]`; `None` if it is that in its sequence.
    positions: Option<Tensor<1, Int>>,
    /// The tokens that each token attends to; `None` for all of its sequence up to itself.
    ranges: Option<KeyRanges>,
    /// The pictures that the tokens see, if there are any.
    sight: Option<Sight>,
}

impl Placement {
    /// Each token attends to its sequence up to itself.
    pub fn causal() -> Self {
        Self::default()
    }

    /// Each token attends to its document up to itself.
    ///
    /// # Shapes
    ///
    /// - `positions`: the position of each token in its document, sequence by sequence; `length` tokens per sequence
    ///
    /// # Panics
    ///
    /// When a document begins before its sequence, or before the document of the token in front of it.
    pub fn documents(positions: &[u32], length: usize, device: &Device) -> Self {
        let in_sequence = || (0..positions.len()).map(|token| token % length.max(1));
        let whole = positions.iter().zip(in_sequence());
        if whole
            .clone()
            .all(|(&own, position)| own as usize == position)
        {
            return Self::causal(); // every sequence is of one document
        }
        let starts: Option<Vec<usize>> = whole
            .map(|(&own, position)| position.checked_sub(own as usize))
            .collect();
        let starts = starts.expect("documents that begin in their sequence");
        let values: Vec<i32> = positions.iter().map(|&position| position as i32).collect();
        let shape = [values.len()];
        Self {
            positions: Some(Tensor::from_data(TensorData::new(values, shape), device)),
            ranges: Some(KeyRanges::new(&starts, length, device)),
            sight: None,
        }
    }

    /// Each token attends to its sequence up to itself, but to no padding; padding in front attends to itself alone,
    /// because a softmax over an empty set is NaN. Positions are counted with the padding.
    ///
    /// # Shapes
    ///
    /// - `valid`: sequence by sequence, false for padding; `length` flags per sequence
    ///
    /// # Panics
    ///
    /// When padding stands between two tokens.
    pub fn padded(valid: &[bool], length: usize, device: &Device) -> Self {
        let mut first = Vec::with_capacity(valid.len());
        for row in valid.chunks(length.max(1)) {
            assert!(is_padded_at_its_ends(row), "padding between tokens");
            let in_front = row.iter().take_while(|valid| !**valid).count();
            first.extend((0..row.len()).map(|position| position.min(in_front)));
        }
        if first.iter().all(|&first| first == 0) {
            return Self::causal(); // causality hides padding at the end
        }
        Self {
            positions: None,
            ranges: Some(KeyRanges::new(&first, length, device)),
            sight: None,
        }
    }

    /// The same tokens, which see these pictures.
    #[must_use]
    pub fn seeing(self, sight: Sight) -> Self {
        Self {
            sight: Some(sight),
            ..self
        }
    }

    /// The pictures that the tokens see, if there are any.
    pub fn sight(&self) -> Option<&Sight> {
        self.sight.as_ref()
    }

    /// With rows of this table of all positions, for `batch` sequences.
    pub(crate) fn layout(&self, batch: usize, length: usize, table: &Rotary) -> Layout {
        Layout {
            batch,
            rotary: match &self.positions {
                Some(positions) => table.at(positions),
                None => table.range(0, length),
            },
            ranges: self.ranges.clone(),
            sight: self.sight.clone(),
        }
    }
}

/// Whether no padding stands between two tokens of a sequence.
pub fn is_padded_at_its_ends(valid: &[bool]) -> bool {
    valid.chunk_by(|a, b| a == b).filter(|run| run[0]).count() <= 1
}

/// What attention needs to know of the tokens of a forward pass; made once, for all layers.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Number of sequences. Each has equally many new tokens, in consecutive rows.
    pub batch: usize,
    /// The rotary positions of the new tokens.
    pub rotary: Rotary,
    /// The new tokens that each new token attends to; `None` for all up to itself, and for those in a cache.
    pub ranges: Option<KeyRanges>,
    /// The pictures that the new tokens see, if there are any.
    pub sight: Option<Sight>,
}

impl Layout {
    /// Causal attention within each of `batch` sequences.
    pub fn causal(batch: usize, rotary: Rotary) -> Self {
        Self {
            batch,
            rotary,
            ranges: None,
            sight: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebox_runtime::device::{default_name, select};

    #[test]
    fn padding_may_stand_at_either_end() {
        for (row, expected) in [
            ([true; 4], true),
            ([false; 4], true),
            ([false, true, true, false], true),
            ([true, false, true, true], false),
        ] {
            assert_eq!(is_padded_at_its_ends(&row), expected, "{row:?}");
        }
        let device = select(default_name()).unwrap();
        let ranges = |valid: &[bool]| Placement::padded(valid, 3, &device).ranges;
        assert!(ranges(&[true, true, true, true, true, false]).is_none());
        assert!(ranges(&[true, true, true, false, true, true]).is_some());
    }

    #[test]
    fn sequences_of_one_document_need_no_ranges() {
        let device = select(default_name()).unwrap();
        let plain = |positions: &[u32]| {
            let placement = Placement::documents(positions, 3, &device);
            assert_eq!(placement.positions.is_none(), placement.ranges.is_none());
            placement.ranges.is_none()
        };
        assert!(plain(&[0, 1, 2, 0, 1, 2]));
        assert!(!plain(&[0, 1, 2, 0, 0, 1]));
    }
}
