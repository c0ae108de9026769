//! AdamW with decoupled weight decay, and the clipping of the gradient's global norm.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Tensor, TensorData};
use firebox_model::checkpoint::{CheckpointError, Mismatch, NamedTensor, TensorFile};
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{MapParameter, map, shapes};

use crate::config::OptimizerConfig;
use crate::gradient::GradientSum;

/// How the moments are called in their file, before a parameter's path.
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

/// AdamW (arXiv 1711.05101, algorithm 2, with the bias correction of Adam, arXiv 1412.6980):
///
/// `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
/// `w ← (1 − η λ) w − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)`
///
/// Norm gains and embeddings do not decay: shrinking them does not make the function simpler.
#[derive(Debug, Default)]
pub struct AdamW {
    /// Updates so far (t).
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

#[derive(Debug)]
struct Moments {
    shape: Vec<usize>,
    first: Tensor<1>,
    second: Tensor<1>,
}

/// Whether a parameter decays.
fn decays(path: &str) -> bool {
    !(path.ends_with(".gamma") || path == "embedding")
}

impl AdamW {
    /// Updates every parameter with its gradient times `gradient_scale` (that of clipping).
    pub fn step(
        &mut self,
        model: LanguageModel,
        gradients: GradientSum,
        gradient_scale: f64,
        learning_rate: f64,
        config: &OptimizerConfig,
    ) -> LanguageModel {
        self.steps += 1;
        let correction = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        let mut update = Update {
            corrections: [correction(config.beta1), correction(config.beta2)],
            moments: &mut self.moments,
            gradients,
            gradient_scale,
            learning_rate,
            config,
        };
        map(model, &mut update)
    }

    /// Number of updates so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments, to be written.
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

    /// The optimizer as it was after `steps` updates of `model`, its moments read from a file.
    ///
    /// # Errors
    ///
    /// When a moment is missing, superfluous or of another shape.
    pub fn read(
        file: &TensorFile,
        steps: u64,
        model: &LanguageModel,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let shapes = shapes(model.config());
        let name = |kind: &str, path: &str| format!("{kind}.{path}");
        let mut mismatch = Mismatch::default();
        let mut expected = BTreeSet::new();
        for (path, shape) in &shapes {
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

        let moment = |kind: &str, path: &str| {
            let values = file.read(&name(kind, path))?;
            let length = values.len();
            Ok(Tensor::from_data(TensorData::new(values, [length]), device))
        };
        let moments = shapes.into_iter().map(|(path, shape)| {
            let (first, second) = (moment(FIRST, &path)?, moment(SECOND, &path)?);
            let moments = Moments {
                shape,
                first,
                second,
            };
            Ok((path, moments))
        });
        let moments = moments.collect::<Result<_, CheckpointError>>()?;
        Ok(Self { steps, moments })
    }
}

struct Update<'a> {
    corrections: [f64; 2],
    moments: &'a mut BTreeMap<String, Moments>,
    gradients: GradientSum,
    gradient_scale: f64,
    learning_rate: f64,
    config: &'a OptimizerConfig,
}

impl MapParameter for Update<'_> {
    fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
        let shape = value.dims();
        let weights = value.inner();
        let elements = weights.shape().num_elements();
        let weights = weights.reshape([elements]);
        let zeros = || Tensor::<1>::zeros([elements], &weights.device());
        let gradient = match self.gradients.take(path) {
            Some(gradient) if self.gradient_scale != 1.0 => {
                gradient.mul_scalar(self.gradient_scale)
            }
            Some(gradient) => gradient,
            None => zeros(),
        };
        let OptimizerConfig {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            ..
        } = *self.config;
        let (first, second) = match self.moments.remove(path) {
            Some(moments) => (moments.first, moments.second),
            None => (zeros(), zeros()),
        };
        let first = first.mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
        let second = second.mul_scalar(beta2) + gradient.square().mul_scalar(1.0 - beta2);

        let [first_correction, second_correction] = self.corrections;
        let root = second
            .clone()
            .div_scalar(second_correction)
            .sqrt()
            .add_scalar(epsilon);
        let change = first
            .clone()
            .div(root)
            .mul_scalar(self.learning_rate / first_correction);
        let decay = if decays(path) {
            self.learning_rate * weight_decay
        } else {
            0.0
        };
        let kept = if decay > 0.0 {
            weights.mul_scalar(1.0 - decay)
        } else {
            weights
        };
        self.moments.insert(
            path.to_owned(),
            Moments {
                shape: shape.to_vec(),
                first,
                second,
            },
        );
        Tensor::from_inner((kept - change).reshape(shape))
    }
}

/// The factor that brings a gradient's norm down to `limit`; 1 when it is no longer, or when `limit` is 0.
pub fn clip_scale(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm > limit {
        limit / norm
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_embeddings_do_not_decay() {
        for path in ["embedding", "norm.gamma", "blocks.3.attention_norm.gamma"] {
            assert!(!decays(path), "{path}");
        }
        for path in [
            "head",
            "blocks.0.attention.query",
            "blocks.1.feed_forward.experts.gate",
        ] {
            assert!(decays(path), "{path}");
        }
    }

    #[test]
    fn clipping_only_shortens() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(4.0, 1.0), 0.25);
        assert_eq!(clip_scale(4.0, 0.0), 1.0);
    }
}
