//! Qwen3-MoE (arXiv 2505.09388): the queries and keys of each head normed, single layers dense.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, EXPERTS, MIXTURE_FIELDS, NOTES, QK_NORM, SAMPLING,
    WINDOW_FIELDS,
};
use super::defaults::DEFAULTS;
use super::field::{Field, neutral, read};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use firebox_model::config::{FeedForwardName, QkNorm};

/// Qwen3-MoE.
pub const QWEN3_MOE: Family = Family {
    architecture: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    qk_norm: QkNorm::Head,
    qk_norm_switch: None,
    bias: Bias::AsConfigured,
    sinks: false,
    windows: Windows::All,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: false,
    feed_forward: FeedForwardName::Moe,
    normalize: Normalize::AsConfigured,
    router: RouterKind::Softmax,
    dense_layers: DenseLayers::Any,
    vision: false,
    // Older and newer versions of `transformers` look for one of the two.
    experts: &["num_experts", "num_local_experts"],
    d_ff: "moe_intermediate_size",
    defaults: Defaults {
        vocab_size: 151_936,
        hidden_size: 2048,
        intermediate_size: 6144,
        moe_intermediate_size: 768,
        num_hidden_layers: 24,
        num_key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        num_experts: 128,
        num_experts_per_tok: 8,
        router_aux_loss_coef: 0.001,
        sliding_window: Some(4096),
        ..DEFAULTS
    },
    fields: &[
        NOTES,
        SAMPLING,
        BACKBONE_FIELDS,
        MIXTURE_FIELDS,
        WINDOW_FIELDS,
        FIELDS,
    ],
    rules: &[BACKBONE, BIASES, QK_NORM, DENSE, EXPERTS],
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    read("decoder_sparse_step"),
    read("mlp_only_layers"),
    read("moe_intermediate_size"),
    read("norm_topk_prob"),
    // Of Qwen3, and not of this family.
    neutral("max_window_layers"),
];
