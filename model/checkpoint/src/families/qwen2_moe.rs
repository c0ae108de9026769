//! Qwen2-MoE, which is Qwen1.5-MoE too (arXiv 2407.10671): a shared expert behind a learned gate, weights that are not
//! renormalized, biases of queries, keys and values, and single layers dense.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, EXPERTS, GATED_SHARED, MIXTURE_FIELDS, NO_BIASES,
    NOTES, SAMPLING,
};
use super::defaults::DEFAULTS;
use super::field::{Field, read};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use firebox_model::config::{FeedForwardName, QkNorm};

/// Qwen2-MoE.
pub const QWEN2_MOE: Family = Family {
    architecture: "Qwen2MoeForCausalLM",
    model_type: "qwen2_moe",
    qk_norm: QkNorm::None,
    qk_norm_switch: None,
    bias: Bias::QkvBias,
    sinks: false,
    windows: Windows::EvenBelow,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: false,
    feed_forward: FeedForwardName::Moe,
    normalize: Normalize::AsConfigured,
    router: RouterKind::Qwen2Moe,
    dense_layers: DenseLayers::Any,
    vision: false,
    experts: &["num_experts"],
    d_ff: "moe_intermediate_size",
    defaults: Defaults {
        vocab_size: 151_936,
        hidden_size: 2048,
        intermediate_size: 5632,
        moe_intermediate_size: 1408,
        shared_expert_intermediate_size: 5632,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        num_key_value_heads: Some(16),
        max_position_embeddings: 32_768,
        num_experts: 60,
        num_experts_per_tok: 4,
        router_aux_loss_coef: 0.001,
        attention_bias: true,
        sliding_window: Some(4096),
        max_window_layers: 28,
        ..DEFAULTS
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, MIXTURE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, DENSE, EXPERTS, GATED_SHARED],
};

const FIELDS: &[Field] = &[
    NO_BIASES,
    read("decoder_sparse_step"),
    read("max_window_layers"),
    read("mlp_only_layers"),
    read("moe_intermediate_size"),
    read("norm_topk_prob"),
    read("qkv_bias"),
    read("shared_expert_intermediate_size"),
    read("use_sliding_window"),
];
