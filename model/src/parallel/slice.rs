//! A part of an array: ranges along each of its dimensions.

use std::ops::Range;

/// A part of an array: for each dimension, the ranges of indices that are taken, one after the other. A range may be
/// taken more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    of: Vec<usize>,
    ranges: Vec<Vec<Range<usize>>>,
}

impl Slice {
    /// These ranges of an array of this shape.
    ///
    /// # Panics
    ///
    /// When the ranges are not those of so many dimensions, or leave them.
    pub fn new(of: impl Into<Vec<usize>>, ranges: Vec<Vec<Range<usize>>>) -> Self {
        let of = of.into();
        assert_eq!(of.len(), ranges.len(), "ranges of each dimension");
        let inside = |(size, ranges): (&usize, &Vec<Range<usize>>)| {
            ranges
                .iter()
                .all(|range| range.start <= range.end && range.end <= *size)
        };
        let fits = of.iter().zip(&ranges).all(inside);
        assert!(fits, "{ranges:?} of an array {of:?}");
        Self { of, ranges }
    }

    /// All of an array.
    pub fn whole(of: impl Into<Vec<usize>>) -> Self {
        let of = of.into();
        let all = |&size: &usize| std::iter::once(0..size).collect();
        let ranges = of.iter().map(all).collect();
        Self { of, ranges }
    }

    /// The shape of the array that this is a part of.
    pub fn of(&self) -> &[usize] {
        &self.of
    }

    /// The ranges that are taken along each dimension.
    pub fn ranges(&self) -> &[Vec<Range<usize>>] {
        &self.ranges
    }

    /// Its own shape.
    pub fn shape(&self) -> Vec<usize> {
        let size = |ranges: &Vec<Range<usize>>| ranges.iter().map(|range| range.len()).sum();
        self.ranges.iter().map(size).collect()
    }

    /// Number of its values.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether it is the whole array, once.
    pub fn is_whole(&self) -> bool {
        let mut dimensions = self.of.iter().zip(&self.ranges);
        dimensions.all(|(&size, ranges)| is_all(ranges, size))
    }

    /// The places of its values in the array, both in row-major order, as long ranges. Their lengths add up to the number of
    /// values.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        // Dimensions that are taken whole belong to a run, and the ranges of the dimension in front of them begin one.
        let whole = self.of.iter().zip(&self.ranges).rev();
        let whole = whole.take_while(|(size, ranges)| is_all(ranges, **size));
        let outer = self.of.len() - whole.count();
        let inner: usize = self.of[outer..].iter().product();
        let (outer, runs) = match outer {
            0 => (0, joined(std::iter::once(0..inner))),
            _ => {
                let last = self.ranges[outer - 1].iter();
                let scaled = last.map(|range| range.start * inner..range.end * inner);
                (outer - 1, joined(scaled))
            }
        };
        // The indices that are taken in front of those, each as the place of its first value.
        let mut stride: usize = self.of[outer..].iter().product();
        let mut outer_places: Vec<Vec<usize>> = Vec::with_capacity(outer);
        for dimension in (0..outer).rev() {
            let indices = self.ranges[dimension].iter().cloned().flatten();
            outer_places.push(indices.map(|index| index * stride).collect());
            stride *= self.of[dimension];
        }
        let rows: usize = outer_places.iter().map(Vec::len).product();
        (0..rows * runs.len()).map(move |number| {
            let run = &runs[number % runs.len()];
            let mut row = number / runs.len();
            // The last dimension counts fastest, and is the first in the list.
            let places = outer_places.iter().map(|places| {
                let place = places[row % places.len()];
                row /= places.len();
                place
            });
            let place: usize = places.sum();
            place + run.start..place + run.end
        })
    }

    /// Puts the values of this part in their places in the array, both in row-major order.
    ///
    /// # Panics
    ///
    /// When there is another number of values, or the array has.
    pub fn put<T: Copy>(&self, values: &[T], array: &mut [T]) {
        assert_eq!(values.len(), self.elements());
        assert_eq!(array.len(), self.of.iter().product::<usize>());
        let mut rest = values;
        for run in self.runs() {
            let (own, after) = rest.split_at(run.len());
            array[run].copy_from_slice(own);
            rest = after;
        }
    }

    /// The values of this part, given those of the array, both in row-major order.
    ///
    /// # Panics
    ///
    /// When the array has another number of values.
    pub fn take<T: Copy>(&self, array: &[T]) -> Vec<T> {
        assert_eq!(array.len(), self.of.iter().product::<usize>());
        let mut values = Vec::with_capacity(self.elements());
        self.runs()
            .for_each(|run| values.extend_from_slice(&array[run]));
        values
    }
}

/// Whether these ranges are all indices of a dimension, once and in order.
fn is_all(ranges: &[Range<usize>], size: usize) -> bool {
    let mut end = 0;
    ranges.iter().all(|range| {
        let follows = range.start == end;
        end = range.end;
        follows
    }) && end == size
}

/// The ranges that are not empty, neighbours as one.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs of a dimension, which may repeat and touch.
    fn part() -> impl Strategy<Value = (usize, Vec<Range<usize>>)> {
        (1usize..7).prop_flat_map(|size| {
            let ends = proptest::collection::vec([0..=size, 0..=size], 0..4);
            ends.prop_map(move |ends| {
                let ranges = ends.into_iter().map(|[a, b]| a.min(b)..a.max(b));
                (size, ranges.collect())
            })
        })
    }

    /// The same, but often all of the dimension.
    fn often_whole() -> impl Strategy<Value = (usize, Vec<Range<usize>>)> {
        let all = |size| (size, std::iter::once(0..size).collect());
        prop_oneof![part(), (1usize..7).prop_map(all)]
    }

    proptest! {
        #[test]
        fn runs_are_the_places_in_row_major_order(
            dimensions in proptest::collection::vec(often_whole(), 0..4),
        ) {
            let (of, ranges): (Vec<usize>, Vec<_>) = dimensions.into_iter().unzip();
            let slice = Slice::new(of.clone(), ranges.clone());
            let mut expected = vec![0];
            for (size, ranges) in of.iter().zip(&ranges) {
                let indices = || ranges.iter().cloned().flatten();
                let of_place = |place: usize| indices().map(move |index| place * size + index);
                expected = expected.into_iter().flat_map(of_place).collect();
            }
            let places: Vec<usize> = slice.runs().flatten().collect();
            prop_assert_eq!(&places, &expected);
            prop_assert_eq!(slice.elements(), expected.len());
            let array: Vec<usize> = (0..of.iter().product()).collect();
            let taken = slice.take(&array);
            let mut again = vec![usize::MAX; array.len()];
            slice.put(&taken, &mut again);
            let is_there = |(place, &value): (usize, &usize)| value == place || value == usize::MAX;
            prop_assert!(again.iter().enumerate().all(is_there));
            prop_assert_eq!(slice.take(&again), expected.clone());
            prop_assert_eq!(taken, expected);
        }
    }

    #[test]
    fn neighbouring_values_are_one_run() {
        let rows = Slice::new([6, 4], vec![vec![1..3, 3..4, 5..6], vec![0..4]]);
        assert_eq!(rows.runs().collect::<Vec<_>>(), [4..16, 20..24]);
        let columns = Slice::new([3, 4], vec![vec![0..3], vec![1..3]]);
        assert_eq!(columns.runs().collect::<Vec<_>>(), [1..3, 5..7, 9..11]);
        assert_eq!(
            Slice::whole([3, 4]).runs().collect::<Vec<_>>(),
            [Range { start: 0, end: 12 }]
        );
        assert!(Slice::whole([3, 4]).is_whole() && !rows.is_whole());
    }
}
