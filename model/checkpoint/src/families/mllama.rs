//! Mllama, the models of Llama 3.2 that see pictures (arXiv 2407.21783, section 7): a vision tower, and a Llama with layers
//! that attend to it. With experts in the layers that attend to the text, the same names under a `model_type` that
//! `transformers` does not know.

use super::common::{MIXTURE_FIELDS, NOTES, SAMPLING};
use super::defaults::DEFAULTS;
use super::field::{Field, off, only, read};
use super::{Bias, Defaults, DenseLayers, Family, Normalize, RouterKind, Windows};
use crate::layout::{Rule, Stored};
use firebox_model::config::{FeedForwardName, ModelConfig, QkNorm};

/// Mllama.
pub const MLLAMA: Family = Family {
    architecture: "MllamaForConditionalGeneration",
    model_type: "mllama",
    qk_norm: QkNorm::None,
    qk_norm_switch: None,
    bias: Bias::None,
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
    vision: true,
    experts: &[],
    d_ff: "intermediate_size",
    defaults: Defaults {
        vocab_size: 128_256,
        intermediate_size: 14_336,
        num_hidden_layers: 40,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        ..DEFAULTS
    },
    fields: &[TEXT_FIELDS, NOTES, SAMPLING],
    rules: &[
        TEXT,
        HEAD,
        OF_MLLAMA,
        EMBEDDINGS,
        LAYERS,
        GLOBAL_LAYERS,
        PROJECTOR,
    ],
};

/// The mixture of the same names.
pub const FIREBOX_VISION: Family = Family {
    architecture: "FireboxForConditionalGeneration",
    model_type: "firebox_vision",
    feed_forward: FeedForwardName::Moe,
    normalize: Normalize::AsConfigured,
    experts: &["num_experts"],
    d_ff: "moe_intermediate_size",
    fields: &[TEXT_FIELDS, EXPERT_FIELDS, MIXTURE_FIELDS, NOTES, SAMPLING],
    rules: &[
        TEXT,
        HEAD,
        EXPERTS,
        OF_MLLAMA,
        EMBEDDINGS,
        LAYERS,
        GLOBAL_LAYERS,
        PROJECTOR,
    ],
    ..MLLAMA
};

/// The layers that attend to pictures where the file does not list them, if there are so many.
pub const CROSS_LAYERS: [usize; 8] = [3, 8, 13, 18, 23, 28, 33, 38];

/// The arrangements of at most four tiles, rows and columns, where the file does not list them.
pub const DEFAULT_RATIOS: [[usize; 2]; 8] = [
    [1, 1],
    [1, 2],
    [1, 3],
    [1, 4],
    [2, 1],
    [2, 2],
    [3, 1],
    [4, 1],
];

/// `model_type` of `text_config`.
pub const TEXT_TYPE: &str = "mllama_text_model";

/// `model_type` of `vision_config`.
pub const TOWER_TYPE: &str = "mllama_vision_model";

/// Whether the names can say what a model with a tower computes: a head is as wide as `hidden_size / num_attention_heads`, and
/// the feed-forwards of dense layers are as wide as those of the layers that attend to pictures.
pub(super) fn computes(config: &ModelConfig) -> bool {
    let cross = config.cross_layers();
    let widths = cross.filter_map(|layer| config.dense_d_ff(layer));
    let of_text = config.dense_layers().map(|(_, d_ff)| d_ff);
    let mut widths = widths.chain(of_text);
    let first = widths.next();
    config.d_model / config.heads == config.head_dim
        && widths.all(|width| Some(width) == first)
        && !config.tied_embeddings
}

const TIED: &str = "the embedding has eight rows more than the head, and transformers ties nothing, whatever the field says";

pub(super) const TOP_FIELDS: &[&[Field]] = &[
    &[
        read("image_token_index"),
        read("text_config"),
        read("vision_config"),
        off("tie_word_embeddings", TIED),
    ],
    NOTES,
    SAMPLING,
];

pub(super) const TOWER_FIELDS: &[&[Field]] = &[
    &[
        read("attention_heads"),
        read("hidden_size"),
        read("image_size"),
        read("initializer_range"),
        read("intermediate_layers_indices"),
        read("intermediate_size"),
        read("max_num_tiles"),
        read("norm_eps"),
        read("num_global_layers"),
        read("num_hidden_layers"),
        read("patch_size"),
        read("supported_aspect_ratios"),
        read("vision_output_dim"),
        only(
            "hidden_act",
            &["\"gelu\""],
            "Firebox's tower computes the exact gelu",
        ),
        only("num_channels", &["3"], "Firebox reads three colours"),
    ],
    NOTES,
    SAMPLING,
];

const TEXT_FIELDS: &[Field] = &[
    read("cross_attention_layers"),
    read("hidden_size"),
    read("initializer_range"),
    read("intermediate_size"),
    read("max_position_embeddings"),
    read("num_attention_heads"),
    read("num_hidden_layers"),
    read("num_key_value_heads"),
    read("rms_norm_eps"),
    read("rope_parameters"),
    read("rope_scaling"),
    read("rope_theta"),
    read("vocab_size"),
    off("dropout", "Firebox has no dropout"),
    off("tie_word_embeddings", TIED),
    only(
        "hidden_act",
        &["\"silu\"", "\"swish\""],
        "Firebox computes silu",
    ),
];

const EXPERT_FIELDS: &[Field] = &[read("moe_intermediate_size"), read("norm_topk_prob")];

/// Rules of parameters whose two spellings differ in how the name begins.
macro_rules! rules {
    ($path:literal, $saved:literal, $fused:literal, [$($stored:ident $own:literal => $name:literal),* $(,)?]) => {
        &[$(Rule {
            path: concat!($path, $own),
            saved: Stored::$stored(concat!($saved, $name)),
            fused: Stored::$stored(concat!($fused, $name)),
        }),*]
    };
}

/// What the layers that attend to pictures have besides the names of all layers.
macro_rules! cross {
    ($saved:literal, $fused:literal) => {
        rules!("blocks.{layer}.", $saved, $fused, [
            Transposed "cross_attention.query.weight" => "cross_attn.q_proj.weight",
            Transposed "cross_attention.key.weight" => "cross_attn.k_proj.weight",
            Transposed "cross_attention.value.weight" => "cross_attn.v_proj.weight",
            Transposed "cross_attention.output.weight" => "cross_attn.o_proj.weight",
            AsIs "cross_attention.query_norm.gamma" => "cross_attn.q_norm.weight",
            AsIs "cross_attention.key_norm.gamma" => "cross_attn.k_norm.weight",
            AsIs "gates.attention" => "cross_attn_attn_gate",
            AsIs "gates.feed_forward" => "cross_attn_mlp_gate",
        ])
    };
}

/// A layer of one of the tower's encoders.
macro_rules! tower_layer {
    ($path:literal, $saved:literal, $fused:literal) => {
        rules!($path, $saved, $fused, [
            AsIs "attention_norm.gamma" => "input_layernorm.weight",
            AsIs "attention_norm.beta" => "input_layernorm.bias",
            Transposed "attention.query.weight" => "self_attn.q_proj.weight",
            Transposed "attention.key.weight" => "self_attn.k_proj.weight",
            Transposed "attention.value.weight" => "self_attn.v_proj.weight",
            Transposed "attention.output.weight" => "self_attn.o_proj.weight",
            AsIs "feed_forward_norm.gamma" => "post_attention_layernorm.weight",
            AsIs "feed_forward_norm.beta" => "post_attention_layernorm.bias",
            Transposed "feed_forward.up.weight" => "mlp.fc1.weight",
            AsIs "feed_forward.up.bias" => "mlp.fc1.bias",
            Transposed "feed_forward.down.weight" => "mlp.fc2.weight",
            AsIs "feed_forward.down.bias" => "mlp.fc2.bias",
            AsIs "gates.attention" => "gate_attn",
            AsIs "gates.feed_forward" => "gate_ffn",
        ])
    };
}

/// The tower, what it embeds, and the projection.
pub(super) const EMBEDDINGS: &[Rule] = rules!("vision.tower.", "vision_model.", "model.vision_model.", [
    AsIs "patch_embedding" => "patch_embedding.weight",
    AsIs "class_embedding" => "class_embedding",
    AsIs "position_embedding" => "gated_positional_embedding.embedding",
    AsIs "position_gate" => "gated_positional_embedding.gate",
    AsIs "tile_position_embedding" => "gated_positional_embedding.tile_embedding.weight",
    AsIs "pre_tile_embedding" => "pre_tile_positional_embedding.embedding.weight",
    AsIs "pre_tile_gate" => "pre_tile_positional_embedding.gate",
    AsIs "post_tile_embedding" => "post_tile_positional_embedding.embedding.weight",
    AsIs "post_tile_gate" => "post_tile_positional_embedding.gate",
    AsIs "norm_before.gamma" => "layernorm_pre.weight",
    AsIs "norm_before.beta" => "layernorm_pre.bias",
    AsIs "norm_after.gamma" => "layernorm_post.weight",
    AsIs "norm_after.beta" => "layernorm_post.bias",
]);

/// The tower's first encoder.
pub(super) const LAYERS: &[Rule] = tower_layer!(
    "vision.tower.layers.{layer}.",
    "vision_model.transformer.layers.{layer}.",
    "model.vision_model.transformer.layers.{layer}."
);

/// Its second one.
pub(super) const GLOBAL_LAYERS: &[Rule] = tower_layer!(
    "vision.tower.global_layers.{layer}.",
    "vision_model.global_transformer.layers.{layer}.",
    "model.vision_model.global_transformer.layers.{layer}."
);

/// The projection of what comes out of the tower.
pub(super) const PROJECTOR: &[Rule] = rules!("vision.projector.", "multi_modal_projector.", "model.multi_modal_projector.", [
    Transposed "weight" => "weight",
    AsIs "bias" => "bias",
]);

/// The layers that attend to pictures, where the text has the names of most families.
pub(super) const CROSS: &[Rule] = cross!("model.layers.{layer}.", "model.layers.{layer}.");

const OF_MLLAMA: &[Rule] = cross!(
    "language_model.model.layers.{layer}.",
    "model.language_model.layers.{layer}."
);

const TEXT: &[Rule] = rules!("", "language_model.model.", "model.language_model.", [
    AsIs "embedding" => "embed_tokens.weight",
    AsIs "blocks.{layer}.attention_norm.gamma" => "layers.{layer}.input_layernorm.weight",
    Transposed "blocks.{layer}.attention.query.weight" => "layers.{layer}.self_attn.q_proj.weight",
    Transposed "blocks.{layer}.attention.key.weight" => "layers.{layer}.self_attn.k_proj.weight",
    Transposed "blocks.{layer}.attention.value.weight" => "layers.{layer}.self_attn.v_proj.weight",
    Transposed "blocks.{layer}.attention.output.weight" => "layers.{layer}.self_attn.o_proj.weight",
    AsIs "blocks.{layer}.feed_forward_norm.gamma" => "layers.{layer}.post_attention_layernorm.weight",
    AsIs "norm.gamma" => "norm.weight",
    Transposed "blocks.{layer}.feed_forward.gate" => "layers.{layer}.mlp.gate_proj.weight",
    Transposed "blocks.{layer}.feed_forward.up" => "layers.{layer}.mlp.up_proj.weight",
    Transposed "blocks.{layer}.feed_forward.down" => "layers.{layer}.mlp.down_proj.weight",
    Transposed "blocks.{layer}.feed_forward.router.weight" => "layers.{layer}.mlp.gate.weight",
]);

const HEAD: &[Rule] = &[Rule {
    path: "head",
    saved: Stored::Transposed("language_model.lm_head.weight"),
    fused: Stored::Transposed("lm_head.weight"),
}];

/// One half of the fused gate and up projections.
const fn gate_up(part: usize) -> Stored {
    Stored::Fused {
        name: "model.language_model.layers.{layer}.mlp.experts.gate_up_proj",
        part,
        parts: 2,
    }
}

const EXPERTS: &[Rule] = &[
    Rule {
        path: "blocks.{layer}.feed_forward.experts.gate",
        saved: Stored::PerExpert(
            "language_model.model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
        ),
        fused: gate_up(0),
    },
    Rule {
        path: "blocks.{layer}.feed_forward.experts.up",
        saved: Stored::PerExpert(
            "language_model.model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
        ),
        fused: gate_up(1),
    },
    Rule {
        path: "blocks.{layer}.feed_forward.experts.down",
        saved: Stored::PerExpert(
            "language_model.model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
        ),
        fused: Stored::Fused {
            name: "model.language_model.layers.{layer}.mlp.experts.down_proj",
            part: 0,
            parts: 1,
        },
    },
];
