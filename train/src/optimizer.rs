//! The optimizers, AdamW with decoupled weight decay and Muon, and gradient clipping by global norm.

mod update;

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Tensor, TensorData};
use firebox_checkpoint::{CheckpointError, Mismatch, NamedTensor, TensorFile};
use firebox_kernels::{AdamWUpdate, MuonUpdate, Turns};
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{ParameterInfo, Role, map};

use crate::config::{Muon, OptimizerConfig};
use crate::gradient::GradientSum;
use crate::learned::Learned;
use crate::ranks::{Ownership, Team, TrainLayout, Update};
use update::UpdateVisitor;

/// Prefixes of the moments' names in their file; a parameter's path follows.
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";
const MOMENTUM: &str = "momentum";

/// The optimizer of a run with its state: AdamW ([`adamw`](firebox_kernels::adamw)), or of the matrices that `optimizer.muon` names
/// [`muon`](firebox_kernels::muon()).
///
/// Weight decay does not apply to norm gains, biases, sinks and embeddings: shrinking them does not simplify the function.
///
/// Of several ranks that train a model together, each has the state of the values that are its [own](Ownership) alone.
#[derive(Debug)]
pub struct Optimizer {
    /// Updates so far (t).
    steps: u64,
    moments: BTreeMap<String, Moments>,
    /// What is trained.
    learned: Learned,
    /// Parameters that are updated in other ways than the rest.
    groups: Groups,
    team: Team,
    ownership: Ownership,
}

/// Paths of parameters that are updated in other ways than the rest.
#[derive(Debug)]
struct Groups {
    /// Which of them are Muon's.
    kind: Muon,
    /// Those with weight decay.
    decaying: BTreeSet<String>,
    /// Those of Muon.
    muon: BTreeSet<String>,
    /// Of these, stacks of the experts' matrices, which take turns.
    experts: BTreeSet<String>,
    /// The gates of a model that sees pictures.
    gates: BTreeSet<String>,
}

impl Groups {
    fn new(config: &ModelConfig, muon: Muon) -> Self {
        let parameters = LanguageModel::parameter_list(config);
        let of = |belongs: &dyn Fn(&ParameterInfo) -> bool| {
            let parameters = parameters.iter().filter(|parameter| belongs(parameter));
            parameters.map(|parameter| parameter.path.clone()).collect()
        };
        Self {
            kind: muon,
            decaying: of(&decays),
            muon: of(&|parameter| is_of_muon(parameter, muon)),
            experts: of(&|parameter| {
                parameter.role == Role::Experts && is_of_muon(parameter, muon)
            }),
            gates: of(&|parameter| parameter.role == Role::Gate),
        }
    }
}

/// Whether weight decay applies to a parameter.
fn decays(parameter: &ParameterInfo) -> bool {
    !matches!(
        parameter.role,
        Role::Norm
            | Role::Bias
            | Role::RouterBias
            | Role::Sinks
            | Role::Embedding
            | Role::Gate
            | Role::TowerEmbedding
    )
}

/// Whether a parameter is one of the matrices that Muon updates.
fn is_of_muon(parameter: &ParameterInfo, muon: Muon) -> bool {
    match parameter.role {
        Role::Attention | Role::CrossAttention | Role::FeedForward | Role::SharedExperts => {
            muon != Muon::None
        }
        Role::Experts => muon == Muon::All,
        _ => false,
    }
}

/// Number of values that an optimizer keeps of what is trained of a model: two of each weight, or one where Muon updates it.
pub fn kept_values(config: &ModelConfig, muon: Muon, learned: &Learned) -> u128 {
    let parameters = LanguageModel::parameter_list(config).into_iter();
    let learned = parameters.filter(|parameter| learned.includes(&parameter.path));
    let kept = learned.map(|parameter| {
        let tensors = Kept::names(is_of_muon(&parameter, muon)).len();
        tensors as u128 * parameter.elements()
    });
    kept.sum()
}

/// What an optimizer keeps of a parameter.
#[derive(Debug)]
struct Moments {
    /// That of the parameter.
    shape: Vec<usize>,
    /// Of the values that are this rank's own; `None` where there are none.
    kept: Option<Kept>,
}

#[derive(Debug)]
enum Kept {
    /// The moments of AdamW, first and second.
    Moments(Box<[Tensor<1>; 2]>),
    /// The momentum of Muon.
    Momentum(Box<Tensor<1>>),
}

impl Kept {
    /// What the names of its tensors begin with.
    fn names(is_of_muon: bool) -> &'static [&'static str] {
        match is_of_muon {
            true => &[MOMENTUM],
            false => &[FIRST, SECOND],
        }
    }

    /// The tensor whose name begins so.
    fn tensor(&self, kind: &str) -> &Tensor<1> {
        match self {
            Self::Moments(moments) if kind == FIRST => &moments[0],
            Self::Moments(moments) => &moments[1],
            Self::Momentum(momentum) => momentum,
        }
    }

    /// That of so many values before the first update.
    fn zeros(is_of_muon: bool, values: usize, device: &Device) -> Self {
        let zeros = || Tensor::<1>::zeros([values], device);
        match is_of_muon {
            true => Self::Momentum(Box::new(zeros())),
            false => Self::Moments(Box::new([zeros(), zeros()])),
        }
    }
}

impl Optimizer {
    /// An optimizer of what is trained of a model, as one rank of a team. Other parameters stay as they are, and take no
    /// memory for moments.
    pub fn new(config: &ModelConfig, muon: Muon, learned: Learned, team: &Team) -> Self {
        let ownership = match team.is_alone() {
            true => Ownership::default(),
            false => ownership(config, muon, &learned, team.layout(), team.rank()),
        };
        Self {
            steps: 0,
            moments: BTreeMap::new(),
            learned,
            groups: Groups::new(config, muon),
            team: team.clone(),
            ownership,
        }
    }

    /// What is trained.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// The ranks that train the model.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Which of them updates which values.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Updates every trained parameter with its gradient times `gradient_scale`, the clipping factor. AdamW updates tensors in
    /// place that are not shared. Gradients are those of this rank's own values, which the others are given afterwards.
    ///
    /// # Panics
    ///
    /// When `config.muon` is another one than in the steps before.
    #[must_use]
    pub fn step(
        &mut self,
        model: LanguageModel,
        gradients: GradientSum,
        gradient_scale: f64,
        learning_rate: f64,
        config: &OptimizerConfig,
    ) -> LanguageModel {
        self.steps += 1;
        let betas = [config.beta1, config.beta2];
        assert_eq!(
            self.groups.kind, config.muon,
            "the kind of the steps before"
        );
        let decay = learning_rate * config.weight_decay;
        let mut visitor = UpdateVisitor {
            groups: &self.groups,
            learned: &self.learned,
            team: &self.team,
            ownership: &self.ownership,
            gate_rate: config.gate_rate,
            adamw: AdamWUpdate {
                gradient_scale,
                betas,
                corrections: betas.map(|beta| 1.0 - beta.powf(self.steps as f64)),
                epsilon: config.epsilon,
                learning_rate,
                decay,
            },
            muon: MuonUpdate {
                gradient_scale,
                momentum: config.muon_momentum.unwrap_or_default(),
                learning_rate,
                decay,
                turns: Turns {
                    every: config.expert_interval,
                    offset: (self.steps - 1) as usize,
                },
            },
            moments: &mut self.moments,
            gradients,
        };
        map(model, &mut visitor)
    }

    /// Number of updates so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments of all values, as tensors for the first rank to write: each is put together of what the ranks keep when it
    /// is written. The others answer it with their [own](Self::own_moment) meanwhile.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        let parameters = self.moments.iter();
        let tensors = parameters.flat_map(|(path, Moments { shape, .. })| {
            let kinds = Kept::names(self.groups.muon.contains(path)).iter();
            kinds.map(move |kind| {
                let name = name(kind, path);
                NamedTensor::float(name.clone(), shape.as_slice(), move || {
                    self.moment(&name, path)
                })
            })
        });
        tensors.collect()
    }

    /// A moment of all values of a parameter.
    fn moment(&self, name: &str, path: &str) -> Vec<f32> {
        let Some(parts) = self.ownership.owners(path) else {
            return self.own_moment(name);
        };
        let mut whole = vec![0.0; self.moments[path].shape.iter().product()];
        for (slice, owners) in parts {
            let runs = owners.into_iter().map(|rank| match rank {
                0 => self.own_moment(name),
                _ => self.team.ask(rank, name),
            });
            slice.put(&runs.collect::<Vec<_>>().concat(), &mut whole);
        }
        whole
    }

    /// What this rank keeps under a name.
    pub fn own_moment(&self, name: &str) -> Vec<f32> {
        let (kind, path) = name.split_once('.').expect("a kind and a path");
        let kept = self.moments[path].kept.as_ref().expect("own values");
        kept.tensor(kind).to_data().iter::<f32>().collect()
    }

    /// Reads the moments of a [new](Self::new) optimizer after `steps` updates of a model.
    ///
    /// # Errors
    ///
    /// When a moment is missing, unexpected, or of another shape than its parameter.
    pub fn read(
        self,
        file: &TensorFile,
        steps: u64,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let mut parameters = LanguageModel::parameter_list(config);
        parameters.retain(|parameter| self.learned.includes(&parameter.path));
        let muon = self.groups.kind;
        let mut mismatch = Mismatch::default();
        let mut expected = BTreeSet::new();
        for parameter in &parameters {
            for kind in Kept::names(is_of_muon(parameter, muon)) {
                let name = name(kind, &parameter.path);
                mismatch.expect(&name, &parameter.shape, file.tensors().get(&name));
                expected.insert(name);
            }
        }
        for (name, info) in file.tensors() {
            if !expected.contains(name) {
                mismatch.superfluous(name, &info.shape);
            }
        }
        mismatch.check(file.path())?;

        let moments = parameters.into_iter().map(|parameter| {
            let path = &parameter.path;
            let elements = parameter.elements() as usize;
            let own = match self.ownership.of(path) {
                Some(owned) => owned.own_places(),
                None => std::iter::once(0..elements).collect(),
            };
            let moment = |kind: &str| -> Result<Tensor<1>, CheckpointError> {
                let mut values = Vec::new();
                for run in &own {
                    values.extend(file.read_values(&name(kind, path), run.clone())?);
                }
                let length = values.len();
                Ok(Tensor::from_data(TensorData::new(values, [length]), device))
            };
            let kept = match is_of_muon(&parameter, muon) {
                _ if own.is_empty() => None,
                true => Some(Kept::Momentum(Box::new(moment(MOMENTUM)?))),
                false => {
                    let moments = [moment(FIRST)?, moment(SECOND)?];
                    Some(Kept::Moments(Box::new(moments)))
                }
            };
            let ParameterInfo { path, shape, .. } = parameter;
            Ok((path, Moments { shape, kept }))
        });
        let moments = moments.collect::<Result<_, CheckpointError>>()?;
        Ok(Self {
            steps,
            moments,
            ..self
        })
    }
}

/// The name of a moment in its file.
fn name(kind: &str, path: &str) -> String {
    format!("{kind}.{path}")
}

/// Divides what is trained of a model among the ranks of a layout, so that each has about as many values of state.
pub(crate) fn ownership(
    config: &ModelConfig,
    muon: Muon,
    learned: &Learned,
    layout: TrainLayout,
    rank: usize,
) -> Ownership {
    let mut parameters = LanguageModel::parameter_list(config);
    parameters.retain(|parameter| learned.includes(&parameter.path));
    let updates = parameters.into_iter().map(|parameter| {
        let is_of_muon = is_of_muon(&parameter, muon);
        let update = Update {
            together: match is_of_muon {
                true => parameter.shape.iter().rev().take(2).product(),
                false => 1,
            },
            state: Kept::names(is_of_muon).len(),
        };
        (parameter, update)
    });
    Ownership::new(config, updates, layout, rank)
}

/// The factor that scales a gradient's norm down to `limit`; 1 if the norm does not exceed it, or if `limit` is 0.
pub fn clip_scale(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm > limit {
        limit / norm
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use firebox_model::testing::{moe, tiny};

    use super::*;

    #[test]
    fn norms_and_embeddings_do_not_decay() {
        let groups = Groups::new(&tiny(), Muon::None);
        for path in ["embedding", "norm.gamma", "blocks.1.attention_norm.gamma"] {
            assert!(!groups.decaying.contains(path), "{path}");
        }
        for path in [
            "head",
            "blocks.0.attention.query.weight",
            "blocks.1.feed_forward.experts.gate",
        ] {
            assert!(groups.decaying.contains(path), "{path}");
        }
        assert!(groups.muon.is_empty());
    }

    #[test]
    fn muon_is_for_the_matrices_within_blocks() {
        let mut config = tiny();
        moe(&mut config).experts.shared_d_ff = 5;
        let of = |muon| Groups::new(&config, muon).muon;
        // Four of attention and three of the shared experts, in both layers; and the stacks of the experts.
        let (dense, all) = (of(Muon::Dense), of(Muon::All));
        assert_eq!((dense.len(), all.len()), (14, 20));
        for path in [
            "blocks.0.attention.output.weight",
            "blocks.1.feed_forward.shared.down",
        ] {
            assert!(dense.contains(path), "{path}");
        }
        let mut of_experts = all.difference(&dense);
        assert!(of_experts.all(|path| path.contains(".experts.")));
    }

    #[test]
    fn clipping_only_shortens() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(4.0, 1.0), 0.25);
        assert_eq!(clip_scale(4.0, 0.0), 1.0);
    }
}
