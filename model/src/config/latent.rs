//! Attention whose keys and values are made of a latent.

use super::rules::{ConfigError, require, size};
use super::{AttentionBias, AttentionKind, ModelConfig, QkNorm};

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) in place of projections of keys and values.
///
/// Of a head's [`head_dim`](ModelConfig::head_dim) values in a query or key, [`rotary_dim`](ModelConfig::rotary_dim) are
/// rotated; those of the key are shared by all heads. The others are made of the latent, and so are the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentConfig {
    /// Width of the latent of keys and values.
    pub rank: usize,
    /// Width of the latent of queries; `None` where they are a projection of the residual stream.
    pub query_rank: Option<usize>,
    /// Values of a head's value.
    pub value_dim: usize,
    /// Whether neighbours among the rotated values turn together, instead of values that are half of them apart.
    pub interleaved: bool,
}

impl LatentConfig {
    /// Added to the mean square in the norms of the latents, whatever that of the other norms is.
    pub const NORM_EPSILON: f64 = 1e-6;

    /// Values that a cache keeps of a token in each layer: the latent, and the key that all heads share; an even number.
    pub fn cached(&self, rotary_dim: usize) -> usize {
        (self.rank + rotary_dim).next_multiple_of(2)
    }

    /// Checks every rule; `config` is that of the whole model, which has this attention.
    pub(super) fn validate(&self, config: &ModelConfig) -> Result<(), ConfigError> {
        size("latent.rank", self.rank)?;
        size("latent.query_rank", self.query_rank.unwrap_or(1))?;
        size("latent.value_dim", self.value_dim)?;
        let ModelConfig {
            heads,
            kv_heads,
            head_dim,
            rotary_dim,
            ..
        } = *config;
        require(
            kv_heads == heads,
            "kv_heads",
            kv_heads,
            format!(
                "must be heads = {heads} with latent attention, in which every head has keys of its own"
            ),
            "omit it",
        )?;
        require(
            rotary_dim < head_dim,
            "rotary_dim",
            rotary_dim,
            format!(
                "must be below head_dim = {head_dim} with latent attention: the other values of a key are made of the latent"
            ),
            "a third of head_dim is that of DeepSeek-V3",
        )?;
        let others = [
            ("qk_norm", config.qk_norm != QkNorm::None, "\"none\""),
            ("sinks", config.sinks, "false"),
            (
                "attention_bias",
                config.attention_bias == AttentionBias::Qkv,
                "\"none\" or \"all\"",
            ),
            (
                "attention",
                config
                    .layers
                    .iter()
                    .any(|layer| layer.attention != AttentionKind::Full),
                "\"full\" in every layer",
            ),
        ];
        for (key, is_set, allowed) in others {
            if is_set {
                return Err(ConfigError {
                    key,
                    value: None,
                    rule: format!("must be {allowed} with latent attention"),
                    hint: Some("remove it, or [model.latent]".to_owned()),
                });
            }
        }
        Ok(())
    }
}
