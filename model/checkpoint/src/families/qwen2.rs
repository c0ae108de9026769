//! Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): dense, with biases of queries, keys and values.

use super::common::{BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, NOTES, SAMPLING};
use super::field::{Field, read};
use super::{Bias, Defaults, Family, LLAMA, Windows};

/// Qwen2.
pub const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    bias: Bias::Qkv,
    windows: Windows::ByLayer,
    defaults: Defaults {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        num_key_value_heads: Some(32),
        max_position_embeddings: 32_768,
        sliding_window: Some(4096),
        max_window_layers: 28,
        ..LLAMA.defaults
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, DENSE],
    ..LLAMA
};

const FIELDS: &[Field] = &[read("max_window_layers"), read("use_sliding_window")];
