//! The mixture of experts: a router, a dispatch plan, and the experts, each a part by itself.

pub mod balance;
pub mod dispatch;
pub mod experts;
pub mod router;
pub mod stats;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::parameters::ParameterSource;
use dispatch::DispatchPlan;
use experts::Experts;
use router::Router;

/// Gives each token to `per_token` of the experts, and adds up what they answer by the router's weights.
#[derive(Module, Debug)]
pub struct MixtureOfExperts {
    /// Chooses.
    pub router: Router,
    /// Work.
    pub experts: Experts,
    layer: usize,
}

/// What the router did with some tokens in one layer. Auxiliary losses and statistics are functions of
/// this; nothing is kept in the model.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Number of the layer, from 0; dense layers count too.
    pub layer: usize,
    /// Scores before the softmax, `[tokens, experts]`.
    pub logits: Tensor<2>,
    /// Softmax over all experts, `[tokens, experts]`, without any bias.
    pub probabilities: Tensor<2>,
    /// Which row goes to which expert.
    pub plan: DispatchPlan,
}

impl MixtureOfExperts {
    /// Takes the parameters of a layer's mixture from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// Those of the source.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        layer: usize,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        Ok(Self {
            router: Router::new(config, &format!("{path}.router"), source)?,
            experts: Experts::new(config, &format!("{path}.experts"), source)?,
            layer,
        })
    }

    /// Dropless: each of the `tokens · per_token` assignments is computed, whatever the load.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Routing) {
        let choice = self.router.forward(x.clone());
        let output = self.experts.forward(x, choice.weights, &choice.plan);
        (
            output,
            Routing {
                layer: self.layer,
                logits: choice.logits,
                probabilities: choice.probabilities,
                plan: choice.plan,
            },
        )
    }
}
