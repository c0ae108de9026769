//! The mixture of experts: router, dispatch plan and experts, each in a module of its own.

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

/// Routes each token to its top-k experts and returns the weighted sum of their outputs.
#[derive(Module, Debug)]
pub struct MixtureOfExperts {
    /// Scores and selects experts.
    pub router: Router,
    /// Stacked expert weights.
    pub experts: Experts,
    layer: usize,
}

/// The routing of some tokens in one layer. Auxiliary losses and statistics are functions of this; the model keeps no
/// state.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Index of the layer, from 0; dense layers count too.
    pub layer: usize,
    /// Router logits, `[tokens, experts]`.
    pub logits: Tensor<2>,
    /// Softmax of the logits, without the bias, `[tokens, experts]`.
    pub probabilities: Tensor<2>,
    /// The assignment of tokens to experts.
    pub plan: DispatchPlan,
}

impl MixtureOfExperts {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
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

    /// Dropless: all `tokens · per_token` assignments are computed, however unevenly they are distributed.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Routing) {
        let routed = self.router.forward(x.clone());
        let output = self.experts.forward(x, routed.weights, &routed.plan);
        (
            output,
            Routing {
                layer: self.layer,
                logits: routed.logits,
                probabilities: routed.probabilities,
                plan: routed.plan,
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
            let Ok(moe) = MixtureOfExperts::new(&config, 0, "moe", &mut source);
            let moe = moe.train();
            let x = wave([40, 8], 0.1, &autodiff).require_grad();
            let pass = || {
                let (output, routing) = moe.forward(x.clone());
                let load = routing.plan.load(None);
                drop((output.sum() + load.sum()).backward());
            };
            assert!(reads_nothing(&device, pass));
            let reading = || {
                let data = x.clone().inner().sum().into_data();
                assert_eq!(data.iter::<f32>().count(), 1);
            };
            assert!(!reads_nothing(&device, reading), "a read is detected");
        }
    }
}
