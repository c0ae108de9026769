//! gpt-oss (arXiv 2508.10925): windows in every other layer, attention sinks, biases everywhere, and experts whose
//! activations are clamped.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, BIASES, EVERY_LAYER, MIXTURE_FIELDS, NOTES, SAMPLING, SINKS, rule,
};
use super::defaults::DEFAULTS;
use super::field::{Field, neutral, only, read};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use crate::layout::{Rule, Stored};
use firebox_model::config::{FeedForwardName, QkNorm, RopeScaling};

/// gpt-oss.
pub const GPT_OSS: Family = Family {
    architecture: "GptOssForCausalLM",
    model_type: "gpt_oss",
    qk_norm: QkNorm::None,
    qk_norm_switch: None,
    bias: Bias::AsConfigured,
    sinks: true,
    windows: Windows::Alternating,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: false,
    feed_forward: FeedForwardName::Moe,
    normalize: Normalize::Always,
    router: RouterKind::GptOss,
    dense_layers: DenseLayers::None,
    vision: false,
    experts: &["num_local_experts"],
    d_ff: "intermediate_size",
    defaults: Defaults {
        vocab_size: 201_088,
        hidden_size: 2880,
        intermediate_size: 2880,
        num_hidden_layers: 36,
        num_attention_heads: 64,
        num_key_value_heads: Some(8),
        head_dim: Some(64),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 150_000.0,
        rope_scaling: Some(RopeScaling::Yarn {
            factor: 32.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: false,
            mscale_all_dim: 0.0,
        }),
        num_experts: 128,
        num_experts_per_tok: 4,
        router_aux_loss_coef: 0.001,
        attention_bias: true,
        sliding_window: Some(128),
        ..DEFAULTS
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, MIXTURE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, SINKS, MIXTURE],
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    EVERY_LAYER,
    read("swiglu_alpha"),
    read("swiglu_limit"),
    only(
        "norm_topk_prob",
        &["true"],
        "in this family the weights of a token's experts sum to 1, whatever the field says",
    ),
    // Of the published files; `transformers` takes neither.
    neutral("experts_per_token"),
    neutral("initial_context_length"),
];

/// One of the two parameters whose values take turns in a tensor.
const fn gate_up(path: &'static str, name: &'static str, part: usize) -> Rule {
    let parts = 2;
    rule(path, Stored::Interleaved { name, part, parts })
}

const GATE_UP: &str = "model.layers.{layer}.mlp.experts.gate_up_proj";
const GATE_UP_BIAS: &str = "model.layers.{layer}.mlp.experts.gate_up_proj_bias";

const MIXTURE: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.router.weight",
        Stored::Transposed("model.layers.{layer}.mlp.router.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.router.logit_bias",
        Stored::AsIs("model.layers.{layer}.mlp.router.bias"),
    ),
    gate_up("blocks.{layer}.feed_forward.experts.gate", GATE_UP, 0),
    gate_up("blocks.{layer}.feed_forward.experts.up", GATE_UP, 1),
    gate_up(
        "blocks.{layer}.feed_forward.experts.biases.gate",
        GATE_UP_BIAS,
        0,
    ),
    gate_up(
        "blocks.{layer}.feed_forward.experts.biases.up",
        GATE_UP_BIAS,
        1,
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.down",
        Stored::AsIs("model.layers.{layer}.mlp.experts.down_proj"),
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.biases.down",
        Stored::AsIs("model.layers.{layer}.mlp.experts.down_proj_bias"),
    ),
];
