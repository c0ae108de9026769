//! Qwen3 (arXiv 2505.09388): dense, the queries and keys of each head normed.

use super::common::{BACKBONE, BACKBONE_FIELDS, DENSE, NOTES, QK_NORM, WINDOW_FIELDS};
use super::{Family, Normalize};
use firebox_model::config::{FeedForwardKind, QkNorm};

/// Qwen3.
pub const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    qk_norm: QkNorm::Head,
    feed_forward: FeedForwardKind::Dense,
    normalize: Normalize::Always,
    dense_layers: false,
    experts: &[],
    d_ff: "intermediate_size",
    head_dim: Some(128),
    rope_theta: 10_000.0,
    kv_heads: Some(32),
    fields: &[NOTES, BACKBONE_FIELDS, WINDOW_FIELDS],
    rules: &[BACKBONE, QK_NORM, DENSE],
};
