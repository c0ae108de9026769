//! GLM-4-MoE, which is GLM-4.5 to 4.7 (arXiv 2508.06471): the mixture of DeepSeek-V3 (arXiv 2412.19437), half of each head
//! rotated, biases of queries, keys and values, and norms of queries and keys where `use_qk_norm` says so.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, EXPERTS, NOTES, QK_NORM, SAMPLING, SHARED,
};
use super::field::{Field, neutral, read};
use super::{Bias, DOTS1, Defaults, Family, Windows};

/// GLM-4-MoE.
pub const GLM4_MOE: Family = Family {
    architecture: "Glm4MoeForCausalLM",
    model_type: "glm4_moe",
    qk_norm_switch: Some("use_qk_norm"),
    bias: Bias::QkvAsConfigured,
    windows: Windows::None,
    partial_rotary: true,
    defaults: Defaults {
        vocab_size: 151_552,
        hidden_size: 4096,
        intermediate_size: 10_944,
        moe_intermediate_size: 1408,
        num_hidden_layers: 46,
        num_attention_heads: 96,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        num_experts: 128,
        num_experts_per_tok: 8,
        n_shared_experts: 1,
        first_k_dense_replace: 1,
        norm_topk_prob: true,
        partial_rotary_factor: 0.5,
        sliding_window: None,
        max_window_layers: 0,
        ..DOTS1.defaults
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, QK_NORM, DENSE, EXPERTS, SHARED],
    ..DOTS1
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    read("first_k_dense_replace"),
    read("moe_intermediate_size"),
    read("n_group"),
    read("n_routed_experts"),
    read("n_shared_experts"),
    read("norm_topk_prob"),
    read("num_experts_per_tok"),
    read("num_local_experts"),
    read("partial_rotary_factor"),
    read("routed_scaling_factor"),
    read("topk_group"),
    read("use_qk_norm"),
    // Layers behind the last one predict further tokens (arXiv 2412.19437, section 2.2); generation does without.
    neutral("num_mtp_layers"),
    neutral("num_nextn_predict_layers"),
    neutral("output_router_logits"),
];
