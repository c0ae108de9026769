//! The experts: stacked SwiGLUs.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::parameters::{Initial, ParameterSource};
use firebox_kernels::dispatch::DispatchPlan;

/// E SwiGLUs (see [`DenseFeedForward`](crate::feed_forward::DenseFeedForward)), stacked.
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
    /// Those of the source.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let (experts, d_model, d_ff) = (config.experts.count, config.d_model, config.experts.d_ff);
        let initial = Initial::Normal(config.initializer_range);
        Ok(Self {
            gate: source.parameter(&format!("{path}.gate"), [experts, d_model, d_ff], initial)?,
            up: source.parameter(&format!("{path}.up"), [experts, d_model, d_ff], initial)?,
            down: source.parameter(
                &format!("{path}.down"),
                [experts, d_ff, d_model],
                Initial::Normal(config.residual_initializer_range()),
            )?,
        })
    }

    /// Each token's sum of what its experts answer, by the router's weights.
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
