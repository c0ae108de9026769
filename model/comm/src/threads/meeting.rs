//! The collective operation that the ranks of a group are coming to.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use super::group::Group;
use super::reduction::{Lent, Part, Reduction};
use crate::call::Call;

/// What a rank brings to a collective operation.
#[derive(Debug)]
pub(super) enum Load {
    Nothing,
    Color(usize),
    Vector(Lent),
    Bytes(Vec<u8>),
}

/// What every rank takes from a collective operation.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Nothing,
    Groups(Arc<BTreeMap<usize, Arc<Group>>>),
    All(Arc<Vec<Vec<u8>>>),
    One(Arc<Vec<u8>>),
}

/// A collective operation to which not all ranks have come, or which they are working on.
#[derive(Debug)]
pub(super) struct Meeting {
    /// How many operations of the group are over.
    number: u64,
    /// What each rank has brought to this one.
    brought: Vec<Option<(Call, Load)>>,
    /// A sum to work on, when all are here.
    sum: Option<Reduction>,
    /// Of the operation before. A rank that has not picked it up has not come to this one either, so that it lasts
    /// long enough.
    outcome: Outcome,
}

impl Meeting {
    pub(super) fn new(size: usize) -> Self {
        Self {
            number: 0,
            brought: (0..size).map(|_| None).collect(),
            sum: None,
            outcome: Outcome::Nothing,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Of the operation before.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.clone()
    }

    pub(super) fn sum(&self) -> Option<&Reduction> {
        self.sum.as_ref()
    }

    /// A rank comes. `false` if it is here already.
    pub(super) fn bring(&mut self, rank: usize, call: Call, load: Load) -> bool {
        let place = &mut self.brought[rank];
        let absent = place.is_none();
        if absent {
            *place = Some((call, load));
        }
        absent
    }

    /// A rank goes before the operation is over, so that it never will be. Nobody may be working on a sum.
    pub(super) fn withdraw(&mut self, rank: usize) {
        self.sum = None;
        self.brought[rank] = None;
    }

    /// The ranks that have not come.
    pub(super) fn missing(&self) -> impl Iterator<Item = usize> {
        let places = self.brought.iter().enumerate();
        places.filter_map(|(rank, brought)| brought.is_none().then_some(rank))
    }

    /// Makes what all ranks have brought the outcome, or a sum to work on.
    ///
    /// # Errors
    ///
    /// The first rank (of the whole run) that called another operation than the group's first one, in words.
    pub(super) fn assemble(&mut self, group: &Group) -> Result<(), (usize, String)> {
        let calls = || self.brought.iter().flatten().map(|&(call, _)| call);
        let Some(call) = calls().next() else {
            return Ok(());
        };
        if let Some((other, &rank)) = calls().zip(&group.ranks).find(|&(other, _)| other != call) {
            let first = group.ranks[0];
            return Err((
                rank,
                format!("called {other} where rank {first} called {call}"),
            ));
        }
        let loads = self.brought.iter_mut().flatten().map(|(_, load)| load);
        let outcome = match call {
            Call::Barrier => Outcome::Nothing,
            Call::AllReduceSum { .. } => {
                let vectors = loads.filter_map(|load| match load {
                    Load::Vector(lent) => Some(*lent),
                    _ => None,
                });
                let sum = Reduction::new(vectors.collect());
                if !sum.is_complete() {
                    self.sum = Some(sum);
                    return Ok(());
                }
                Outcome::Nothing
            }
            Call::Split => {
                let mut ranks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
                for (load, &rank) in loads.zip(&group.ranks) {
                    if let Load::Color(color) = load {
                        ranks.entry(*color).or_default().push(rank);
                    }
                }
                let new = |ranks| Group::new(Arc::clone(&group.board), ranks);
                let groups = ranks.into_iter().map(|(color, ranks)| (color, new(ranks)));
                Outcome::Groups(Arc::new(groups.collect()))
            }
            Call::AllGather => Outcome::All(Arc::new(loads.map(bytes).collect())),
            Call::Broadcast { root } => {
                let bytes = loads.map(bytes).nth(root);
                Outcome::One(Arc::new(bytes.unwrap_or_default()))
            }
        };
        self.adjourn(outcome);
        Ok(())
    }

    /// A part of the sum that nobody has taken yet.
    pub(super) fn take_part(&mut self) -> Option<Part> {
        self.sum.as_mut()?.take()
    }

    /// A part has been summed. Says whether nobody is working on the sum any more.
    pub(super) fn give_back(&mut self, part: Part) -> bool {
        let Some(sum) = &mut self.sum else {
            return true;
        };
        sum.give_back(part);
        let idle = sum.is_idle();
        if sum.is_complete() {
            self.adjourn(Outcome::Nothing);
        }
        idle
    }

    /// The operation is over.
    fn adjourn(&mut self, outcome: Outcome) {
        self.number += 1;
        self.brought.fill_with(|| None);
        self.sum = None;
        self.outcome = outcome;
    }
}

fn bytes(load: &mut Load) -> Vec<u8> {
    match load {
        Load::Bytes(bytes) => mem::take(bytes),
        _ => Vec::new(),
    }
}
