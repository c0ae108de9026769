//! Mistral (arXiv 2310.06825): Llama with a sliding window in every layer.

use super::common::{BACKBONE, BACKBONE_FIELDS, DENSE, NO_BIASES, NOTES, SAMPLING};
use super::field::Field;
use super::{Bias, Defaults, Family, LLAMA, Windows};

/// Mistral.
pub const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    bias: Bias::None,
    windows: Windows::All,
    defaults: Defaults {
        intermediate_size: 14_336,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        sliding_window: Some(4096),
        ..LLAMA.defaults
    },
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, FIELDS],
    rules: &[BACKBONE, DENSE],
    ..LLAMA
};

const FIELDS: &[Field] = &[NO_BIASES];
