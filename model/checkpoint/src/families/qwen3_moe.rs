//! Qwen3-MoE (arXiv 2505.09388): the queries and keys of each head normed, single layers dense.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, DENSE, EXPERTS, MIXTURE_FIELDS, NOTES, QK_NORM, WINDOW_FIELDS,
};
use super::field::{Field, read};
use super::{Family, Normalize};
use firebox_model::config::{FeedForwardKind, QkNorm};

/// Qwen3-MoE.
pub const QWEN3_MOE: Family = Family {
    architecture: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    qk_norm: QkNorm::Head,
    feed_forward: FeedForwardKind::Moe,
    normalize: Normalize::AsConfigured,
    dense_layers: true,
    // Older and newer versions of `transformers` look for one of the two.
    experts: &["num_experts", "num_local_experts"],
    d_ff: "moe_intermediate_size",
    head_dim: None,
    rope_theta: 10_000.0,
    kv_heads: Some(4),
    fields: &[
        NOTES,
        BACKBONE_FIELDS,
        MIXTURE_FIELDS,
        WINDOW_FIELDS,
        FIELDS,
    ],
    rules: &[BACKBONE, QK_NORM, DENSE, EXPERTS],
};

const FIELDS: &[Field] = &[
    read("decoder_sparse_step"),
    read("mlp_only_layers"),
    read("moe_intermediate_size"),
    read("norm_topk_prob"),
];
