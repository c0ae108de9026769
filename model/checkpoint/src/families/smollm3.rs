//! SmolLM3: Llama without rotary positions in every fourth layer (NoPE, arXiv 2501.18795).

use super::common::{BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, NOTES, SAMPLING};
use super::field::{Field, neutral, off, read};
use super::{Defaults, Family, LLAMA};

/// SmolLM3.
pub const SMOLLM3: Family = Family {
    architecture: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    nope: true,
    defaults: Defaults {
        vocab_size: 128_256,
        hidden_size: 2048,
        num_hidden_layers: 36,
        num_attention_heads: 16,
        num_key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        rope_theta: 2e6,
        tie_word_embeddings: true,
        no_rope_layer_interval: 4,
        ..LLAMA.defaults
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, DENSE],
    ..LLAMA
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    read("no_rope_layer_interval"),
    read("no_rope_layers"),
    read("use_sliding_window"),
    // In published files, of Qwen3 and not of this family.
    neutral("max_window_layers"),
    off("mlp_bias", "Firebox has no biases in a feed-forward"),
];
