//! What a step adds to a cache.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// New positions of one sequence, which a cache keeps in blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Number of its positions that the cache holds.
    pub past: usize,
    /// Number of new positions, at least 1.
    pub new: usize,
    /// The blocks of its positions in order, with room for the new ones. Blocks that are only read may be those of
    /// other segments too.
    pub blocks: Vec<usize>,
}

impl Segment {
    /// Number of positions of the sequence after the step.
    pub fn end(&self) -> usize {
        self.past + self.new
    }
}

/// The new positions of a step, of some sequences. The rows of a step stand one segment after the other.
#[derive(Debug, Clone)]
pub struct Segments {
    list: Arc<[PlacedSegment]>,
    /// `[segments, TABLE_HEAD + most blocks]`: past, new, first row, blocks.
    table: Tensor<2, Int>,
    /// Positions of a block.
    block_positions: usize,
    /// Blocks that the cache has at least.
    blocks: usize,
}

/// A segment, and where its positions lie.
#[derive(Debug, Clone)]
pub struct PlacedSegment {
    /// Number of its positions that the cache holds.
    pub past: usize,
    /// Number of new positions.
    pub new: usize,
    /// The row of the first new position among all.
    pub row: usize,
    runs: Vec<Run>,
}

/// Positions whose keys lie side by side in the cache.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The first position.
    position: usize,
    /// Its place among the positions that the cache has room for.
    place: usize,
}

/// What a row of the table on the device begins with: past, new, first row.
pub const TABLE_HEAD: usize = 3;

impl Segments {
    /// Segments of a step over blocks of `block_positions` positions, also as a table on the device.
    ///
    /// # Panics
    ///
    /// When there is none, one has no new position or too few blocks for all its positions, or two write to one block.
    pub fn new(segments: &[Segment], block_positions: usize, device: &Device) -> Self {
        assert!(
            !segments.is_empty() && segments.iter().all(|segment| segment.new > 0),
            "a step has new positions: {segments:?}"
        );
        let written = |segment: &Segment| {
            segment.past / block_positions..segment.end().div_ceil(block_positions)
        };
        let mut blocks: Vec<usize> = Vec::new();
        for segment in segments {
            let own = segment.blocks.get(written(segment));
            blocks.extend(own.unwrap_or_else(|| {
                panic!("blocks of {block_positions} positions for all of {segment:?}")
            }));
        }
        blocks.sort_unstable();
        assert!(
            blocks.windows(2).all(|pair| pair[0] != pair[1]),
            "a block that two segments write to: {segments:?}"
        );
        let most = segments.iter().map(|segment| segment.blocks.len()).max();
        let width = TABLE_HEAD + most.unwrap_or(0);
        let mut table: Vec<i32> = vec![0; segments.len() * width];
        let mut list = Vec::with_capacity(segments.len());
        let mut row = 0;
        for (segment, of_table) in segments.iter().zip(table.chunks_exact_mut(width)) {
            let numbers = [segment.past, segment.new, row];
            let numbers = numbers.iter().chain(&segment.blocks);
            for (to, &number) in of_table.iter_mut().zip(numbers) {
                *to = number as i32;
            }
            list.push(PlacedSegment {
                past: segment.past,
                new: segment.new,
                row,
                runs: runs(&segment.blocks, block_positions),
            });
            row += segment.new;
        }
        let all = segments.iter().flat_map(|segment| &segment.blocks);
        Self {
            table: Tensor::from_data(TensorData::new(table, [list.len(), width]), device),
            list: list.into(),
            block_positions,
            blocks: all.max().map_or(0, |last| last + 1),
        }
    }

    /// The segments in the order of their rows.
    pub fn list(&self) -> &Arc<[PlacedSegment]> {
        &self.list
    }

    /// `[segments, 3 + most blocks]`: past, new, first row, blocks.
    pub fn table(&self) -> &Tensor<2, Int> {
        &self.table
    }

    /// Number of rows: the new positions of all segments.
    pub fn rows(&self) -> usize {
        self.list.iter().map(|segment| segment.new).sum()
    }

    /// Whether a cache of so many blocks of so many positions has all blocks.
    pub(super) fn fit(&self, blocks: usize, block_positions: usize) -> bool {
        self.block_positions == block_positions && self.blocks <= blocks
    }
}

impl PlacedSegment {
    /// Number of positions of the sequence after the step.
    pub fn end(&self) -> usize {
        self.past + self.new
    }

    /// Where some of its positions lie, in order, side by side as far as they do.
    pub(super) fn places(
        &self,
        positions: Range<usize>,
    ) -> impl Iterator<Item = Range<usize>> + use<'_> {
        let first = self
            .runs
            .partition_point(|run| run.position <= positions.start)
            .saturating_sub(1);
        let mut start = positions.start;
        (first..self.runs.len()).map_while(move |index| {
            let run = self.runs[index];
            let next = self.runs.get(index + 1);
            let end = next.map_or(positions.end, |next| next.position.min(positions.end));
            let length = end.checked_sub(start).filter(|&length| length > 0)?;
            let place = run.place + (start - run.position);
            start = end;
            Some(place..place + length)
        })
    }
}

/// Neighbours among the blocks in one.
fn runs(blocks: &[usize], block_positions: usize) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut before = None;
    for (index, &block) in blocks.iter().enumerate() {
        if before.is_none_or(|before| before + 1 != block) {
            runs.push(Run {
                position: index * block_positions,
                place: block * block_positions,
            });
        }
        before = Some(block);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(past: usize, new: usize, blocks: &[usize]) -> Segment {
        Segment {
            past,
            new,
            blocks: blocks.to_vec(),
        }
    }

    fn segments(list: &[Segment]) -> Segments {
        Segments::new(list, 4, &firebox_runtime::testing::devices().remove(0))
    }

    #[test]
    fn places_of_positions() {
        let step = segments(&[segment(0, 3, &[7]), segment(9, 6, &[2, 3, 9, 0, 1])]);
        let places = |positions| -> Vec<(usize, usize)> {
            let places = step.list()[1].places(positions);
            places.map(|place| (place.start, place.end)).collect()
        };
        assert_eq!(step.list()[1].row, 3);
        assert_eq!(places(0..15), [(8, 16), (36, 40), (0, 3)]);
        assert_eq!(places(0..8), [(8, 16)]);
        assert_eq!(places(7..9), [(15, 16), (36, 37)]);
        assert_eq!(places(13..15), [(1, 3)]);
        assert!(places(13..13).is_empty());
        assert!(step.fit(10, 4) && !step.fit(9, 4) && !step.fit(10, 5));
        let table: Vec<i64> = step.table().to_data().iter().collect();
        assert_eq!(table, [0, 3, 0, 7, 0, 0, 0, 0, 9, 6, 3, 2, 3, 9, 0, 1]);
    }

    #[test]
    fn a_block_that_is_only_read_may_be_shared() {
        let shared = [segment(4, 1, &[2, 3]), segment(5, 1, &[2, 4])];
        assert_eq!(segments(&shared).rows(), 2);
    }

    #[test]
    #[should_panic(expected = "a step has new positions")]
    fn a_segment_is_not_empty() {
        segments(&[segment(3, 0, &[0])]);
    }

    #[test]
    #[should_panic(expected = "a block that two segments write to")]
    fn a_block_is_written_by_one_segment() {
        segments(&[segment(4, 1, &[2, 3]), segment(3, 1, &[3])]);
    }

    #[test]
    #[should_panic(expected = "blocks of 4 positions for all of")]
    fn blocks_have_room_for_all_positions() {
        segments(&[segment(4, 5, &[2, 3])]);
    }
}
