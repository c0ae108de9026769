//! State of a group's current collective operation.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex};

use super::board::lock;
use super::group::Group;
use super::reduction::{Aim, Lent, Part, Reduction};
use crate::call::Call;

/// What a rank contributes to a collective operation.
#[derive(Debug)]
pub(super) enum Contribution {
    Nothing,
    Color(usize),
    Vector(Lent),
    /// A vector, and where the part of each rank ends.
    Parts(Lent, Arc<[usize]>),
    Bytes(Vec<u8>),
    /// What is sent to each rank.
    ToEach(Vec<Vec<u8>>),
}

/// What every rank gets from a collective operation.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Nothing,
    Groups(Arc<BTreeMap<usize, Arc<Group>>>),
    All(Arc<Vec<Vec<u8>>>),
    /// What each rank was sent by the others, until it takes it.
    Dealt(Arc<[Mutex<Vec<Vec<u8>>>]>),
}

impl Outcome {
    /// What was sent to a rank.
    pub(super) fn dealt(&self, rank: usize) -> Vec<Vec<u8>> {
        match self {
            Self::Dealt(dealt) => mem::take(&mut *lock(&dealt[rank])),
            _ => unreachable!("an all-to-all deals"),
        }
    }
}

/// A collective operation that not all ranks have entered, or which they are working on.
#[derive(Debug)]
pub(super) struct Collective {
    /// How many operations of the group are complete.
    number: u64,
    /// What each rank has contributed to this one.
    contributions: Vec<Option<(Call, Contribution)>>,
    /// What is to be done with the vectors, once all ranks have contributed.
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
    /// The first rank (of the whole run) whose operation does not fit that of the group's first one, in words.
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
            Call::AllReduceSum { .. }
            | Call::ReduceScatterSum { .. }
            | Call::AllGatherParts { .. } => {
                let mut vectors = Vec::new();
                let mut parts: Option<Arc<[usize]>> = None;
                for (contribution, &rank) in contributions.zip(&group.ranks) {
                    match contribution {
                        Contribution::Vector(lent) => vectors.push(*lent),
                        Contribution::Parts(lent, ends) => {
                            vectors.push(*lent);
                            if parts.get_or_insert(Arc::clone(ends)) != ends {
                                let first = group.ranks[0];
                                return Err((
                                    rank,
                                    format!("divided {call} otherwise than rank {first}"),
                                ));
                            }
                        }
                        _ => {}
                    }
                }
                let aim = match (call, parts) {
                    (Call::ReduceScatterSum { .. }, Some(ends)) => Aim::SumOfPart(ends),
                    (Call::AllGatherParts { .. }, Some(ends)) => Aim::Parts(ends),
                    _ => Aim::Sum,
                };
                let sum = Reduction::new(aim, vectors);
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
            Call::AllToAll => {
                let ranks = group.ranks.len();
                let mut dealt: Vec<Vec<Vec<u8>>> = vec![Vec::with_capacity(ranks); ranks];
                for contribution in contributions {
                    if let Contribution::ToEach(parts) = contribution {
                        let parts = mem::take(parts).into_iter();
                        dealt
                            .iter_mut()
                            .zip(parts)
                            .for_each(|(to, part)| to.push(part));
                    }
                }
                Outcome::Dealt(dealt.into_iter().map(Mutex::new).collect())
            }
        };
        self.complete(outcome);
        Ok(())
    }

    /// A part of the work that nobody has taken yet.
    pub(super) fn take_part(&mut self) -> Option<Part> {
        self.sum.as_mut()?.take()
    }

    /// Returns a part that is done; whether nobody is at work any more.
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
