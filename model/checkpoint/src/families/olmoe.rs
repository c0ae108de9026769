//! OLMoE (arXiv 2409.02060): experts in every layer, queries and keys normed over all heads together.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, EVERY_LAYER, EXPERTS, MIXTURE_FIELDS, NOTES, QK_NORM,
};
use super::field::{Field, off, read};
use super::{Family, Normalize};
use firebox_model::config::{FeedForwardKind, QkNorm};

/// OLMoE.
pub const OLMOE: Family = Family {
    architecture: "OlmoeForCausalLM",
    model_type: "olmoe",
    qk_norm: QkNorm::Projection,
    feed_forward: FeedForwardKind::Moe,
    normalize: Normalize::AsConfigured,
    dense_layers: false,
    experts: &["num_experts"],
    d_ff: "intermediate_size",
    head_dim: None,
    rope_theta: 10_000.0,
    kv_heads: None,
    fields: &[NOTES, BACKBONE_FIELDS, MIXTURE_FIELDS, FIELDS],
    rules: &[BACKBONE, QK_NORM, EXPERTS],
};

const FIELDS: &[Field] = &[
    EVERY_LAYER,
    read("norm_topk_prob"),
    off("clip_qkv", "Firebox does not clip queries, keys and values"),
];
