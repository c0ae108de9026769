//! OLMoE (arXiv 2409.02060): experts in every layer, queries and keys normed over all heads together.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, BIASES, EVERY_LAYER, EXPERTS, MIXTURE_FIELDS, NOTES, QK_NORM,
    SAMPLING,
};
use super::defaults::DEFAULTS;
use super::field::{Field, off, read};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use firebox_model::config::{FeedForwardName, QkNorm};

/// OLMoE.
pub const OLMOE: Family = Family {
    architecture: "OlmoeForCausalLM",
    model_type: "olmoe",
    qk_norm: QkNorm::Projection,
    qk_norm_switch: None,
    bias: Bias::AsConfigured,
    sinks: false,
    windows: Windows::None,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: false,
    feed_forward: FeedForwardName::Moe,
    normalize: Normalize::AsConfigured,
    router: RouterKind::Softmax,
    dense_layers: DenseLayers::None,
    vision: false,
    experts: &["num_experts"],
    d_ff: "intermediate_size",
    defaults: Defaults {
        vocab_size: 50_304,
        hidden_size: 2048,
        intermediate_size: 2048,
        num_hidden_layers: 16,
        num_attention_heads: 16,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        num_experts: 64,
        num_experts_per_tok: 8,
        router_aux_loss_coef: 0.01,
        ..DEFAULTS
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, MIXTURE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, QK_NORM, EXPERTS],
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    EVERY_LAYER,
    read("norm_topk_prob"),
    off("clip_qkv", "Firebox does not clip queries, keys and values"),
];
