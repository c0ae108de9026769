//! What a step adds to a cache.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// New positions of one sequence of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Index of the sequence in the cache.
    pub sequence: usize,
    /// Number of its positions that the cache holds.
    pub past: usize,
    /// Number of new positions, at least 1.
    pub new: usize,
}

impl Segment {
    /// Number of positions of the sequence after the step.
    pub fn end(&self) -> usize {
        self.past + self.new
    }
}

/// The new positions of a step: some sequences of a cache, in any order and each at most once, with a number of new
/// positions of its own. The rows of a step stand one segment after the other.
#[derive(Debug, Clone)]
pub struct Segments {
    list: Arc<[Segment]>,
    /// `[segments, 4]`: sequence, past, new, first row.
    table: Tensor<2, Int>,
}

impl Segments {
    /// Segments of a step, also as a table on the device.
    ///
    /// # Panics
    ///
    /// When there is none, or one without a new position.
    pub fn new(list: Vec<Segment>, device: &Device) -> Self {
        let positions = list.iter().map(|segment| segment.new);
        assert!(
            positions.clone().min().is_some_and(|least| least > 0),
            "a step has new positions: {list:?}"
        );
        let table: Vec<i32> = with_first_rows(&list)
            .flat_map(|(row, segment)| [segment.sequence, segment.past, segment.new, row])
            .map(|number| number as i32)
            .collect();
        Self {
            table: Tensor::from_data(TensorData::new(table, [list.len(), 4]), device),
            list: list.into(),
        }
    }

    /// The segments in the order of their rows.
    pub fn list(&self) -> &Arc<[Segment]> {
        &self.list
    }

    /// `[segments, 4]`: sequence, past, new, first row.
    pub fn table(&self) -> &Tensor<2, Int> {
        &self.table
    }

    /// Number of rows: the new positions of all segments.
    pub fn rows(&self) -> usize {
        self.list.iter().map(|segment| segment.new).sum()
    }
}

/// Each segment and the number of its first row.
pub(super) fn with_first_rows(list: &[Segment]) -> impl Iterator<Item = (usize, Segment)> {
    list.iter().scan(0, |rows, &segment| {
        let first = *rows;
        *rows += segment.new;
        Some((first, segment))
    })
}
