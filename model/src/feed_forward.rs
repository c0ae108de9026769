//! The feed-forward of a layer: dense, or a mixture of experts.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::moe::{MixtureOfExperts, Routing};
use crate::parameters::{Initializer, ParameterSource};
use firebox_kernels::swiglu;

/// SwiGLU: `(silu(x W_gate) ⊙ x W_up) W_down` (arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct DenseFeedForward {
    /// `[d_model, d_ff]`
    pub gate: Param<Tensor<2>>,
    /// `[d_model, d_ff]`
    pub up: Param<Tensor<2>>,
    /// `[d_ff, d_model]`
    pub down: Param<Tensor<2>>,
}

impl DenseFeedForward {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        d_ff: usize,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let d_model = config.d_model;
        let initializer = Initializer::Normal(config.initializer_range);
        Ok(Self {
            gate: source.parameter(&format!("{path}.gate"), [d_model, d_ff], initializer)?,
            up: source.parameter(&format!("{path}.up"), [d_model, d_ff], initializer)?,
            down: source.parameter(
                &format!("{path}.down"),
                [d_ff, d_model],
                Initializer::Normal(config.residual_initializer_range()),
            )?,
        })
    }

    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        swiglu(x, self.gate.val(), self.up.val(), self.down.val())
    }
}

/// The feed-forward of a layer, as configured.
#[derive(Module, Debug)]
pub enum FeedForward {
    /// Each token is routed to its top-k experts.
    Moe(MixtureOfExperts),
    /// One SwiGLU for all tokens.
    Dense(DenseFeedForward),
}

impl FeedForward {
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
        Ok(match config.dense_d_ff(layer) {
            None => Self::Moe(MixtureOfExperts::new(config, layer, path, source)?),
            Some(d_ff) => Self::Dense(DenseFeedForward::new(config, d_ff, path, source)?),
        })
    }

    /// Returns the output, and the routing of an MoE layer.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Option<Routing>) {
        match self {
            Self::Moe(moe) => {
                let (output, routing) = moe.forward(x);
                (output, Some(routing))
            }
            Self::Dense(dense) => (dense.forward(x), None),
        }
    }
}
