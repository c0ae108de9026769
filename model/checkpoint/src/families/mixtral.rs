//! Mixtral (arXiv 2401.04088): experts in every layer, the weights of the chosen ones renormalized.

use super::common::{
    BACKBONE, BACKBONE_FIELDS, EVERY_LAYER, FUSED_DOWN, MIXTURE_FIELDS, NO_BIASES, NOTES, SAMPLING,
    gate_up,
};
use super::defaults::DEFAULTS;
use super::field::{Field, only, training};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use crate::layout::{Rule, Stored};
use firebox_model::config::{FeedForwardName, QkNorm};

/// Mixtral.
pub const MIXTRAL: Family = Family {
    architecture: "MixtralForCausalLM",
    model_type: "mixtral",
    qk_norm: QkNorm::None,
    qk_norm_switch: None,
    bias: Bias::None,
    sinks: false,
    windows: Windows::All,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: false,
    feed_forward: FeedForwardName::Moe,
    normalize: Normalize::Always,
    router: RouterKind::Softmax,
    dense_layers: DenseLayers::None,
    vision: false,
    experts: &["num_local_experts"],
    d_ff: "intermediate_size",
    defaults: Defaults {
        intermediate_size: 14_336,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 1e6,
        num_experts: 8,
        num_experts_per_tok: 2,
        router_aux_loss_coef: 0.001,
        ..DEFAULTS
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, MIXTURE_FIELDS, FIELDS],
    rules: &[BACKBONE, MIXTRAL_EXPERTS],
};

const FIELDS: &[Field] = &[
    NO_BIASES,
    EVERY_LAYER,
    only(
        "norm_topk_prob",
        &["true"],
        "transformers normalizes in this family whatever the field says",
    ),
    training("router_jitter_noise"),
];

const MIXTRAL_EXPERTS: &[Rule] = &[
    Rule {
        path: "blocks.{layer}.feed_forward.router.weight",
        saved: Stored::Transposed("model.layers.{layer}.block_sparse_moe.gate.weight"),
        fused: Stored::Transposed("model.layers.{layer}.mlp.gate.weight"),
    },
    Rule {
        path: "blocks.{layer}.feed_forward.experts.gate",
        saved: Stored::PerExpert(
            "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        ),
        fused: gate_up(0),
    },
    Rule {
        path: "blocks.{layer}.feed_forward.experts.up",
        saved: Stored::PerExpert(
            "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        ),
        fused: gate_up(1),
    },
    Rule {
        path: "blocks.{layer}.feed_forward.experts.down",
        saved: Stored::PerExpert(
            "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
        ),
        fused: FUSED_DOWN,
    },
];
