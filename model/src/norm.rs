//! RMSNorm with a gain from a [`ParameterSource`].

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::parameters::{Initializer, ParameterSource};
use firebox_kernels::rms_norm;

/// `x / √(mean(x²) + ε) ⊙ γ` over the last dimension (arXiv 1910.07467, eq. 4).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// γ, `[width]`
    pub gamma: Param<Tensor<1>>,
    /// ε
    pub epsilon: f64,
}

impl RmsNorm {
    /// A norm of `width` values; `γ` is taken from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        width: usize,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        Ok(Self {
            gamma: source.parameter(&format!("{path}.gamma"), [width], Initializer::Ones)?,
            epsilon: config.norm_epsilon,
        })
    }

    /// # Shapes
    ///
    /// - `x`, output: `[…, width]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        rms_norm(x, self.gamma.val(), self.epsilon)
    }
}
