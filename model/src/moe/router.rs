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
    top_k: usize,
    normalize: bool,
}

/// The output of a router for some tokens.
#[derive(Debug, Clone)]
pub struct RouterOutput {
    /// `[tokens, experts]`
    pub logits: Tensor<2>,
    /// Softmax of the logits, without the bias, `[tokens, experts]`.
    pub probabilities: Tensor<2>,
    /// Weights of the selected experts' outputs, `[tokens, top_k]`.
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
            top_k: config.experts.top_k,
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
        let plan = DispatchPlan::choose(&probabilities, &self.bias, self.top_k);
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{ByHand, with_experts};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(
        one_of_eight_two_of_eight_and_five_of_eight,
        equal_scores_go_to_the_first
    );

    /// Three experts, two a token, of a d_model of 1.
    fn router(scores: &[f32], normalize: bool, device: &Device) -> Router {
        let mut config = with_experts(3, 2);
        config.d_model = 1;
        config.router.normalize = normalize;
        let values: &[(&str, &[f32])] = &[("weight", scores)];
        let Ok(router) = Router::new(&config, "router", &mut ByHand { device, values });
        router
    }

    fn chosen(choice: &RouterOutput) -> Vec<i64> {
        choice.plan.chosen().into_data().iter::<i64>().collect()
    }

    fn one_of_eight_two_of_eight_and_five_of_eight(device: Device) {
        let scores = [0.0, 2f32.ln(), 5f32.ln()];
        let x = || Tensor::<2>::ones([1, 1], &device);
        let choice = router(&scores, true, &device).forward(x());
        assert_close("logits", &values(choice.logits.clone()), &scores, 1e-6).unwrap();
        let probabilities = values(choice.probabilities.clone());
        assert_close("probabilities", &probabilities, &[0.125, 0.25, 0.625], 1e-6).unwrap();
        assert_eq!(chosen(&choice), [2, 1]);
        let weights = [5.0 / 7.0, 2.0 / 7.0];
        assert_close("weights", &values(choice.weights), &weights, 1e-6).unwrap();

        let choice = router(&scores, false, &device).forward(x());
        assert_close("as they are", &values(choice.weights), &[0.625, 0.25], 1e-6).unwrap();

        // The bias has a say in the choice, 1.125 before 0.625, and none in the weights.
        let mut biased = router(&scores, true, &device);
        biased.bias = vec![1.0, 0.0, 0.0];
        let choice = biased.forward(x());
        assert_eq!(chosen(&choice), [0, 2]);
        let weights = [1.0 / 6.0, 5.0 / 6.0];
        assert_close("biased", &values(choice.weights), &weights, 1e-6).unwrap();
    }

    fn equal_scores_go_to_the_first(device: Device) {
        let choice = router(&[0.0; 3], true, &device).forward(Tensor::ones([2, 1], &device));
        assert_eq!(chosen(&choice), [0, 1, 0, 1]);
        assert_close("weights", &values(choice.weights), &[0.5; 4], 1e-6).unwrap();
    }
}
