//! Which rank updates which values.

use std::collections::BTreeMap;
use std::ops::Range;

use firebox_model::config::ModelConfig;
use firebox_model::parallel::{GradientPart, Holding, Shard, Slice};
use firebox_model::parameters::{Axis, ParameterInfo, Role};

use super::{Holders, TrainLayout};

/// Which rank updates which values of each parameter, and keeps the optimizer's state of them (ZeRO stage 1, arXiv
/// 1910.02054).
///
/// Each parameter is as many parts as the ranks divide it into, and all values that the same ranks hold, parameter after
/// parameter, are divided into runs of about equal state, one for each of these ranks. What is updated as a whole, such as a
/// matrix, is not divided: where Muon updates matrices that tensor ranks divide, they are put together for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    parameters: BTreeMap<String, Owned>,
    layout: TrainLayout,
}

/// The owners of a parameter's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The ranks that divide a part of it among themselves.
    pub holders: Holders,
    /// All parts, of which the ranks of a layout have one each.
    parts: Vec<Part>,
    /// The number of this rank's part, and this rank's place among its holders.
    part: usize,
    place: usize,
    here: Here,
    /// Whether all of its holders have all of it.
    is_with_all: bool,
    /// Whether this rank's gradient counts: of ranks that have the same one, that of the first does.
    counts: bool,
}

/// A part of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// Where it lies in the whole.
    slice: Slice,
    /// Where the run of each holder ends, among its values.
    ends: Vec<usize>,
}

/// What a rank has in its model of the part that it and others divide.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Here {
    All,
    /// These values of it.
    Some(Slice),
    /// Zeros in its place, which stay so.
    Zeros,
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
    /// Divides the parameters of a model among the ranks of a layout, of which this is one.
    pub fn new(
        config: &ModelConfig,
        parameters: impl IntoIterator<Item = (ParameterInfo, Update)>,
        layout: TrainLayout,
        rank: usize,
    ) -> Self {
        let shards: Vec<Option<Shard>> = (0..layout.ranks_of_copy())
            .map(|rank| layout.shard(config, rank))
            .collect();
        let mut by_holders: BTreeMap<Holders, Vec<(ParameterInfo, Update)>> = BTreeMap::new();
        for (parameter, update) in parameters {
            let holders = holders(&parameter, update, shards[0].as_ref());
            let same = by_holders.entry(holders).or_default();
            same.push((parameter, update));
        }
        let mut owned = BTreeMap::new();
        for (holders, parameters) in by_holders {
            let mut parts = vec![Vec::new(); parameters.len()];
            for part in 0..layout.parts(holders) {
                let mut of_part = layout.holders(holders, part);
                let first = of_part.next().expect("a holder");
                let shard = shards[first].as_ref();
                let slices = parameters.iter();
                let slices = slices.map(|(parameter, _)| slice(parameter, holders, shard));
                let slices: Vec<Slice> = slices.collect();
                let updates = parameters.iter().map(|&(_, update)| update);
                let sizes = slices.iter().map(Slice::elements).zip(updates).collect();
                let ends = runs(sizes, 1 + of_part.count());
                let divided = slices.into_iter().zip(ends);
                let divided = divided.map(|(slice, ends)| Part { slice, ends });
                (parts.iter_mut().zip(divided)).for_each(|(parts, part)| parts.push(part));
            }
            let part = layout.part(holders, rank);
            let place = layout
                .holders(holders, part)
                .position(|other| other == rank);
            let place = place.expect("one of the holders");
            let shard = shards[rank % shards.len()].as_ref();
            let of_copy = (0..shards.len()).filter(|&other| layout.part(holders, other) == part);
            let of_copy: Vec<Option<&Shard>> =
                of_copy.map(|other| shards[other].as_ref()).collect();
            for ((parameter, _), parts) in parameters.into_iter().zip(parts) {
                let of_rank = |shard| here(&parameter, &parts[part].slice, shard);
                let one = Owned {
                    here: of_rank(shard),
                    is_with_all: of_copy.iter().all(|&shard| of_rank(shard) == Here::All),
                    counts: shard.is_none_or(|shard| {
                        shard.gradient(&parameter) != GradientPart::Same || shard.at().tensor == 0
                    }),
                    holders,
                    parts,
                    part,
                    place,
                };
                owned.insert(parameter.path, one);
            }
        }
        Self {
            parameters: owned,
            layout,
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

    /// The parts of a parameter, with the ranks that own something of each, in the order of its values; `None` where a single
    /// rank owns everything.
    pub fn owners(&self, path: &str) -> Option<Vec<(&Slice, Vec<usize>)>> {
        let owned = self.of(path)?;
        let parts = owned.parts.iter().enumerate().map(|(number, part)| {
            let ranks = self.layout.holders(owned.holders, number).enumerate();
            let owners = ranks.filter(|&(place, _)| !part.run(place).is_empty());
            (&part.slice, owners.map(|(_, rank)| rank).collect())
        });
        Some(parts.collect())
    }
}

impl Owned {
    /// The part that this rank and others divide.
    fn part(&self) -> &Part {
        &self.parts[self.part]
    }

    /// Its place in the whole parameter.
    pub fn slice(&self) -> &Slice {
        &self.part().slice
    }

    /// The indices of the part in the parameter's first dimension: of a stack, its matrices, all of which are in this rank's
    /// model, whole or in part.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        let ranges = self.slice().ranges()[0].iter();
        ranges.cloned().flatten()
    }

    /// Where the run of each holder ends, among its values.
    pub fn ends(&self) -> &[usize] {
        &self.part().ends
    }

    /// The run that this rank updates, among its values.
    pub fn own(&self) -> Range<usize> {
        self.part().run(self.place)
    }

    /// Where the values of this run are among all of the parameter's.
    pub fn own_places(&self) -> Vec<Range<usize>> {
        let own = self.own();
        let mut before = 0;
        let places = self.slice().runs().filter_map(|run| {
            let (first, last) = (own.start.max(before), own.end.min(before + run.len()));
            let places =
                (first < last).then(|| run.start + (first - before)..run.start + (last - before));
            before += run.len();
            places
        });
        places.collect()
    }

    /// Number of values that all ranks together hand to messages in a step: each its gradient of its part, and those that it
    /// has updated. A rank that has a part alone tells nobody.
    pub fn handed(&self) -> u128 {
        let shared = self.parts.iter().filter(|part| part.ends.len() > 1);
        let handed = shared.map(|part| part.slice.elements() * (part.ends.len() + 1));
        handed.map(|values| values as u128).sum()
    }

    /// Whether all ranks that divide the part have all values of it.
    pub fn is_with_all(&self) -> bool {
        self.is_with_all
    }

    /// This rank's term of the gradient of the part, from that of what is in its model; `None` is a gradient of zeros.
    pub fn term(&self, gradient: Option<Vec<f32>>) -> Vec<f32> {
        let zeros = || vec![0.0; self.slice().elements()];
        match (&self.here, gradient.filter(|_| self.counts)) {
            (Here::All, Some(gradient)) => gradient,
            (Here::Some(slice), Some(gradient)) => {
                let mut term = zeros();
                let places = slice.runs().flatten();
                // A key/value head may be here twice.
                (places.zip(gradient)).for_each(|(place, value)| term[place] += value);
                term
            }
            _ => zeros(),
        }
    }

    /// What is in this rank's model of the values of the part; `None` if zeros stand in their place.
    pub fn held(&self, values: Vec<f32>) -> Option<Vec<f32>> {
        match &self.here {
            Here::All => Some(values),
            Here::Some(slice) => Some(slice.take(&values)),
            Here::Zeros => None,
        }
    }
}

impl Part {
    /// The run of a holder.
    fn run(&self, place: usize) -> Range<usize> {
        place.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[place]
    }
}

/// The ranks that divide the values of a parameter.
fn holders(parameter: &ParameterInfo, update: Update, shard: Option<&Shard>) -> Holders {
    let Some(shard) = shard else {
        return Holders::ALL;
    };
    let (_, groups) = shard.expert_place();
    Holders {
        experts: groups > 1 && is_of_experts(parameter),
        matrices: shard.layout().tensor > 1
            && update.together == 1
            && shard.gradient(parameter) == GradientPart::Own,
    }
}

/// The part of a parameter that the holders divide of whom a rank is one.
fn slice(parameter: &ParameterInfo, holders: Holders, shard: Option<&Shard>) -> Slice {
    let whole = || Slice::whole(parameter.shape.clone());
    let held = shard.and_then(|shard| shard.slice(parameter));
    match (held, holders) {
        (Some(held), Holders { matrices: true, .. }) => held,
        (Some(held), Holders { experts: true, .. }) => {
            let mut ranges = whole().ranges().to_vec();
            ranges[0] = held.ranges()[0].clone();
            Slice::new(parameter.shape.clone(), ranges)
        }
        _ => whole(),
    }
}

/// What a rank has of this part of a parameter.
fn here(parameter: &ParameterInfo, part: &Slice, shard: Option<&Shard>) -> Here {
    let held = match shard.map(|shard| shard.holding(parameter)) {
        None => return Here::All,
        Some(Holding::Part(held)) => held,
        Some(Holding::Zeros(_)) => return Here::Zeros,
        Some(Holding::Elsewhere) => panic!("{} is not in any layer", parameter.path),
    };
    if held == *part {
        return Here::All;
    }
    // Of experts, those of the part.
    let mut ranges = held.ranges().to_vec();
    if held.ranges()[0] == part.ranges()[0] {
        ranges[0] = Slice::whole(part.shape()).ranges()[0].clone();
    }
    Here::Some(Slice::new(part.shape(), ranges))
}

/// Whether a parameter belongs to single experts.
pub(crate) fn is_of_experts(parameter: &ParameterInfo) -> bool {
    parameter.axes.first() == Some(&Axis::Experts)
        && matches!(parameter.role, Role::Experts | Role::Bias)
}

/// Divides so many values of each parameter into runs of about equal state for so many ranks; where these end.
fn runs(parameters: Vec<(usize, Update)>, ranks: usize) -> Vec<Vec<usize>> {
    let state = |&(elements, update): &(usize, Update)| elements as u128 * update.state as u128;
    let whole: u128 = parameters.iter().map(state).sum();
    let mut before = 0;
    let parameters = parameters.iter().map(|both| {
        let &(elements, update) = both;
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
        ends
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
            let parameters = shapes.iter().map(|(shape, is_of_muon)| {
                let update = match is_of_muon {
                    true => Update { together: shape[1] * shape[2], state: 1 },
                    false => Update { together: 1, state: 2 },
                };
                (shape.iter().product(), update)
            });
            let parameters: Vec<(usize, Update)> = parameters.collect();
            let mut sizes = vec![0; ranks];
            let found = runs(parameters.clone(), ranks);
            for (&(elements, update), ends) in parameters.iter().zip(found) {
                prop_assert!(ends.is_sorted());
                prop_assert_eq!(ends.last(), Some(&elements));
                let part = Part { slice: Slice::whole([elements]), ends };
                for (rank, size) in sizes.iter_mut().enumerate() {
                    let own = part.run(rank);
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
        assert_eq!(ownership.of("anything"), None);
        assert_eq!(ownership.owners("anything"), None);
    }
}
