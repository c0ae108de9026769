//! Our own: what no Hugging Face family computes, such as a mixture with a selection bias.

use super::common::{
    BACKBONE, BIASES, DENSE, EXPERTS, LATENT, MIXTURE_BIASES, NOTES, QK_NORM, SAMPLING, SHARED,
    SHARED_GATE, SINKS,
};
use super::field::{Field, read};
use super::mllama::{CROSS, EMBEDDINGS, GLOBAL_LAYERS, LAYERS, PROJECTOR};
use super::{Family, QWEN3_MOE};

/// Name of the selection bias of one layer's router, `[experts]`; in checkpoints of families that
/// [have one](Family::has_selection_bias).
pub const ROUTER_BIAS: &str = "model.layers.{layer}.mlp.gate.e_score_correction_bias";

/// Qwen3-MoE's names, and a config.json with the whole [`ModelConfig`](firebox_model::config::ModelConfig) under one key. The
/// name of its own keeps `transformers` from loading it as something that it is not.
pub const FIREBOX: Family = Family {
    architecture: "FireboxForCausalLM",
    model_type: "firebox",
    fields: &[NOTES, SAMPLING, FIELDS],
    rules: &[
        BACKBONE,
        BIASES,
        LATENT,
        SINKS,
        QK_NORM,
        DENSE,
        EXPERTS,
        MIXTURE_BIASES,
        SHARED,
        &[SHARED_GATE],
        CROSS,
        EMBEDDINGS,
        LAYERS,
        GLOBAL_LAYERS,
        PROJECTOR,
    ],
    ..QWEN3_MOE
};

const FIELDS: &[Field] = &[read("model")];
