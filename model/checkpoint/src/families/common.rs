//! What families have in common: names of tensors, and fields of config.json.

use super::field::{Field, neutral, off, only, read, training};
use crate::accept::ACCEPTED;
use crate::layout::{Rule, Stored};

/// Name of the embedding, `[vocab_size, d_model]`, in every family.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// Name of the output head, `[vocab_size, d_model]`, in every family.
pub const HEAD: &str = "lm_head.weight";

/// Options of sampling, which older versions of `transformers` wrote to config.json and newer ones ignore.
pub(super) const SAMPLING: &[Field] = &[
    neutral("assistant_confidence_threshold"),
    neutral("assistant_lookbehind"),
    neutral("bad_words_ids"),
    neutral("begin_suppress_tokens"),
    neutral("diversity_penalty"),
    neutral("do_sample"),
    neutral("early_stopping"),
    neutral("encoder_no_repeat_ngram_size"),
    neutral("encoder_repetition_penalty"),
    neutral("epsilon_cutoff"),
    neutral("eta_cutoff"),
    neutral("exponential_decay_length_penalty"),
    neutral("forced_bos_token_id"),
    neutral("forced_eos_token_id"),
    neutral("length_penalty"),
    neutral("max_length"),
    neutral("max_new_tokens"),
    neutral("min_length"),
    neutral("no_repeat_ngram_size"),
    neutral("num_assistant_tokens"),
    neutral("num_assistant_tokens_schedule"),
    neutral("num_beam_groups"),
    neutral("num_beams"),
    neutral("num_return_sequences"),
    neutral("output_scores"),
    neutral("remove_invalid_values"),
    neutral("repetition_penalty"),
    neutral("return_dict_in_generate"),
    neutral("suppress_tokens"),
    neutral("target_lookbehind"),
    neutral("temperature"),
    neutral("top_k"),
    neutral("top_p"),
    neutral("typical_p"),
];

/// Fields that every config.json may have: the tokens that begin and end a text, what is accepted, and notes of the tools
/// that wrote it.
pub(super) const NOTES: &[Field] = &[
    read("bos_token_id"),
    // Firebox's own.
    only(
        "firebox_document_mask",
        &["true", "false"],
        "must be true or false: whether training saw each document of a packed sequence by itself",
    ),
    read("eos_token_id"),
    read(ACCEPTED),
    neutral("architectures"),
    neutral("attn_implementation"),
    neutral("auto_map"),
    neutral("chunk_size_feed_forward"),
    neutral("decoder_start_token_id"),
    neutral("dtype"),
    neutral("experts_implementation"),
    neutral("finetuning_task"),
    neutral("id2label"),
    // SmolLM and what nanotron exports.
    neutral("is_llama_config"),
    neutral("keys_to_ignore_at_inference"),
    neutral("label2id"),
    neutral("license"),
    neutral("model_type"),
    neutral("name_or_path"),
    neutral("num_labels"),
    neutral("output_attentions"),
    neutral("output_hidden_states"),
    neutral("pad_token_id"),
    neutral("prefix"),
    // Into how many slices a product is cut.
    neutral("pretraining_tp"),
    neutral("problem_type"),
    neutral("return_dict"),
    neutral("sep_token_id"),
    neutral("task_specific_params"),
    neutral("tokenizer_class"),
    neutral("torch_dtype"),
    neutral("torchscript"),
    neutral("transformers.js_config"),
    neutral("transformers_version"),
    neutral("unsloth_fixed"),
    neutral("unsloth_version"),
    neutral("use_bfloat16"),
    neutral("use_cache"),
];

/// Fields of what Llama and all that came from it have in common.
pub(super) const BACKBONE_FIELDS: &[Field] = &[
    read("head_dim"),
    read("hidden_size"),
    read("initializer_range"),
    read("intermediate_size"),
    read("layer_types"),
    read("max_position_embeddings"),
    read("num_attention_heads"),
    read("num_hidden_layers"),
    read("num_key_value_heads"),
    read("rms_norm_eps"),
    read("rope_parameters"),
    read("rope_scaling"),
    read("rope_theta"),
    read("sliding_window"),
    read("tie_word_embeddings"),
    read("vocab_size"),
    only(
        "hidden_act",
        &["\"silu\"", "\"swish\""],
        "Firebox computes silu",
    ),
    training("attention_dropout"),
];

/// Fields of a mixture. `transformers` takes either spelling of the number of experts in each of these families.
pub(super) const MIXTURE_FIELDS: &[Field] = &[
    read("num_experts"),
    read("num_experts_per_tok"),
    read("num_local_experts"),
    read("router_aux_loss_coef"),
    neutral("output_router_logits"),
];

/// Fields of Qwen's sliding window, which is off unless `use_sliding_window` says otherwise, and what Qwen's own files
/// say of the computation besides.
pub(super) const WINDOW_FIELDS: &[Field] = &[
    read("use_sliding_window"),
    only(
        "use_qk_norm",
        &["true"],
        "in this family queries and keys are normed, whatever the field says",
    ),
    off("qkv_bias", "in this family attention_bias is the switch"),
];

/// A switch for biases that a family does not have.
pub(super) const NO_BIASES: Field = off(
    "attention_bias",
    "in this family attention has no biases, whatever the field says",
);

/// What a mixture in every layer makes of a step between mixtures. `transformers` keeps a field that a family does not
/// have and computes with none; one that says what is computed anyway does no harm.
pub(super) const EVERY_LAYER: Field = only(
    "decoder_sparse_step",
    &["1"],
    "in this family every layer is a mixture, whatever the field says",
);

/// A parameter that files and memory spell alike.
pub(crate) const fn rule(path: &'static str, stored: Stored) -> Rule {
    Rule {
        path,
        saved: stored,
        fused: stored,
    }
}

/// One half of the fused gate and up projections.
pub(super) const fn gate_up(part: usize) -> Stored {
    Stored::Fused {
        name: "model.layers.{layer}.mlp.experts.gate_up_proj",
        part,
        parts: 2,
    }
}

/// The fused down projections.
pub(super) const FUSED_DOWN: Stored = Stored::Fused {
    name: "model.layers.{layer}.mlp.experts.down_proj",
    part: 0,
    parts: 1,
};

/// What Llama and all that came from it have in common.
pub(super) const BACKBONE: &[Rule] = &[
    rule("embedding", Stored::AsIs(EMBEDDING)),
    rule(
        "blocks.{layer}.attention_norm.gamma",
        Stored::AsIs("model.layers.{layer}.input_layernorm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.query.weight",
        Stored::Transposed("model.layers.{layer}.self_attn.q_proj.weight"),
    ),
    rule(
        "blocks.{layer}.attention.key.weight",
        Stored::Transposed("model.layers.{layer}.self_attn.k_proj.weight"),
    ),
    rule(
        "blocks.{layer}.attention.value.weight",
        Stored::Transposed("model.layers.{layer}.self_attn.v_proj.weight"),
    ),
    rule(
        "blocks.{layer}.attention.output.weight",
        Stored::Transposed("model.layers.{layer}.self_attn.o_proj.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward_norm.gamma",
        Stored::AsIs("model.layers.{layer}.post_attention_layernorm.weight"),
    ),
    rule("norm.gamma", Stored::AsIs("model.norm.weight")),
    rule("head", Stored::Transposed(HEAD)),
];

/// The biases of attention.
pub(super) const BIASES: &[Rule] = &[
    rule(
        "blocks.{layer}.attention.query.bias",
        Stored::AsIs("model.layers.{layer}.self_attn.q_proj.bias"),
    ),
    rule(
        "blocks.{layer}.attention.key.bias",
        Stored::AsIs("model.layers.{layer}.self_attn.k_proj.bias"),
    ),
    rule(
        "blocks.{layer}.attention.value.bias",
        Stored::AsIs("model.layers.{layer}.self_attn.v_proj.bias"),
    ),
    rule(
        "blocks.{layer}.attention.output.bias",
        Stored::AsIs("model.layers.{layer}.self_attn.o_proj.bias"),
    ),
];

/// Latent attention, as DeepSeek-V3 names it; its output, and queries that are not made of a latent, are those of
/// [`BACKBONE`].
pub(super) const LATENT: &[Rule] = &[
    rule(
        "blocks.{layer}.attention.query.down.weight",
        Stored::Transposed("model.layers.{layer}.self_attn.q_a_proj.weight"),
    ),
    rule(
        "blocks.{layer}.attention.query.down.bias",
        Stored::AsIs("model.layers.{layer}.self_attn.q_a_proj.bias"),
    ),
    rule(
        "blocks.{layer}.attention.query.norm.gamma",
        Stored::AsIs("model.layers.{layer}.self_attn.q_a_layernorm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.query.up.weight",
        Stored::Transposed("model.layers.{layer}.self_attn.q_b_proj.weight"),
    ),
    rule(
        "blocks.{layer}.attention.latent.weight",
        Stored::Transposed("model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight"),
    ),
    rule(
        "blocks.{layer}.attention.latent.bias",
        Stored::AsIs("model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias"),
    ),
    rule(
        "blocks.{layer}.attention.latent_norm.gamma",
        Stored::AsIs("model.layers.{layer}.self_attn.kv_a_layernorm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.key_value",
        Stored::AsIs("model.layers.{layer}.self_attn.kv_b_proj.weight"),
    ),
];

/// The sinks of attention.
pub(super) const SINKS: &[Rule] = &[rule(
    "blocks.{layer}.attention.sinks",
    Stored::AsIs("model.layers.{layer}.self_attn.sinks"),
)];

/// The biases of routers and experts, as Firebox names them.
pub(super) const MIXTURE_BIASES: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.router.logit_bias",
        Stored::AsIs("model.layers.{layer}.mlp.gate.bias"),
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.biases.gate",
        Stored::AsIs("model.layers.{layer}.mlp.experts.gate_proj_bias"),
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.biases.up",
        Stored::AsIs("model.layers.{layer}.mlp.experts.up_proj_bias"),
    ),
    rule(
        "blocks.{layer}.feed_forward.experts.biases.down",
        Stored::AsIs("model.layers.{layer}.mlp.experts.down_proj_bias"),
    ),
];

/// The norms of queries and keys, by head or over all heads.
pub(super) const QK_NORM: &[Rule] = &[
    rule(
        "blocks.{layer}.attention.query_norm.gamma",
        Stored::AsIs("model.layers.{layer}.self_attn.q_norm.weight"),
    ),
    rule(
        "blocks.{layer}.attention.key_norm.gamma",
        Stored::AsIs("model.layers.{layer}.self_attn.k_norm.weight"),
    ),
];

/// A dense feed-forward.
pub(super) const DENSE: &[Rule] = &[
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

/// The shared expert and its gate.
pub(super) const GATED_SHARED: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.shared.gate",
        Stored::Transposed("model.layers.{layer}.mlp.shared_expert.gate_proj.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.shared.up",
        Stored::Transposed("model.layers.{layer}.mlp.shared_expert.up_proj.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.shared.down",
        Stored::Transposed("model.layers.{layer}.mlp.shared_expert.down_proj.weight"),
    ),
    SHARED_GATE,
];

/// The gate of the shared experts.
pub(super) const SHARED_GATE: Rule = rule(
    "blocks.{layer}.feed_forward.shared_gate",
    Stored::Transposed("model.layers.{layer}.mlp.shared_expert_gate.weight"),
);

/// The shared experts, as one feed-forward.
pub(super) const SHARED: &[Rule] = &[
    rule(
        "blocks.{layer}.feed_forward.shared.gate",
        Stored::Transposed("model.layers.{layer}.mlp.shared_experts.gate_proj.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.shared.up",
        Stored::Transposed("model.layers.{layer}.mlp.shared_experts.up_proj.weight"),
    ),
    rule(
        "blocks.{layer}.feed_forward.shared.down",
        Stored::Transposed("model.layers.{layer}.mlp.shared_experts.down_proj.weight"),
    ),
];

/// A mixture, as most families name it.
pub(super) const EXPERTS: &[Rule] = &[
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
