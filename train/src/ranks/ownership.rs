//! Which rank updates which values.

use std::collections::BTreeMap;
use std::ops::Range;

use firebox_model::config::ModelConfig;
use firebox_model::parameters::{Axis, ParameterInfo, Role};

use super::{Holders, Team, TrainLayout};

/// Which rank updates which values of each parameter, and keeps the optimizer's state of them (ZeRO stage 1, arXiv
/// 1910.02054).
///
/// All values that the same ranks hold, parameter after parameter, are divided into runs of about equal state, one for each of
/// these ranks. What is updated as a whole, such as a matrix, is not divided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    parameters: BTreeMap<String, Owned>,
    layout: TrainLayout,
    rank: usize,
}

/// The owners of a parameter's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The ranks that have the same values.
    pub holders: Holders,
    /// Where the run of each of them ends, among the values that they have.
    pub ends: Vec<usize>,
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
    /// Divides the parameters of a model among the ranks of a team.
    pub fn new(
        config: &ModelConfig,
        parameters: impl IntoIterator<Item = (ParameterInfo, Update)>,
        team: &Team,
    ) -> Self {
        let (layout, shard) = (team.layout(), team.shard(config));
        let mut held: [Vec<(ParameterInfo, Update)>; 2] = [Vec::new(), Vec::new()];
        for (mut parameter, update) in parameters {
            match &shard {
                Some(shard) if is_of_experts(&parameter) => {
                    let slice = shard.slice(&parameter).expect("experts of every rank");
                    parameter.shape = slice.shape();
                    held[1].push((parameter, update));
                }
                _ => held[0].push((parameter, update)),
            }
        }
        let [all, replicas] = held;
        let all = runs(&all, Holders::All, layout.ranks());
        let replicas = runs(&replicas, Holders::Replicas, layout.data);
        Self {
            parameters: all.into_iter().chain(replicas).collect(),
            layout,
            rank: team.rank(),
        }
    }

    /// Whether it says nothing of any parameter: a single rank owns everything.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// The parameters with their owners, in the same order on all ranks.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Owned)> {
        let parameters = self.parameters.iter();
        parameters.map(|(path, owned)| (path.as_str(), owned))
    }

    /// The owners of a parameter's values; `None` where a single rank owns everything.
    ///
    /// # Panics
    ///
    /// When the parameter is unknown.
    pub fn of(&self, path: &str) -> Option<&Owned> {
        (!self.is_empty()).then(|| &self.parameters[path])
    }

    /// The shape of a whole parameter, from that of what this rank has of it.
    pub fn whole_shape(&self, path: &str, mut shape: Vec<usize>) -> Vec<usize> {
        if let Some(owned) = self.of(path)
            && owned.holders == Holders::Replicas
        {
            shape[0] *= self.layout.expert;
        }
        shape
    }

    /// The run of a parameter that this rank updates, among the values that it has; `None` for all.
    pub fn own(&self, path: &str) -> Option<Range<usize>> {
        let owned = self.of(path)?;
        let place = match owned.holders {
            Holders::All => self.rank,
            Holders::Replicas => self.rank / self.layout.expert,
        };
        Some(owned.run(place))
    }

    /// The run of a parameter that this rank updates, among all of its values; `None` for all.
    pub fn own_of_whole(&self, path: &str) -> Option<Range<usize>> {
        let (owned, own) = (self.of(path)?, self.own(path)?);
        let before = match owned.holders {
            Holders::All => 0,
            Holders::Replicas => self.rank % self.layout.expert * owned.elements(),
        };
        Some(before + own.start..before + own.end)
    }

    /// The ranks that own something of a parameter, in the order of its values; `None` where a single rank owns everything.
    pub fn owners(&self, path: &str) -> Option<Vec<usize>> {
        let owned = self.of(path)?;
        let TrainLayout { data, expert } = self.layout;
        let ranks: Vec<(usize, usize)> = match owned.holders {
            Holders::All => (0..data * expert).map(|rank| (rank, rank)).collect(),
            Holders::Replicas => {
                let parts = (0..expert).flat_map(|e| (0..data).map(move |d| (d, d * expert + e)));
                parts.collect()
            }
        };
        let owners = ranks
            .into_iter()
            .filter(|&(place, _)| !owned.run(place).is_empty());
        Some(owners.map(|(_, rank)| rank).collect())
    }
}

impl Owned {
    /// Values that each holder has.
    pub fn elements(&self) -> usize {
        *self.ends.last().expect("a holder")
    }

    /// The run of a holder.
    fn run(&self, place: usize) -> Range<usize> {
        place.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[place]
    }
}

/// Whether a parameter belongs to single experts.
pub(crate) fn is_of_experts(parameter: &ParameterInfo) -> bool {
    parameter.axes.first() == Some(&Axis::Experts)
        && matches!(parameter.role, Role::Experts | Role::Bias)
}

/// Divides parameters into runs of about equal state for so many ranks.
fn runs(
    parameters: &[(ParameterInfo, Update)],
    holders: Holders,
    ranks: usize,
) -> Vec<(String, Owned)> {
    let state =
        |(parameter, update): &(ParameterInfo, Update)| parameter.elements() * update.state as u128;
    let whole: u128 = parameters.iter().map(state).sum();
    let mut before = 0;
    let parameters = parameters.iter().map(|both| {
        let (parameter, update) = both;
        let elements = parameter.elements() as usize;
        let (own, units) = (state(both), elements / update.together);
        let end = |rank: usize| {
            let share = whole * (rank as u128 + 1) / ranks as u128;
            // The nearest number of whole units.
            let share = share.saturating_sub(before) * units as u128;
            units.min(((2 * share + own) / (2 * own).max(1)) as usize) * update.together
        };
        let mut ends: Vec<usize> = (0..ranks).map(end).collect();
        ends[ranks - 1] = elements;
        before += own;
        (parameter.path.clone(), Owned { holders, ends })
    });
    parameters.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_has_one_owner_and_states_are_of_about_equal_size(
            shapes in prop::collection::vec(([1usize..6, 1..20, 1..20], any::<bool>()), 1..30),
            ranks in 1usize..9,
        ) {
            let parameters = shapes.iter().enumerate().map(|(number, (shape, is_of_muon))| {
                let parameter = ParameterInfo {
                    path: format!("parameter {number}"),
                    role: Role::FeedForward,
                    axes: Vec::new(),
                    shape: shape.to_vec(),
                };
                let update = match is_of_muon {
                    true => Update { together: shape[1] * shape[2], state: 1 },
                    false => Update { together: 1, state: 2 },
                };
                (parameter, update)
            });
            let parameters: Vec<_> = parameters.collect();
            let mut sizes = vec![0; ranks];
            let found = runs(&parameters, Holders::All, ranks);
            for ((parameter, update), (path, owned)) in parameters.iter().zip(&found) {
                prop_assert_eq!(path, &parameter.path);
                prop_assert!(owned.ends.is_sorted());
                prop_assert_eq!(owned.elements(), parameter.elements() as usize);
                for (rank, size) in sizes.iter_mut().enumerate() {
                    let own = owned.run(rank);
                    prop_assert!(own.start.is_multiple_of(update.together));
                    *size += own.len() * update.state;
                }
            }
            let whole: usize = sizes.iter().sum();
            let units = parameters.iter().map(|(_, update)| update.together * update.state);
            let largest = units.max().unwrap();
            for size in sizes {
                prop_assert!(size.abs_diff(whole / ranks) <= largest + 1, "{} of {}", size, whole);
            }
        }
    }

    #[test]
    fn a_single_rank_owns_everything() {
        let ownership = Ownership::default();
        assert_eq!(ownership.own("anything"), None);
        assert_eq!(ownership.owners("anything"), None);
    }
}
