//! AdamW with decoupled weight decay, and gradient clipping by global norm.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Tensor, TensorData};
use firebox_checkpoint::{CheckpointError, Mismatch, NamedTensor, TensorFile};
use firebox_kernels::{AdamWUpdate, adamw};
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{MapParameter, ParameterInfo, Role, map};

use crate::config::OptimizerConfig;
use crate::gradient::GradientSum;
use crate::learned::Learned;

/// Prefixes of the moments' names in their file; a parameter's path follows.
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

/// AdamW with its state; [`adamw`] documents the formula.
///
/// Weight decay does not apply to norm gains, biases, sinks and embeddings: shrinking them does not simplify the function.
#[derive(Debug, Default)]
pub struct AdamW {
    /// Updates so far (t).
    steps: u64,
    moments: BTreeMap<String, Moments>,
    /// What is trained.
    learned: Learned,
    /// Paths of the parameters with weight decay, and of the gates; known from the first step on.
    groups: Option<Groups>,
}

/// Parameters that are updated in other ways than the rest.
#[derive(Debug)]
struct Groups {
    decaying: BTreeSet<String>,
    gates: BTreeSet<String>,
}

/// The gates of a model that sees pictures.
fn gates(config: &ModelConfig) -> BTreeSet<String> {
    let parameters = LanguageModel::parameter_list(config).into_iter();
    let gates = parameters.filter(|parameter| parameter.role == Role::Gate);
    gates.map(|parameter| parameter.path).collect()
}

#[derive(Debug)]
struct Moments {
    shape: Vec<usize>,
    first: Tensor<1>,
    second: Tensor<1>,
}

/// The parameters that weight decay applies to.
fn decaying(config: &ModelConfig) -> BTreeSet<String> {
    let parameters = LanguageModel::parameter_list(config).into_iter();
    parameters
        .filter(|parameter| {
            let role = parameter.role;
            !matches!(
                role,
                Role::Norm
                    | Role::Bias
                    | Role::RouterBias
                    | Role::Sinks
                    | Role::Embedding
                    | Role::Gate
                    | Role::TowerEmbedding
            )
        })
        .map(|parameter| parameter.path)
        .collect()
}

impl AdamW {
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

    /// Updates every trained parameter with its gradient times `gradient_scale`, the clipping factor. The update is in place
    /// for tensors that are not shared.
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
        let groups = self.groups.get_or_insert_with(|| Groups {
            decaying: decaying(model.config()),
            gates: gates(model.config()),
        });
        let mut visitor = UpdateVisitor {
            groups,
            learned: &self.learned,
            gate_rate: config.gate_rate,
            update: AdamWUpdate {
                gradient_scale,
                betas,
                corrections: betas.map(|beta| 1.0 - beta.powf(self.steps as f64)),
                epsilon: config.epsilon,
                learning_rate,
                decay: learning_rate * config.weight_decay,
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
        let named = |kind: &str, path: &str, shape: &[usize], tensor: &Tensor<1>| {
            let tensor = tensor.clone();
            NamedTensor::float(format!("{kind}.{path}"), shape, move || {
                tensor.to_data().iter::<f32>().collect()
            })
        };
        let moments = self.moments.iter();
        moments
            .flat_map(
                |(
                    path,
                    Moments {
                        shape,
                        first,
                        second,
                    },
                )| {
                    [
                        named(FIRST, path, shape, first),
                        named(SECOND, path, shape, second),
                    ]
                },
            )
            .collect()
    }

    /// Reads the moments of an optimizer after `steps` updates of `model`.
    ///
    /// # Errors
    ///
    /// When a moment is missing, unexpected, or of another shape than its parameter.
    pub fn read(
        file: &TensorFile,
        steps: u64,
        learned: Learned,
        model: &LanguageModel,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let mut parameters = LanguageModel::parameter_list(model.config());
        parameters.retain(|parameter| learned.includes(&parameter.path));
        let name = |kind: &str, path: &str| format!("{kind}.{path}");
        let mut mismatch = Mismatch::default();
        let mut expected = BTreeSet::new();
        for ParameterInfo { path, shape, .. } in &parameters {
            for kind in [FIRST, SECOND] {
                let name = name(kind, path);
                mismatch.expect(&name, shape, file.tensors().get(&name));
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
            let ParameterInfo { path, shape, .. } = parameter;
            let (first, second) = (moment(FIRST, &path)?, moment(SECOND, &path)?);
            let moments = Moments {
                shape,
                first,
                second,
            };
            Ok((path, moments))
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
    /// The update of parameters with weight decay.
    update: AdamWUpdate,
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
        let moments = match self.moments.remove(path) {
            Some(moments) => [moments.first, moments.second],
            None => [zeros(), zeros()],
        };
        let mut update = self.update;
        if !self.groups.decaying.contains(path) {
            update.decay = 0.0;
        }
        if self.groups.gates.contains(path) {
            update.learning_rate *= self.gate_rate;
        }
        let (weights, [first, second]) = adamw(weights, gradient, moments, &update);
        let moments = Moments {
            shape: shape.to_vec(),
            first,
            second,
        };
        self.moments.insert(path.to_owned(), moments);
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
    use firebox_model::testing::tiny;

    use super::*;

    #[test]
    fn norms_and_embeddings_do_not_decay() {
        let decaying = decaying(&tiny());
        for path in ["embedding", "norm.gamma", "blocks.1.attention_norm.gamma"] {
            assert!(!decaying.contains(path), "{path}");
        }
        for path in [
            "head",
            "blocks.0.attention.query.weight",
            "blocks.1.feed_forward.experts.gate",
        ] {
            assert!(decaying.contains(path), "{path}");
        }
    }

    #[test]
    fn clipping_only_shortens() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(4.0, 1.0), 0.25);
        assert_eq!(clip_scale(4.0, 0.0), 1.0);
    }
}
