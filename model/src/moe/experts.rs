//! The experts: SwiGLUs with stacked weights.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::parameters::{Initializer, ParameterSource};
use firebox_kernels::dispatch::DispatchPlan;

/// E SwiGLUs (see [`DenseFeedForward`](crate::feed_forward::DenseFeedForward)) with stacked weights.
#[derive(Module, Debug)]
pub struct Experts {
    /// `[experts, d_model, d_ff]`
    pub gate: Param<Tensor<3>>,
    /// `[experts, d_model, d_ff]`
    pub up: Param<Tensor<3>>,
    /// `[experts, d_ff, d_model]`
    pub down: Param<Tensor<3>>,
}

impl Experts {
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
        let (experts, d_model, d_ff) = (config.experts.count, config.d_model, config.experts.d_ff);
        let initializer = Initializer::Normal(config.initializer_range);
        Ok(Self {
            gate: source.parameter(
                &format!("{path}.gate"),
                [experts, d_model, d_ff],
                initializer,
            )?,
            up: source.parameter(&format!("{path}.up"), [experts, d_model, d_ff], initializer)?,
            down: source.parameter(
                &format!("{path}.down"),
                [experts, d_ff, d_model],
                Initializer::Normal(config.residual_initializer_range()),
            )?,
        })
    }

    /// The weighted sum of the outputs of each token's experts.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    /// - `weights`: `[tokens, per_token]`
    pub fn forward(&self, x: Tensor<2>, weights: Tensor<2>, plan: &DispatchPlan) -> Tensor<2> {
        let (gate, up, down) = (self.gate.val(), self.up.val(), self.down.val());
        firebox_kernels::experts(x, weights, gate, up, down, plan)
    }
}
