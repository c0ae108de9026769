//! Vectors that are divided among the ranks of a group.

use std::ops::Range;

/// A rank's part of a vector whose parts end at `ends`.
pub(crate) fn part(ends: &[usize], rank: usize) -> Range<usize> {
    let start = rank.checked_sub(1).map_or(0, |before| ends[before]);
    start..ends[rank]
}

/// # Panics
///
/// When `ends` does not divide so many values among so many ranks.
pub(crate) fn check_parts(ends: &[usize], ranks: usize, length: usize) {
    assert!(
        ends.len() == ranks && ends.is_sorted() && ends.last() == Some(&length),
        "the ends {ends:?} of the parts of {ranks} ranks of {length} values"
    );
}
