//! The router: scores and selects experts, and computes their weights.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use crate::config::ModelConfig;
use crate::parameters::{Initializer, ParameterSource};
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::linear;

/// Softmax top-k router (Mixtral, arXiv 2401.04088, with the softmax over all experts first).
///
/// `p = softmax(x W)`; the k experts with the largest `p + bias` are selected; their weights are `p`, divided by its
/// sum over the selected experts if `normalize` is set.
#[derive(Module, Debug)]
pub struct Router {
    /// `[d_model, experts]`
    pub weight: Param<Tensor<2>>,
    /// Added to the probabilities for the selection only (DeepSeek, arXiv 2408.15664); not trained by gradients.
    /// `[experts]`; empty if bias balancing was never on.
    #[module(skip)]
    pub bias: Vec<f32>,
    per_token: usize,
    normalize: bool,
}

/// The output of a router for some tokens.
#[derive(Debug, Clone)]
pub struct RouterOutput {
    /// `[tokens, experts]`
    pub logits: Tensor<2>,
    /// Softmax of the logits, without the bias, `[tokens, experts]`.
    pub probabilities: Tensor<2>,
    /// Weights of the selected experts' outputs, `[tokens, per_token]`.
    pub weights: Tensor<2>,
    /// The assignment of tokens to experts.
    pub plan: DispatchPlan,
}

impl Router {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
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
                Initializer::Normal(config.initializer_range),
            )?,
            bias: Vec::new(),
            per_token: config.experts.per_token,
            normalize: config.router.normalize,
        })
    }

    /// Scores and selects experts, without a device-to-host read.
    ///
    /// # Shapes
    ///
    /// - `x`: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> RouterOutput {
        let logits = linear(x, self.weight.val());
        let probabilities = softmax(logits.clone(), 1);
        let plan = DispatchPlan::choose(&probabilities, &self.bias, self.per_token);
        let weights = self.normalized(probabilities.clone().gather(1, plan.chosen()));
        RouterOutput {
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
