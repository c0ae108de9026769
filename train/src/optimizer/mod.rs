//! The optimizers, AdamW with decoupled weight decay and Muon, and gradient clipping by global norm.

mod muon;

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Tensor, TensorData};
use firebox_checkpoint::{CheckpointError, Mismatch, NamedTensor, TensorFile};
use firebox_kernels::{AdamWUpdate, adamw};
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{MapParameter, ParameterInfo, Role, map};

use crate::config::{Muon, OptimizerConfig};
use crate::gradient::GradientSum;
use crate::learned::Learned;
pub use muon::{MuonUpdate, muon, orthogonal};

/// Prefixes of the moments' names in their file; a parameter's path follows.
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";
const MOMENTUM: &str = "momentum";

/// The optimizer of a run with its state: AdamW ([`adamw`]), or of the matrices that `optimizer.muon` names [`muon()`].
///
/// Weight decay does not apply to norm gains, biases, sinks and embeddings: shrinking them does not simplify the function.
#[derive(Debug, Default)]
pub struct Optimizer {
    /// Updates so far (t).
    steps: u64,
    moments: BTreeMap<String, Moments>,
    /// What is trained.
    learned: Learned,
    /// Parameters that are updated in other ways than the rest; known from the first step on.
    groups: Option<Groups>,
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
    shape: Vec<usize>,
    kept: Kept,
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

    /// Its tensors with what their names begin with.
    fn named(&self) -> Vec<(&'static str, &Tensor<1>)> {
        match self {
            Self::Moments(moments) => vec![(FIRST, &moments[0]), (SECOND, &moments[1])],
            Self::Momentum(momentum) => vec![(MOMENTUM, momentum)],
        }
    }
}

impl Optimizer {
    /// An optimizer of what is trained. Other parameters stay as they are, and take no memory for moments.
    pub fn of(learned: Learned) -> Self {
        Self {
            learned,
            ..Self::default()
        }
    }

    /// What is trained.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Updates every trained parameter with its gradient times `gradient_scale`, the clipping factor. AdamW updates tensors in
    /// place that are not shared.
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
        let groups = self
            .groups
            .get_or_insert_with(|| Groups::new(model.config(), config.muon));
        assert_eq!(groups.kind, config.muon, "the kind of the steps before");
        let decay = learning_rate * config.weight_decay;
        let mut visitor = UpdateVisitor {
            groups,
            learned: &self.learned,
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
                precision: model.precision(),
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

    /// The moments, as tensors to write.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        let parameters = self.moments.iter();
        let tensors = parameters.flat_map(|(path, Moments { shape, kept })| {
            kept.named().into_iter().map(move |(kind, tensor)| {
                let tensor = tensor.clone();
                NamedTensor::float(format!("{kind}.{path}"), shape.as_slice(), move || {
                    tensor.to_data().iter::<f32>().collect()
                })
            })
        });
        tensors.collect()
    }

    /// Reads the moments of an optimizer after `steps` updates of `model`, some of them by Muon.
    ///
    /// # Errors
    ///
    /// When a moment is missing, unexpected, or of another shape than its parameter.
    pub fn read(
        file: &TensorFile,
        steps: u64,
        learned: Learned,
        muon: Muon,
        model: &LanguageModel,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let mut parameters = LanguageModel::parameter_list(model.config());
        parameters.retain(|parameter| learned.includes(&parameter.path));
        let name = |kind: &str, path: &str| format!("{kind}.{path}");
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

        let moment = |kind: &str, path: &str| -> Result<Tensor<1>, CheckpointError> {
            let values = file.read(&name(kind, path))?;
            let length = values.len();
            Ok(Tensor::from_data(TensorData::new(values, [length]), device))
        };
        let moments = parameters.into_iter().map(|parameter| {
            let kept = match is_of_muon(&parameter, muon) {
                true => Kept::Momentum(Box::new(moment(MOMENTUM, &parameter.path)?)),
                false => {
                    let first = moment(FIRST, &parameter.path)?;
                    Kept::Moments(Box::new([first, moment(SECOND, &parameter.path)?]))
                }
            };
            let ParameterInfo { path, shape, .. } = parameter;
            Ok((path, Moments { shape, kept }))
        });
        let moments = moments.collect::<Result<_, CheckpointError>>()?;
        Ok(Self {
            steps,
            moments,
            learned,
            groups: None,
        })
    }
}

struct UpdateVisitor<'a> {
    /// The updates of parameters with weight decay.
    adamw: AdamWUpdate,
    muon: MuonUpdate,
    moments: &'a mut BTreeMap<String, Moments>,
    groups: &'a Groups,
    learned: &'a Learned,
    /// Factor of the learning rate of gates.
    gate_rate: f64,
    gradients: GradientSum,
}

impl MapParameter for UpdateVisitor<'_> {
    fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
        if !self.learned.includes(path) {
            return value;
        }
        let shape = value.dims();
        let weights = value.inner();
        let device = weights.device();
        let elements: usize = shape.iter().product();
        let zeros = || Tensor::<1>::zeros([elements], &device);
        let gradient = self.gradients.take(path).unwrap_or_else(zeros);
        let kept = match self.moments.remove(path) {
            Some(moments) => moments.kept,
            None if self.groups.muon.contains(path) => Kept::Momentum(Box::new(zeros())),
            None => Kept::Moments(Box::new([zeros(), zeros()])),
        };
        let (weights, kept) = match kept {
            Kept::Momentum(momentum) => {
                let (weights, momentum) = muon(weights, gradient, *momentum, &self.muon);
                (weights, Kept::Momentum(Box::new(momentum)))
            }
            Kept::Moments(moments) => {
                let mut update = self.adamw;
                if !self.groups.decaying.contains(path) {
                    update.decay = 0.0;
                }
                if self.groups.gates.contains(path) {
                    update.learning_rate *= self.gate_rate;
                }
                let (weights, moments) = adamw(weights, gradient, *moments, &update);
                (weights, Kept::Moments(Box::new(moments)))
            }
        };
        let shape = shape.to_vec();
        self.moments
            .insert(path.to_owned(), Moments { shape, kept });
        Tensor::from_inner(weights)
    }
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
