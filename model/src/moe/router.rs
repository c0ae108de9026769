//! The router: scores, the choice of experts, and their weights.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use crate::config::ModelConfig;
use crate::parameters::{Initial, ParameterSource};
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::linear;

/// Softmax top-k router (Mixtral, arXiv 2401.04088, with the softmax over all experts first).
///
/// `p = softmax(x W)`; the k experts with the largest `p + bias` are chosen; their weights are `p`,
/// divided by its sum over the chosen ones when `normalize` is set.
#[derive(Module, Debug)]
pub struct Router {
    /// `[d_model, experts]`
    pub weight: Param<Tensor<2>>,
    /// Added to the scores for the choice alone (DeepSeek, arXiv 2408.15664); not trained by gradients.
    /// `[experts]`; empty when bias balancing was never on.
    #[module(skip)]
    pub bias: Vec<f32>,
    per_token: usize,
    normalize: bool,
}

/// What a router decides for some tokens.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Scores before the softmax, `[tokens, experts]`.
    pub logits: Tensor<2>,
    /// `[tokens, experts]`
    pub probabilities: Tensor<2>,
    /// Factor of each chosen expert's answer, `[tokens, per_token]`.
    pub weights: Tensor<2>,
    /// Which row goes to which expert.
    pub plan: DispatchPlan,
}

impl Router {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// Those of the source.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let shape = [config.d_model, config.experts.count];
        Ok(Self {
            weight: source.parameter(
                &format!("{path}.weight"),
                shape,
                Initial::Normal(config.initializer_range),
            )?,
            bias: Vec::new(),
            per_token: config.experts.per_token,
            normalize: config.router.normalize,
        })
    }

    /// Chooses experts, without a word to the host where the tensors lie elsewhere.
    ///
    /// # Shapes
    ///
    /// - `x`: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> Choice {
        let logits = linear(x, self.weight.val());
        let probabilities = softmax(logits.clone(), 1);
        let plan = DispatchPlan::choose(&probabilities, &self.bias, self.per_token);
        let weights = self.normalized(probabilities.clone().gather(1, plan.chosen()));
        Choice {
            logits,
            probabilities,
            weights,
            plan,
        }
    }

    fn normalized(&self, weights: Tensor<2>) -> Tensor<2> {
        if !self.normalize {
            return weights;
        }
        let sum = weights.clone().sum_dim(1);
        weights / sum
    }
}
