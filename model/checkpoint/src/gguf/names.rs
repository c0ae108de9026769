//! How llama.cpp names the tensors of a model, as data. Matrices lie as in Hugging Face's files, `[d_out, d_in]`; the experts of
//! a layer are stacked in one tensor.

use super::latent;
use crate::families::rule;
use crate::layout::{Rule, Stored};

/// Name of the embedding, `[vocab_size, d_model]`.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// Name of the output head, `[vocab_size, d_model]`.
pub(super) const HEAD: &str = "output.weight";
/// Name of the selection bias of a layer's router, `[experts]`.
pub(super) const ROUTER_BIAS: &str = "blk.{layer}.exp_probs_b.bias";
/// Name of the divisors of the rotary frequencies, `[head_dim / 2]`.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// How the names of a router's tensors end, which are kept in f32 as llama.cpp's own tools keep them.
const ROUTER: &str = "ffn_gate_inp.weight";

/// The number of dimensions of a tensor that may be written with fewer: ggml leaves out those of 1 in front.
pub(super) fn dimensions(name: &str) -> usize {
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if ends(&["_exps.weight"]) || latent::is_part(name) {
        3
    } else if ends(&["_exps.bias", "_inp_shexp.weight"]) {
        2
    } else {
        1
    }
}

/// Whether a tensor is stored in the type that is asked for; vectors, biases and routers are in f32.
pub(super) fn is_matrix(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && !name.ends_with(".bias") && !name.ends_with(ROUTER)
}

/// Whether the rows of a tensor are those of queries or keys, for which some architectures have an order of their own.
pub(super) fn is_rotated(name: &str) -> bool {
    let last = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    last.ends_with(".attn_q") || last.ends_with(".attn_k")
}

const fn stack(path: &'static str, name: &'static str) -> Rule {
    let (part, parts) = (0, 1);
    rule(path, Stored::Fused { name, part, parts })
}

/// What all architectures have in common.
pub(super) const BACKBONE: &[Rule] = &[
    rule("embedding", Stored::AsIs(EMBEDDING)),
    rule(
        "blocks.{layer}.attention_norm.gamma",
        Stored::AsIs("blk.{layer}.attn_norm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.query.weight",
        Stored::Transposed("blk.{layer}.attn_q.weight"),
    ),
    rule(
        "blocks.{layer}.attention.key.weight",
        Stored::Transposed("blk.{layer}.attn_k.weight"),
    ),
    rule(
        "blocks.{layer}.attention.value.weight",
        Stored::Transposed("blk.{layer}.attn_v.weight"),
    ),
    rule(
        "blocks.{layer}.attention.output.weight",
        Stored::Transposed("blk.{layer}.attn_output.weight"),
    ),
    rule(
        "blocks.{layer}.attention.query.bias",
        Stored::AsIs("blk.{layer}.attn_q.bias"),
    ),
    rule(
        "blocks.{layer}.attention.key.bias",
        Stored::AsIs("blk.{layer}.attn_k.bias"),
    ),
    rule(
        "blocks.{layer}.attention.value.bias",
        Stored::AsIs("blk.{layer}.attn_v.bias"),
    ),
    rule(
        "blocks.{layer}.attention.output.bias",
        Stored::AsIs("blk.{layer}.attn_output.bias"),
    ),
    rule(
        "blocks.{layer}.attention.query_norm.gamma",
        Stored::AsIs("blk.{layer}.attn_q_norm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.key_norm.gamma",
        Stored::AsIs("blk.{layer}.attn_k_norm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.sinks",
        Stored::AsIs("blk.{layer}.attn_sinks.weight"),
    ),
    rule("norm.gamma", Stored::AsIs("output_norm.weight")),
    rule("head", Stored::Transposed(HEAD)),
];

/// Latent attention.
pub(super) const LATENT: &[Rule] = &[
    rule(
        "blocks.{layer}.attention.query.down.weight",
        Stored::Transposed("blk.{layer}.attn_q_a.weight"),
    ),
    rule(
        "blocks.{layer}.attention.query.norm.gamma",
        Stored::AsIs("blk.{layer}.attn_q_a_norm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.query.up.weight",
        Stored::Transposed("blk.{layer}.attn_q_b.weight"),
    ),
    rule(
        "blocks.{layer}.attention.latent.weight",
        Stored::Transposed("blk.{layer}.attn_kv_a_mqa.weight"),
    ),
    rule(
        "blocks.{layer}.attention.latent_norm.gamma",
        Stored::AsIs("blk.{layer}.attn_kv_a_norm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.key_value",
        Stored::AsIs("blk.{layer}.attn_kv_b.weight"),
    ),
];

/// The norm before the feed-forward, as most architectures name it.
pub(super) const NORM: &[Rule] = &[rule(
    "blocks.{layer}.feed_forward_norm.gamma",
    Stored::AsIs("blk.{layer}.ffn_norm.weight"),
)];

/// The same norm, as GLM-4-MoE and gpt-oss name it.
pub(super) const POST_NORM: &[Rule] = &[rule(
    "blocks.{layer}.feed_forward_norm.gamma",
    Stored::AsIs("blk.{layer}.post_attention_norm.weight"),
)];

/// Dense feed-forwards, experts, and shared experts.
pub(super) const FEED_FORWARDS: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.gate",
        Stored::Transposed("blk.{layer}.ffn_gate.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.up",
        Stored::Transposed("blk.{layer}.ffn_up.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.down",
        Stored::Transposed("blk.{layer}.ffn_down.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.router.weight",
        Stored::Transposed("blk.{layer}.ffn_gate_inp.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.router.logit_bias",
        Stored::AsIs("blk.{layer}.ffn_gate_inp.bias"),
    ),
    stack(
        "blocks.{layer}.feed_forward.experts.gate",
        "blk.{layer}.ffn_gate_exps.weight",
    ),
    stack(
        "blocks.{layer}.feed_forward.experts.up",
        "blk.{layer}.ffn_up_exps.weight",
    ),
    stack(
        "blocks.{layer}.feed_forward.experts.down",
        "blk.{layer}.ffn_down_exps.weight",
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.biases.gate",
        Stored::AsIs("blk.{layer}.ffn_gate_exps.bias"),
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.biases.up",
        Stored::AsIs("blk.{layer}.ffn_up_exps.bias"),
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.biases.down",
        Stored::AsIs("blk.{layer}.ffn_down_exps.bias"),
    ),
    rule(
        "blocks.{layer}.feed_forward.shared.gate",
        Stored::Transposed("blk.{layer}.ffn_gate_shexp.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.shared.up",
        Stored::Transposed("blk.{layer}.ffn_up_shexp.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.shared.down",
        Stored::Transposed("blk.{layer}.ffn_down_shexp.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.shared_gate",
        Stored::Transposed("blk.{layer}.ffn_gate_inp_shexp.weight"),
    ),
];
