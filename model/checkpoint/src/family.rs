//! The families of checkpoints, as data: what each computes, its names, and its fields in config.json.

use super::layout::{Rule, Stored, pattern};
use firebox_model::config::{FeedForwardKind, ModelConfig, QkNorm};

/// A family of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// `architectures` in config.json.
    pub architecture: &'static str,
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// What follows attention.
    pub feed_forward: FeedForwardKind,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalize: Normalize,
    /// Whether single layers of a mixture may be dense (`mlp_only_layers`, `decoder_sparse_step`).
    pub dense_layers: bool,
    /// The field with the number of experts; where there are two spellings, both are read and written.
    pub experts: &'static [&'static str],
    /// The field with the width of an expert, or of the dense feed-forward of a dense family.
    pub d_ff: &'static str,
    /// `head_dim` where config.json names none; `None` stands for `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// The base of the rotary frequencies where config.json names none.
    pub rope_theta: f64,
    /// Key/value heads where config.json names none; `None` stands for as many as query heads.
    pub kv_heads: Option<usize>,
    rules: &'static [&'static [Rule]],
}

/// Whether the chosen experts' weights are divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalize {
    /// They are.
    Always,
    /// As `norm_topk_prob` says, and not where it is absent.
    AsConfigured,
}

/// A parameter that files and memory spell alike.
const fn rule(path: &'static str, stored: Stored) -> Rule {
    Rule {
        path,
        saved: stored,
        fused: stored,
    }
}

const fn gate_up(part: usize) -> Stored {
    Stored::Fused {
        name: "model.layers.{layer}.mlp.experts.gate_up_proj",
        part,
        parts: 2,
    }
}

const FUSED_DOWN: Stored = Stored::Fused {
    name: "model.layers.{layer}.mlp.experts.down_proj",
    part: 0,
    parts: 1,
};

/// What Llama and all that came from it have in common.
const BACKBONE: &[Rule] = &[
    rule("embedding", Stored::AsIs(EMBEDDING)),
    rule(
        "blocks.{layer}.attention_norm.gamma",
        Stored::AsIs("model.layers.{layer}.input_layernorm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.query",
        Stored::Transposed("model.layers.{layer}.self_attn.q_proj.weight"),
    ),
    rule(
        "blocks.{layer}.attention.key",
        Stored::Transposed("model.layers.{layer}.self_attn.k_proj.weight"),
    ),
    rule(
        "blocks.{layer}.attention.value",
        Stored::Transposed("model.layers.{layer}.self_attn.v_proj.weight"),
    ),
    rule(
        "blocks.{layer}.attention.output",
        Stored::Transposed("model.layers.{layer}.self_attn.o_proj.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward_norm.gamma",
        Stored::AsIs("model.layers.{layer}.post_attention_layernorm.weight"),
    ),
    rule("norm.gamma", Stored::AsIs("model.norm.weight")),
    rule("head", Stored::Transposed(HEAD)),
];

const QK_NORM: &[Rule] = &[
    rule(
        "blocks.{layer}.attention.query_norm.gamma",
        Stored::AsIs("model.layers.{layer}.self_attn.q_norm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.key_norm.gamma",
        Stored::AsIs("model.layers.{layer}.self_attn.k_norm.weight"),
    ),
];

const DENSE: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.gate",
        Stored::Transposed("model.layers.{layer}.mlp.gate_proj.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.up",
        Stored::Transposed("model.layers.{layer}.mlp.up_proj.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.down",
        Stored::Transposed("model.layers.{layer}.mlp.down_proj.weight"),
    ),
];

const EXPERTS: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.router.weight",
        Stored::Transposed("model.layers.{layer}.mlp.gate.weight"),
    ),
    Rule {
        path: "blocks.{layer}.feed_forward.experts.gate",
        saved: Stored::PerExpert("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"),
        fused: gate_up(0),
    },
    Rule {
        path: "blocks.{layer}.feed_forward.experts.up",
        saved: Stored::PerExpert("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"),
        fused: gate_up(1),
    },
    Rule {
        path: "blocks.{layer}.feed_forward.experts.down",
        saved: Stored::PerExpert("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"),
        fused: FUSED_DOWN,
    },
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

/// Name of the embedding, `[vocabulary, d_model]`, in every family.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// Name of the output head, `[vocabulary, d_model]`, in every family.
pub const HEAD: &str = "lm_head.weight";

/// Name of the selection bias of one layer's router, `[experts]`; in [`FIREBOX`] checkpoints only.
pub const ROUTER_BIAS: &str = "model.layers.{layer}.mlp.gate.e_score_correction_bias";

/// Llama (arXiv 2302.13971): dense.
pub const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    qk_norm: QkNorm::None,
    feed_forward: FeedForwardKind::Dense,
    normalize: Normalize::Always,
    dense_layers: false,
    experts: &[],
    d_ff: "intermediate_size",
    head_dim: None,
    rope_theta: 10_000.0,
    kv_heads: None,
    rules: &[BACKBONE, DENSE],
};

/// Qwen3 (arXiv 2505.09388): dense, each head of queries and keys normed.
pub const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    qk_norm: QkNorm::Head,
    head_dim: Some(128),
    kv_heads: Some(32),
    rules: &[BACKBONE, QK_NORM, DENSE],
    ..LLAMA
};

/// Mixtral (arXiv 2401.04088): experts in every layer, the weights of the chosen ones renormalised.
pub const MIXTRAL: Family = Family {
    architecture: "MixtralForCausalLM",
    model_type: "mixtral",
    feed_forward: FeedForwardKind::Moe,
    experts: &["num_local_experts"],
    rope_theta: 1e6,
    kv_heads: Some(8),
    rules: &[BACKBONE, MIXTRAL_EXPERTS],
    ..LLAMA
};

/// OLMoE (arXiv 2409.02060): queries and keys normed over all heads together.
pub const OLMOE: Family = Family {
    architecture: "OlmoeForCausalLM",
    model_type: "olmoe",
    qk_norm: QkNorm::Projection,
    feed_forward: FeedForwardKind::Moe,
    normalize: Normalize::AsConfigured,
    experts: &["num_experts"],
    rules: &[BACKBONE, QK_NORM, EXPERTS],
    ..LLAMA
};

/// Qwen3-MoE (arXiv 2505.09388): each head of queries and keys normed, single layers dense.
pub const QWEN3_MOE: Family = Family {
    architecture: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    qk_norm: QkNorm::Head,
    feed_forward: FeedForwardKind::Moe,
    normalize: Normalize::AsConfigured,
    dense_layers: true,
    experts: &["num_experts", "num_local_experts"],
    d_ff: "moe_intermediate_size",
    kv_heads: Some(4),
    rules: &[BACKBONE, QK_NORM, DENSE, EXPERTS],
    ..LLAMA
};

/// What no Hugging Face family computes, such as a mixture with a selection bias: Qwen3-MoE's names, and a
/// config.json with our own. The name of its own keeps `transformers` from loading it as something that it
/// is not.
pub const FIREBOX: Family = Family {
    architecture: "FireboxForCausalLM",
    model_type: "firebox",
    ..QWEN3_MOE
};

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] = [LLAMA, QWEN3, MIXTRAL, OLMOE, QWEN3_MOE, FIREBOX];

    /// The family that computes what this model computes; `biased` when a router has a selection bias.
    pub fn of(config: &ModelConfig, biased: bool) -> Self {
        let even = config.heads * config.head_dim == config.d_model;
        let computes = |family: &Self| {
            let dense = family.feed_forward == FeedForwardKind::Dense;
            family.qk_norm == config.qk_norm
                && family.feed_forward == config.feed_forward
                && (dense || family.normalize == Normalize::AsConfigured || config.router.normalize)
                && (family.dense_layers || config.dense.is_none())
                // Its norm is as wide as the residual stream.
                && (family.qk_norm != QkNorm::Projection || even)
        };
        let mixture = config.feed_forward == FeedForwardKind::Moe;
        let biased = mixture && (biased || config.router.bias_update_rate > 0.0);
        let known = Self::ALL.into_iter().find(computes);
        known.filter(|_| !biased).unwrap_or(FIREBOX)
    }

    /// The rule for a parameter's path, and its layer where it has one; `None` when the family has no such
    /// parameter.
    pub fn rule(&self, path: &str) -> Option<(Rule, Option<usize>)> {
        let (layer, pattern) = pattern(path);
        let mut rules = self.rules.iter().copied().flatten();
        rules
            .find(|rule| rule.path == pattern)
            .map(|rule| (*rule, layer))
    }
}
