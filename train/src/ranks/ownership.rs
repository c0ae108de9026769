//! Which rank updates which values.

use std::collections::BTreeMap;
use std::ops::Range;

use firebox_model::parameters::ParameterInfo;

/// Which rank updates which values of each parameter, and keeps the optimizer's state of them (ZeRO stage 1, arXiv
/// 1910.02054).
///
/// All values together, parameter after parameter, are divided into runs of about equal state, one for each rank. What is
/// updated as a whole, such as a matrix, is not divided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Of each parameter, where the run of each rank ends, within its values.
    ends: BTreeMap<String, Vec<usize>>,
    rank: usize,
}

/// How a parameter is updated, which decides about its division.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// Values that are updated together.
    pub together: usize,
    /// Values of state of each value.
    pub state: usize,
}

impl Ownership {
    /// Divides parameters among so many ranks, of which this is one.
    pub fn new<'a>(
        parameters: impl IntoIterator<Item = (&'a ParameterInfo, Update)>,
        ranks: usize,
        rank: usize,
    ) -> Self {
        let parameters: Vec<(&ParameterInfo, Update)> = parameters.into_iter().collect();
        let elements = |parameter: &ParameterInfo| parameter.elements() as usize;
        let state = |(parameter, update): &(&ParameterInfo, Update)| {
            elements(parameter) as u128 * update.state as u128
        };
        let whole: u128 = parameters.iter().map(state).sum();
        let mut before = 0;
        let mut ends = BTreeMap::new();
        for (parameter, update) in &parameters {
            let own = state(&(parameter, *update));
            let units = elements(parameter) / update.together;
            let end = |rank: usize| {
                let share = whole * (rank as u128 + 1) / ranks as u128;
                // The nearest number of units; ties go to the rank before.
                let units_before =
                    (2 * share.saturating_sub(before) * units as u128 + own) / (2 * own).max(1);
                units.min(units_before as usize) * update.together
            };
            let mut own_ends: Vec<usize> = (0..ranks).map(end).collect();
            own_ends[ranks - 1] = elements(parameter);
            ends.insert(parameter.path.clone(), own_ends);
            before += own;
        }
        Self { ends, rank }
    }

    /// Whether it says nothing of any parameter: a single rank owns everything.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The parameters, in the same order on all ranks, and where the run of each rank ends.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let parameters = self.ends.iter();
        parameters.map(|(path, ends)| (path.as_str(), ends.as_slice()))
    }

    /// Where the run of each rank ends; `None` where a single rank owns everything.
    ///
    /// # Panics
    ///
    /// When the parameter is unknown.
    pub fn ends(&self, path: &str) -> Option<&[usize]> {
        (!self.is_empty()).then(|| self.ends[path].as_slice())
    }

    /// The values of a parameter that this rank updates; `None` for all.
    pub fn own(&self, path: &str) -> Option<Range<usize>> {
        self.ends(path).map(|ends| run(ends, self.rank))
    }
}

/// A rank's run of the values whose runs end so.
pub(super) fn run(ends: &[usize], rank: usize) -> Range<usize> {
    rank.checked_sub(1).map_or(0, |before| ends[before])..ends[rank]
}

#[cfg(test)]
mod tests {
    use firebox_model::parameters::Role;
    use proptest::prelude::*;

    use super::*;

    fn parameter(number: usize, shape: &[usize]) -> ParameterInfo {
        ParameterInfo {
            path: format!("parameter {number:03}"),
            role: Role::FeedForward,
            axes: Vec::new(),
            shape: shape.to_vec(),
        }
    }

    fn updates(shape: &[usize], is_of_muon: bool) -> Update {
        match is_of_muon {
            true => Update {
                together: shape[1] * shape[2],
                state: 1,
            },
            false => Update {
                together: 1,
                state: 2,
            },
        }
    }

    proptest! {
        #[test]
        fn every_value_has_one_owner_and_states_are_of_about_equal_size(
            shapes in prop::collection::vec(([1usize..6, 1..20, 1..20], any::<bool>()), 1..30),
            ranks in 1usize..9,
        ) {
            let parameters: Vec<ParameterInfo> = shapes.iter().enumerate()
                .map(|(number, (shape, _))| parameter(number, shape))
                .collect();
            let pairs = || parameters.iter().zip(&shapes)
                .map(|(parameter, (shape, muon))| (parameter, updates(shape, *muon)));
            let mut sizes = vec![0; ranks];
            for rank in 0..ranks {
                let ownership = Ownership::new(pairs(), ranks, rank);
                for (parameter, update) in pairs() {
                    let own = ownership.own(&parameter.path).unwrap();
                    prop_assert!(own.start.is_multiple_of(update.together));
                    prop_assert!(own.end.is_multiple_of(update.together));
                    sizes[rank] += own.len() * update.state;
                    let ends = ownership.ends(&parameter.path).unwrap();
                    prop_assert!(ends.is_sorted());
                    prop_assert_eq!(ends[ranks - 1], parameter.elements() as usize);
                }
            }
            let whole: usize = sizes.iter().sum();
            let largest = pairs().map(|(_, update)| update.together * update.state).max().unwrap();
            for size in sizes {
                prop_assert!(size.abs_diff(whole / ranks) <= largest + 1, "{} of {}", size, whole);
            }
        }
    }

    #[test]
    fn a_single_rank_owns_everything() {
        let ownership = Ownership::default();
        assert_eq!(ownership.own("anything"), None);
    }
}
