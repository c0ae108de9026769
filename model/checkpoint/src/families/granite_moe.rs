//! Granite-MoE, which is Granite 3.0 and 3.1 with experts: Mixtral's mixture in tensors of all experts, and constant factors
//! of embedding, residual branches, scores and logits.

use super::common::{BACKBONE, BACKBONE_FIELDS, BIASES, EVERY_LAYER, NOTES, SAMPLING};
use super::defaults::DEFAULTS;
use super::field::{Field, neutral, only, read};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use crate::layout::{Rule, Stored};
use firebox_model::config::{FeedForwardName, QkNorm};

/// Granite-MoE.
pub const GRANITE_MOE: Family = Family {
    architecture: "GraniteMoeForCausalLM",
    model_type: "granitemoe",
    qk_norm: QkNorm::None,
    qk_norm_switch: None,
    bias: Bias::AsConfigured,
    sinks: false,
    windows: Windows::None,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: true,
    feed_forward: FeedForwardName::Moe,
    // A softmax over the chosen logits is that over all of them, divided by its sum over the chosen ones.
    normalize: Normalize::Always,
    router: RouterKind::Softmax,
    dense_layers: DenseLayers::None,
    vision: false,
    experts: &["num_local_experts"],
    d_ff: "intermediate_size",
    defaults: Defaults {
        num_experts: 8,
        num_experts_per_tok: 2,
        router_aux_loss_coef: 0.001,
        ..DEFAULTS
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, MIXTURE],
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    read("attention_multiplier"),
    EVERY_LAYER,
    read("embedding_multiplier"),
    read("logits_scaling"),
    only(
        "norm_topk_prob",
        &["true"],
        "in this family the weights of a token's experts sum to 1, whatever the field says",
    ),
    read("num_experts_per_tok"),
    read("num_local_experts"),
    neutral("output_router_logits"),
    read("residual_multiplier"),
    read("router_aux_loss_coef"),
];

/// One of the matrices that the tensor `saved` in a file, and `fused` in memory, stacks for each expert.
const fn stacked(
    path: &'static str,
    saved: &'static str,
    fused: &'static str,
    part: usize,
    parts: usize,
) -> Rule {
    Rule {
        path,
        saved: Stored::Fused {
            name: saved,
            part,
            parts,
        },
        fused: Stored::Fused {
            name: fused,
            part,
            parts,
        },
    }
}

const INPUT: &str = "model.layers.{layer}.block_sparse_moe.input_linear.weight";
const GATE_UP: &str = "model.layers.{layer}.block_sparse_moe.experts.gate_up_proj";

const MIXTURE: &[Rule] = &[
    Rule {
        path: "blocks.{layer}.feed_forward.router.weight",
        saved: Stored::Transposed("model.layers.{layer}.block_sparse_moe.router.layer.weight"),
        fused: Stored::Transposed("model.layers.{layer}.block_sparse_moe.router.weight"),
    },
    stacked(
        "blocks.{layer}.feed_forward.experts.gate",
        INPUT,
        GATE_UP,
        0,
        2,
    ),
    stacked(
        "blocks.{layer}.feed_forward.experts.up",
        INPUT,
        GATE_UP,
        1,
        2,
    ),
    stacked(
        "blocks.{layer}.feed_forward.experts.down",
        "model.layers.{layer}.block_sparse_moe.output_linear.weight",
        "model.layers.{layer}.block_sparse_moe.experts.down_proj",
        0,
        1,
    ),
];
