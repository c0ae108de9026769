//! The experts: stacked SwiGLUs, and their product over rows sorted by expert.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::silu;

use crate::config::ModelConfig;
use crate::kernels::grouped_matmul;
use crate::parameters::{Initial, ParameterSource};

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

    /// Each expert works on its own rows, `offsets[e] .. offsets[e + 1]`.
    ///
    /// # Shapes
    ///
    /// - `rows`, output: `[rows, d_model]`
    pub fn forward(&self, rows: Tensor<2>, offsets: &[usize]) -> Tensor<2> {
        let gate = silu(grouped_matmul(rows.clone(), self.gate.val(), offsets));
        let up = grouped_matmul(rows, self.up.val(), offsets);
        grouped_matmul(gate * up, self.down.val(), offsets)
    }
}
