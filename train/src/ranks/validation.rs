//! Validation by all ranks together.

use std::collections::VecDeque;

use firebox_model::batch::Sequence;
use firebox_model::language_model::LanguageModel;
use firebox_model::network::{BatchSums, Batches, Local};

use super::Team;
use crate::rows::Row;

/// Batches that the ranks of a team compute at the same time: one in place of each share of a batch that is trained on. Every
/// rank gets the sums of all, in their order, so that an evaluation has the same bits for any number of ranks that have the
/// whole model.
#[derive(Debug)]
pub struct Shared<'a> {
    team: &'a Team,
    local: Local<'a>,
    submitted: Vec<Vec<Sequence>>,
    sums: VecDeque<BatchSums>,
}

impl<'a> Shared<'a> {
    /// The model of this rank.
    pub fn new(team: &'a Team, model: &'a LanguageModel) -> Self {
        Self {
            team,
            local: Local::new(model),
            submitted: Vec::new(),
            sums: VecDeque::new(),
        }
    }
}

impl Batches for Shared<'_> {
    fn stages(&self) -> usize {
        self.team.layout().shares()
    }

    fn submit_batch(&mut self, sequences: &[Sequence]) {
        self.submitted.push(sequences.to_vec());
    }

    fn sums(&mut self) -> BatchSums {
        if self.sums.is_empty() {
            let submitted = std::mem::take(&mut self.submitted);
            let mut compute = |batch: &[Sequence]| {
                self.local.submit_batch(batch);
                self.local.sums()
            };
            let share = self.team.layout().share_of(self.team.rank());
            let own = submitted.get(share).map(|batch| compute(batch));
            if own.is_none() && self.team.computes_together() {
                // The others send their tokens to this one, too.
                compute(&submitted[0].iter().map(Row::padding).collect::<Vec<_>>());
            }
            self.sums
                .extend(self.team.all_shares(own).into_iter().flatten());
        }
        self.sums.pop_front().expect("a batch that was submitted")
    }
}
