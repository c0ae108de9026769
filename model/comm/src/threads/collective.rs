//! State of a group's current collective operation.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use super::group::Group;
use super::reduction::{Lent, Part, Reduction};
use crate::call::Call;

/// What a rank contributes to a collective operation.
#[derive(Debug)]
pub(super) enum Contribution {
    Nothing,
    Color(usize),
    Vector(Lent),
    Bytes(Vec<u8>),
}

/// What every rank gets from a collective operation.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Nothing,
    Groups(Arc<BTreeMap<usize, Arc<Group>>>),
    All(Arc<Vec<Vec<u8>>>),
}

/// A collective operation that not all ranks have entered, or which they are working on.
#[derive(Debug)]
pub(super) struct Collective {
    /// How many operations of the group are complete.
    number: u64,
    /// What each rank has contributed to this one.
    contributions: Vec<Option<(Call, Contribution)>>,
    /// A sum to work on, once all ranks have contributed.
    sum: Option<Reduction>,
    /// Result of the previous operation, kept until every rank has entered the next one.
    outcome: Outcome,
}

impl Collective {
    pub(super) fn new(size: usize) -> Self {
        Self {
            number: 0,
            contributions: (0..size).map(|_| None).collect(),
            sum: None,
            outcome: Outcome::Nothing,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Result of the previous operation.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.clone()
    }

    pub(super) fn sum(&self) -> Option<&Reduction> {
        self.sum.as_ref()
    }

    /// Registers a rank's contribution; `false` if it has one already.
    pub(super) fn contribute(&mut self, rank: usize, call: Call, own: Contribution) -> bool {
        let place = &mut self.contributions[rank];
        let is_new = place.is_none();
        if is_new {
            *place = Some((call, own));
        }
        is_new
    }

    /// Withdraws a rank's contribution and abandons the operation. No part may be in use.
    pub(super) fn withdraw(&mut self, rank: usize) {
        self.sum = None;
        self.contributions[rank] = None;
    }

    /// The ranks that have not contributed.
    pub(super) fn missing(&self) -> impl Iterator<Item = usize> {
        let places = self.contributions.iter().enumerate();
        places.filter_map(|(rank, contribution)| contribution.is_none().then_some(rank))
    }

    /// Turns the contributions of all ranks into the outcome, or into a sum to work on.
    ///
    /// # Errors
    ///
    /// The first rank (of the whole run) that called another operation than the group's first one, in words.
    pub(super) fn combine(&mut self, group: &Group) -> Result<(), (usize, String)> {
        let calls = || self.contributions.iter().flatten().map(|&(call, _)| call);
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
        let contributions = self.contributions.iter_mut().flatten();
        let contributions = contributions.map(|(_, contribution)| contribution);
        let outcome = match call {
            Call::Barrier => Outcome::Nothing,
            Call::AllReduceSum { .. } => {
                let vectors = contributions.filter_map(|contribution| match contribution {
                    Contribution::Vector(lent) => Some(*lent),
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
                for (contribution, &rank) in contributions.zip(&group.ranks) {
                    if let Contribution::Color(color) = contribution {
                        ranks.entry(*color).or_default().push(rank);
                    }
                }
                let new = |ranks| Group::new(Arc::clone(&group.board), ranks);
                let groups = ranks.into_iter().map(|(color, ranks)| (color, new(ranks)));
                Outcome::Groups(Arc::new(groups.collect()))
            }
            Call::AllGather => Outcome::All(Arc::new(contributions.map(bytes).collect())),
        };
        self.complete(outcome);
        Ok(())
    }

    /// A part of the sum that nobody has taken yet.
    pub(super) fn take_part(&mut self) -> Option<Part> {
        self.sum.as_mut()?.take()
    }

    /// Returns a part that has been summed; whether nobody is working on the sum any more.
    pub(super) fn give_back(&mut self, part: Part) -> bool {
        let Some(sum) = &mut self.sum else {
            return true;
        };
        sum.give_back(part);
        let idle = sum.is_idle();
        if sum.is_complete() {
            self.complete(Outcome::Nothing);
        }
        idle
    }

    /// The operation is complete.
    fn complete(&mut self, outcome: Outcome) {
        self.number += 1;
        self.contributions.fill_with(|| None);
        self.sum = None;
        self.outcome = outcome;
    }
}

fn bytes(contribution: &mut Contribution) -> Vec<u8> {
    match contribution {
        Contribution::Bytes(bytes) => mem::take(bytes),
        _ => Vec::new(),
    }
}
