//! dots.llm1 (arXiv 2506.05767): Qwen3's attention, and the mixture of DeepSeek-V3 (arXiv 2412.19437).

use super::common::{
    BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, EXPERTS, NOTES, QK_NORM, SAMPLING, SHARED,
};
use super::defaults::DEFAULTS;
use super::field::{Field, neutral, only, read, training};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use firebox_model::config::{FeedForwardName, QkNorm};

/// dots.llm1.
pub const DOTS1: Family = Family {
    architecture: "Dots1ForCausalLM",
    model_type: "dots1",
    qk_norm: QkNorm::Head,
    qk_norm_switch: None,
    bias: Bias::AsConfigured,
    sinks: false,
    windows: Windows::ByLayer,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: false,
    feed_forward: FeedForwardName::Moe,
    normalize: Normalize::AsConfigured,
    router: RouterKind::DeepSeekV3,
    dense_layers: DenseLayers::First,
    vision: false,
    experts: &["n_routed_experts"],
    d_ff: "moe_intermediate_size",
    defaults: Defaults {
        vocab_size: 152_064,
        hidden_size: 4608,
        intermediate_size: 10_944,
        moe_intermediate_size: 1408,
        num_hidden_layers: 62,
        num_key_value_heads: Some(32),
        sliding_window: Some(4096),
        max_window_layers: 62,
        ..DEFAULTS
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, QK_NORM, DENSE, EXPERTS, SHARED],
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    read("first_k_dense_replace"),
    read("max_window_layers"),
    read("moe_intermediate_size"),
    read("n_group"),
    read("n_routed_experts"),
    read("n_shared_experts"),
    read("norm_topk_prob"),
    read("num_experts_per_tok"),
    read("num_local_experts"),
    read("routed_scaling_factor"),
    read("topk_group"),
    neutral("ep_size"),
    neutral("output_router_logits"),
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
