//! The update of a parameter: of all its values, or of a run of them that is one rank's.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use firebox_kernels::{AdamWUpdate, MuonUpdate, Turns, adamw, muon};
use firebox_model::parameters::MapParameter;

use super::{Groups, Kept, Moments};
use crate::gradient::GradientSum;
use crate::learned::Learned;
use crate::ranks::{Owned, Ownership, Team, host};

/// Updates every trained parameter of a model.
pub(super) struct UpdateVisitor<'a> {
    /// The updates of parameters with weight decay.
    pub adamw: AdamWUpdate,
    /// The update of matrices, with the turns that experts take.
    pub muon: MuonUpdate,
    pub moments: &'a mut BTreeMap<String, Moments>,
    pub groups: &'a Groups,
    pub learned: &'a Learned,
    pub team: &'a Team,
    pub ownership: &'a Ownership,
    /// Factor of the learning rate of gates.
    pub gate_rate: f64,
    pub gradients: GradientSum,
}

impl UpdateVisitor<'_> {
    /// Updates values of a parameter: all of them, or a run of them that is this rank's own, of whose matrices `first` is the place
    /// of the first one in their stack.
    fn update<const D: usize>(
        &self,
        path: &str,
        values: Tensor<D>,
        first: usize,
        gradient: Tensor<1>,
        kept: Kept,
    ) -> (Tensor<D>, Kept) {
        match kept {
            Kept::Momentum(momentum) => {
                let update = MuonUpdate {
                    turns: self.turns(path, first),
                    ..self.muon
                };
                let (values, momentum) = muon(values, gradient, *momentum, &update);
                (values, Kept::Momentum(Box::new(momentum)))
            }
            Kept::Moments(moments) => {
                let mut update = self.adamw;
                if !self.groups.decaying.contains(path) {
                    update.decay = 0.0;
                }
                if self.groups.gates.contains(path) {
                    update.learning_rate *= self.gate_rate;
                }
                let (values, moments) = adamw(values, gradient, *moments, &update);
                (values, Kept::Moments(Box::new(moments)))
            }
        }
    }

    /// The turns that the matrices at a path take, from the one at the place `first` on.
    fn turns(&self, path: &str, first: usize) -> Turns {
        let turns = self.muon.turns;
        match self.groups.experts.contains(path) {
            true => Turns {
                offset: turns.offset + first,
                ..turns
            },
            false => Turns::ALL,
        }
    }

    /// The weights at a path after what they lose for their size alone.
    fn decayed<const D: usize>(&self, path: &str, weights: Tensor<D>, owned: &Owned) -> Tensor<D> {
        let decay = match (
            self.groups.muon.contains(path),
            self.groups.decaying.contains(path),
        ) {
            (true, _) => self.muon.decay,
            (false, true) => self.adamw.decay,
            (false, false) => 0.0,
        };
        let turns = self.turns(path, 0);
        if turns.every == 1 {
            return weights.mul_scalar(1.0 - decay);
        }
        let kept = owned.places().map(|place| match turns.includes(place) {
            true => (1.0 - turns.every as f64 * decay) as f32,
            false => 1.0,
        });
        let kept: Vec<f32> = kept.collect();
        let mut shape = [1; D];
        shape[0] = kept.len();
        let device = weights.device();
        weights * Tensor::from_data(TensorData::new(kept, shape), &device)
    }

    /// Updates the run of a parameter's values that is this rank's own, and gets the others from the other ranks.
    ///
    /// Where not all of those who divide it have all of it, the owner of a weight may not have it: from a weight of zero it finds
    /// what is added, and those who have the weight add that.
    fn update_own<const D: usize>(
        &mut self,
        path: &str,
        weights: Tensor<D>,
        owned: &Owned,
        kept: Option<Kept>,
    ) -> (Tensor<D>, Option<Kept>) {
        let (shape, device) = (weights.dims(), weights.device());
        let (own, of_part) = (owned.own(), owned.slice().shape());
        let mut values = match owned.is_with_all() {
            true => host(weights.clone()),
            false => vec![0.0; owned.slice().elements()],
        };
        let kept = (!own.is_empty()).then(|| {
            let is_of_muon = self.groups.muon.contains(path);
            let zeros = || Kept::zeros(is_of_muon, own.len(), &device);
            let (kept, gradient) = (kept.unwrap_or_else(zeros), self.gradients.take(path));
            let gradient = gradient.expect("gradients of own values");
            // A matrix is of one rank as a whole.
            let (run, first) = match (is_of_muon, &of_part[..]) {
                (true, &[.., rows, columns]) => {
                    let size = rows * columns;
                    let run = [own.len() / size, rows, columns];
                    let first = owned.places().nth(own.start / size);
                    (run, first.expect("own matrices are of the part"))
                }
                _ => ([1, 1, own.len()], 0),
            };
            let before = TensorData::new(values[own.clone()].to_vec(), run);
            let before = Tensor::<3>::from_data(before, &device);
            let (after, kept) = self.update(path, before, first, gradient, kept);
            values[own.clone()].copy_from_slice(&host(after));
            kept
        });
        self.team
            .gather_parts(owned.holders, &mut values, owned.ends());
        let found = owned
            .held(values)
            .map(|values| Tensor::from_data(TensorData::new(values, shape), &device));
        let weights = match found {
            Some(weights) if owned.is_with_all() => weights,
            Some(change) => self.decayed(path, weights, owned) + change,
            None => weights,
        };
        (weights, kept)
    }
}

impl MapParameter for UpdateVisitor<'_> {
    fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
        if !self.learned.includes(path) {
            return value;
        }
        let shape = value.dims();
        let weights = value.inner();
        let kept = self.moments.remove(path).and_then(|moments| moments.kept);
        let (weights, kept) = match self.ownership.of(path) {
            Some(owned) => self.update_own(path, weights, owned, kept),
            None => {
                let (elements, device) = (shape.iter().product(), weights.device());
                let gradient = self.gradients.take(path);
                let gradient = gradient.unwrap_or_else(|| Tensor::zeros([elements], &device));
                let is_of_muon = self.groups.muon.contains(path);
                let zeros = || Kept::zeros(is_of_muon, elements, &device);
                let kept = kept.unwrap_or_else(zeros);
                let (weights, kept) = self.update(path, weights, 0, gradient, kept);
                (weights, Some(kept))
            }
        };
        let shape = match self.ownership.of(path) {
            Some(owned) => owned.slice().of().to_vec(),
            None => shape.to_vec(),
        };
        self.moments
            .insert(path.to_owned(), Moments { shape, kept });
        Tensor::from_inner(weights)
    }
}
