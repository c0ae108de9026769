//! Qwen3 (arXiv 2505.09388): dense, the queries and keys of each head normed.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, NOTES, QK_NORM, SAMPLING, WINDOW_FIELDS,
};
use super::defaults::DEFAULTS;
use super::field::{Field, read};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use firebox_model::config::{FeedForwardName, QkNorm};

/// Qwen3.
pub const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    qk_norm: QkNorm::Head,
    qk_norm_switch: None,
    bias: Bias::AsConfigured,
    sinks: false,
    windows: Windows::ByLayer,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: false,
    feed_forward: FeedForwardName::Dense,
    normalize: Normalize::Always,
    router: RouterKind::Softmax,
    dense_layers: DenseLayers::None,
    vision: false,
    experts: &[],
    d_ff: "intermediate_size",
    defaults: Defaults {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        num_key_value_heads: Some(32),
        head_dim: Some(128),
        max_position_embeddings: 32_768,
        sliding_window: Some(4096),
        max_window_layers: 28,
        ..DEFAULTS
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, WINDOW_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, QK_NORM, DENSE],
};

const FIELDS: &[Field] = &[read("attention_bias"), read("max_window_layers")];
