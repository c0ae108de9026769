//! RMSNorm with a gain from a [`ParameterSource`].

use burn::nn::RmsNorm;

use crate::config::ModelConfig;
use crate::parameters::{Initial, ParameterSource};

/// `x / √(mean(x²) + ε) ⊙ γ` over the last dimension, of `width` values (arXiv 1910.07467, eq. 4); `γ` is
/// taken from `source`, under `path`.
///
/// # Errors
///
/// Those of the source.
pub(crate) fn norm<S: ParameterSource>(
    config: &ModelConfig,
    width: usize,
    path: &str,
    source: &mut S,
) -> Result<RmsNorm, S::Error> {
    Ok(RmsNorm {
        gamma: source.parameter(&format!("{path}.gamma"), [width], Initial::Ones)?,
        epsilon: config.norm_epsilon,
    })
}
