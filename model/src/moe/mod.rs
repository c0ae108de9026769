//! The mixture of experts: a router, a dispatch plan, and the experts, each a part by itself.

pub mod balance;
pub mod experts;
pub mod router;
pub mod stats;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::parameters::ParameterSource;
use experts::Experts;
use firebox_kernels::dispatch::DispatchPlan;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BalanceKind, ExpertsConfig, FeedForwardKind, QkNorm, RouterConfig};
    use crate::parameters::RandomParameters;
    use firebox_runtime::device::is_host;
    use firebox_runtime::testing::{devices, reads_nothing, wave};

    fn config() -> ModelConfig {
        ModelConfig {
            vocabulary: 16,
            layers: 1,
            d_model: 8,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            context: 64,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
            tied_embeddings: false,
            initializer_range: 0.3,
            qk_norm: QkNorm::None,
            feed_forward: FeedForwardKind::Moe,
            dense: None,
            experts: ExpertsConfig {
                count: 4,
                per_token: 2,
                d_ff: 8,
            },
            router: RouterConfig {
                normalize: true,
                balance: BalanceKind::PerLayer,
                balance_coefficient: 0.01,
                z_coefficient: 0.0,
                bias_update_rate: 0.0,
            },
        }
    }

    #[test]
    fn nothing_is_read_back_in_the_forward_and_backward_pass() {
        let config = config();
        for device in devices().into_iter().filter(|device| !is_host(device)) {
            let autodiff = device.clone().autodiff();
            let mut source = RandomParameters {
                seed: 3,
                device: &autodiff,
            };
            let Ok(mixture) = MixtureOfExperts::new(&config, 0, "mixture", &mut source);
            let mixture = mixture.train();
            let x = wave([40, 8], 0.1, &autodiff).require_grad();
            let pass = || {
                let (output, routing) = mixture.forward(x.clone());
                let load = routing.plan.load(None);
                drop((output.sum() + load.sum()).backward());
            };
            assert!(reads_nothing(&device, pass));
            let reading = || {
                let data = x.clone().inner().sum().into_data();
                assert_eq!(data.iter::<f32>().count(), 1);
            };
            assert!(!reads_nothing(&device, reading), "a reading is refused");
        }
    }
}
