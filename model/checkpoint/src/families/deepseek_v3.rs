//! DeepSeek-V3 and R1 (arXiv 2412.19437): latent attention, and sigmoid scores with a selection bias, groups and shared
//! experts behind dense first layers.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, EXPERTS, LATENT, NOTES, SAMPLING, SHARED,
};
use super::field::{Field, neutral, only, read, training};
use super::{Bias, DOTS1, Defaults, Family, Windows};
use firebox_model::config::QkNorm;

/// DeepSeek-V3.
pub const DEEPSEEK_V3: Family = Family {
    architecture: "DeepseekV3ForCausalLM",
    model_type: "deepseek_v3",
    qk_norm: QkNorm::None,
    bias: Bias::AsConfigured,
    windows: Windows::None,
    latent: true,
    defaults: Defaults {
        vocab_size: 129_280,
        hidden_size: 7168,
        intermediate_size: 18_432,
        moe_intermediate_size: 2048,
        num_hidden_layers: 61,
        num_attention_heads: 128,
        num_key_value_heads: Some(128),
        max_position_embeddings: 4096,
        num_experts: 256,
        num_experts_per_tok: 8,
        n_shared_experts: 1,
        n_group: 8,
        topk_group: 4,
        routed_scaling_factor: 2.5,
        kv_lora_rank: 512,
        q_lora_rank: 1536,
        qk_nope_head_dim: 128,
        qk_rope_head_dim: 64,
        v_head_dim: 128,
        first_k_dense_replace: 3,
        norm_topk_prob: true,
        sliding_window: None,
        max_window_layers: 0,
        ..DOTS1.defaults
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, LATENT, DENSE, EXPERTS, SHARED],
    ..DOTS1
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    read("first_k_dense_replace"),
    read("kv_lora_rank"),
    read("moe_intermediate_size"),
    read("n_group"),
    read("n_routed_experts"),
    read("n_shared_experts"),
    read("norm_topk_prob"),
    read("num_experts_per_tok"),
    read("num_local_experts"),
    read("q_lora_rank"),
    read("qk_nope_head_dim"),
    read("qk_rope_head_dim"),
    read("rope_interleave"),
    read("routed_scaling_factor"),
    read("topk_group"),
    read("v_head_dim"),
    neutral("ep_size"),
    // Layers behind the last one predict further tokens (section 2.2); generation does without.
    neutral("num_mtp_layers"),
    neutral("num_nextn_predict_layers"),
    neutral("output_router_logits"),
    // The sum of two others.
    neutral("qk_head_dim"),
    training("aux_loss_alpha"),
    training("seq_aux"),
    // What the published files say besides, and `transformers` computes anyway.
    only(
        "moe_layer_freq",
        &["1"],
        "in this family every layer after the first dense ones is a mixture, whatever the field says",
    ),
    only(
        "scoring_func",
        &["\"sigmoid\"", "\"noaux_tc\""],
        "in this family the scores are sigmoids, whatever the field says",
    ),
    only(
        "topk_method",
        &["\"noaux_tc\""],
        "in this family a bias and groups decide the selection, whatever the field says",
    ),
];
