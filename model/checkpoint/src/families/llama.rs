//! Llama (arXiv 2302.13971): dense.

use super::common::{BACKBONE, BACKBONE_FIELDS, BIASES, DENSE, NOTES, SAMPLING};
use super::defaults::DEFAULTS;
use super::field::{Field, off, read};
use super::{Bias, DenseLayers, Family, Normalize, RouterKind, Windows};
use firebox_model::config::{FeedForwardName, QkNorm};

/// Llama.
pub const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    qk_norm: QkNorm::None,
    qk_norm_switch: None,
    bias: Bias::AsConfigured,
    sinks: false,
    windows: Windows::None,
    partial_rotary: false,
    nope: false,
    latent: false,
    multipliers: false,
    feed_forward: FeedForwardName::Dense,
    normalize: Normalize::Always,
    router: RouterKind::Softmax,
    dense_layers: DenseLayers::None,
    vision: false,
    experts: &[],
    d_ff: "intermediate_size",
    defaults: DEFAULTS,
    fields: &[NOTES, SAMPLING, BACKBONE_FIELDS, FIELDS],
    rules: &[BACKBONE, BIASES, DENSE],
};

const FIELDS: &[Field] = &[
    read("attention_bias"),
    off("mlp_bias", "Firebox has no biases in a feed-forward"),
];
