//! Names of tensors in the Hugging Face families, as data.

use crate::config::{FeedForwardKind, ModelConfig};

/// How a parameter is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// As it is.
    AsIs,
    /// `[d_in, d_out]` here, `[d_out, d_in]` there.
    Transposed,
    /// `[experts, d_in, d_out]` here; there, one `[d_out, d_in]` an expert.
    Experts,
}

/// Where one parameter is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The parameter's path in the model; `{layer}` stands for a number.
    pub path: &'static str,
    /// The tensor's name in the file; `{layer}` and `{expert}` stand for numbers.
    pub name: &'static str,
    /// How it is stored.
    pub storage: Storage,
}

/// A family of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// `architectures` in config.json.
    pub architecture: &'static str,
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Rules for what follows attention.
    feed_forward: &'static [Rule],
}

const fn rule(path: &'static str, name: &'static str, storage: Storage) -> Rule {
    Rule {
        path,
        name,
        storage,
    }
}

/// What Llama and all that came from it have in common.
const BACKBONE: &[Rule] = &[
    rule("embedding", "model.embed_tokens.weight", Storage::AsIs),
    rule(
        "blocks.{layer}.attention_norm.gamma",
        "model.layers.{layer}.input_layernorm.weight",
        Storage::AsIs,
    ),
    rule(
        "blocks.{layer}.attention.query",
        "model.layers.{layer}.self_attn.q_proj.weight",
        Storage::Transposed,
    ),
    rule(
        "blocks.{layer}.attention.key",
        "model.layers.{layer}.self_attn.k_proj.weight",
        Storage::Transposed,
    ),
    rule(
        "blocks.{layer}.attention.value",
        "model.layers.{layer}.self_attn.v_proj.weight",
        Storage::Transposed,
    ),
    rule(
        "blocks.{layer}.attention.output",
        "model.layers.{layer}.self_attn.o_proj.weight",
        Storage::Transposed,
    ),
    rule(
        "blocks.{layer}.feed_forward_norm.gamma",
        "model.layers.{layer}.post_attention_layernorm.weight",
        Storage::AsIs,
    ),
    rule("norm.gamma", "model.norm.weight", Storage::AsIs),
    rule("head", "lm_head.weight", Storage::Transposed),
];

const SPARSE: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.router.weight",
        "model.layers.{layer}.block_sparse_moe.gate.weight",
        Storage::Transposed,
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.gate",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        Storage::Experts,
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.down",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
        Storage::Experts,
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.up",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        Storage::Experts,
    ),
];

const DENSE: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.gate",
        "model.layers.{layer}.mlp.gate_proj.weight",
        Storage::Transposed,
    ),
    rule(
        "blocks.{layer}.feed_forward.up",
        "model.layers.{layer}.mlp.up_proj.weight",
        Storage::Transposed,
    ),
    rule(
        "blocks.{layer}.feed_forward.down",
        "model.layers.{layer}.mlp.down_proj.weight",
        Storage::Transposed,
    ),
];

/// Mixtral: a mixture in every layer, chosen experts' weights renormalised.
pub const MIXTRAL: Layout = Layout {
    architecture: "MixtralForCausalLM",
    model_type: "mixtral",
    feed_forward: SPARSE,
};

/// Llama: a dense feed-forward in every layer.
pub const LLAMA: Layout = Layout {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    feed_forward: DENSE,
};

/// Mixtral's names for a mixture that no Hugging Face family computes: without renormalisation, or with a
/// selection bias. The name of its own keeps `transformers` from loading it as something that it is not.
pub const FIREBOX: Layout = Layout {
    architecture: "FireboxForCausalLM",
    model_type: "firebox",
    feed_forward: SPARSE,
};

/// Name of the selection bias of one layer's router, `[experts]`; in [`FIREBOX`] checkpoints only.
pub const ROUTER_BIAS: &str = "model.layers.{layer}.block_sparse_moe.gate.e_score_correction_bias";

impl Layout {
    /// All of them.
    pub const ALL: [Self; 3] = [MIXTRAL, LLAMA, FIREBOX];

    /// The family that computes what this model computes.
    pub fn of(config: &ModelConfig) -> Self {
        match config.feed_forward {
            FeedForwardKind::Dense => LLAMA,
            FeedForwardKind::Moe
                if config.router.normalize && config.router.bias_update_rate == 0.0 =>
            {
                MIXTRAL
            }
            FeedForwardKind::Moe => FIREBOX,
        }
    }

    /// The rule for a parameter's path, and its layer where it has one.
    pub fn rule(&self, path: &str) -> Option<(Rule, Option<usize>)> {
        let (pattern, layer) = match path
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'))
        {
            Some((layer, rest)) => (
                format!("blocks.{{layer}}.{rest}"),
                Some(layer.parse().ok()?),
            ),
            None => (path.to_owned(), None),
        };
        let mut rules = BACKBONE.iter().chain(self.feed_forward);
        rules
            .find(|rule| rule.path == pattern)
            .map(|rule| (*rule, layer))
    }
}

/// A name with its numbers put in.
pub fn fill(name: &str, layer: Option<usize>, expert: Option<usize>) -> String {
    let mut filled = name.to_owned();
    for (place, number) in [("{layer}", layer), ("{expert}", expert)] {
        if let Some(number) = number {
            filled = filled.replace(place, &number.to_string());
        }
    }
    filled
}
