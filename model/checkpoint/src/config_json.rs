//! `config.json`: a [`ModelConfig`] in the format of Hugging Face.
//!
//! Reading is in [`fields`](super::fields).

use std::fs;
use std::path::Path;

use firebox_console::durable::FileError;
use serde_json::{Map, Value, json};

use super::dtype::StoredDtype as _;
use super::families::{
    Bias, DenseLayers, FIREBOX, Family, RouterKind, TEXT_TYPE, TOWER_TYPE, Windows,
};
use super::fields::Fields;
use super::gguf;
use super::notes::generation_eos_ids;
use super::preprocessor;
use super::{Accept, CONFIG_FILE, CheckpointError, Notes};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::{
    AttentionBias, AttentionKind, BalanceKind, CHANNELS, ExpertActivation, ModelConfig, MoeConfig,
    Multipliers, QkNorm, RopeScaling,
};

/// The content of a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointConfig {
    /// The model's configuration.
    pub model: ModelConfig,
    /// The family, which determines the names of the tensors.
    pub family: Family,
    /// `eos_token_id` of config.json and generation_config.json: the ids that end a text; the first one ends a document.
    pub eos_ids: Vec<u32>,
    /// `bos_token_id`: the id that begins a document.
    pub bos_id: Option<u32>,
    /// The fields that say nothing of what is computed.
    pub notes: Notes,
}

/// Reads the `config.json` of a checkpoint folder, and the ends of a text from its `generation_config.json`; or the metadata
/// of a GGUF file, which says the same in other words. An absent
/// field means what it does to `transformers`: see [`Defaults`](super::families::Defaults). Fields that Firebox does not
/// know are passed over where `accept`, or the file itself, names them, and kept in the notes.
///
/// # Errors
///
/// When it is missing or damaged, has a field that Firebox does not support, or `accept` names a field that it does not
/// have or that Firebox knows.
pub fn read_config(folder: &Path, accept: Accept) -> Result<CheckpointConfig, CheckpointError> {
    if gguf::is_gguf(folder) {
        return gguf::read_config(folder, accept);
    }
    let path = folder.join(CONFIG_FILE);
    if !path.exists() {
        return Err(CheckpointError::NotACheckpoint {
            folder: folder.to_owned(),
            missing: CONFIG_FILE,
        });
    }
    let text = fs::read_to_string(&path).map_err(FileError::of("read", &path))?;
    let value: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
    let mut config = Fields::new(&path, &value, accept)?.config()?;
    if let Some(vision) = &config.model.vision {
        preprocessor::check(folder, vision)?;
    }
    for id in generation_eos_ids(folder)? {
        if !config.eos_ids.contains(&id) {
            config.eos_ids.push(id);
        }
    }
    Ok(config)
}

/// What [`read_config`] will give of the checkpoints of a run of this model, which need not exist yet.
///
/// # Errors
///
/// When config.json cannot say what the model is.
pub fn planned_config(model: &ModelConfig) -> Result<CheckpointConfig, CheckpointError> {
    let moe = model.moe.as_ref();
    let biased = moe.is_some_and(|moe| moe.router.balances_by_bias());
    let family = Family::of(model, biased);
    let text = config_json(model, &family, &Notes::default(), WeightDtype::F32);
    let value = serde_json::from_str(&text).expect("an object that was just written");
    Fields::new(Path::new(CONFIG_FILE), &value, Accept::Nothing)?.config()
}

/// The text of a config.json for weights of this type, with both the old and the new names of keys that transformers 5
/// renamed.
pub fn config_json(
    model: &ModelConfig,
    family: &Family,
    notes: &Notes,
    dtype: WeightDtype,
) -> String {
    let mut value = json!({
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": dtype.torch_name(),
        "torch_dtype": dtype.torch_name(),
    });
    let specific = match (family.vision, *family == FIREBOX) {
        (true, _) => tables(model, family, notes),
        (false, true) => json!({ "model": model }),
        (false, false) => hugging_face(model, family),
    };
    let fields = value.as_object_mut().expect("an object");
    fields.extend(specific.as_object().expect("an object").clone());
    if !family.vision {
        notes.add_to(fields, family);
    }
    if family.predicts_further() {
        // Layers behind the last one are not written.
        fields.insert("num_nextn_predict_layers".to_owned(), json!(0));
    }
    serde_json::to_string_pretty(&value).expect("a value with string keys can be written as JSON")
        + "\n"
}

/// The configuration of a model with a tower under Hugging Face's keys, in its two tables.
fn tables(model: &ModelConfig, family: &Family, notes: &Notes) -> Value {
    let vision = model.vision.as_ref().expect("a model with a tower");
    let mut text = json!({
        "model_type": TEXT_TYPE,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": model.layers.len(),
        "cross_attention_layers": model.cross_layers().collect::<Vec<usize>>(),
        "hidden_size": model.d_model,
        "intermediate_size": model.cross_layers().find_map(|layer| model.dense_d_ff(layer)),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": model.context_length,
        "rope_theta": model.rope_theta,
        "rope_parameters": rope_parameters(model),
        "rms_norm_eps": model.norm_epsilon,
        "initializer_range": model.initializer_range,
        "hidden_act": "silu",
        "dropout": 0.0,
        "tie_word_embeddings": false,
        // The default may be no token of this vocabulary.
        "pad_token_id": null,
    });
    let fields = text.as_object_mut().expect("an object");
    if model.rope_scaling.is_some() {
        fields.insert("rope_scaling".to_owned(), rope_parameters(model));
    }
    if let Some(moe) = &model.moe {
        add_mixture(fields, moe, family);
    }
    notes.add_to(fields, family);
    // transformers refuses a null here. Without it, it takes a default, which no text has that begins with another token.
    if fields.get("bos_token_id").is_some_and(Value::is_null) {
        fields.remove("bos_token_id");
    }
    json!({
        "image_token_index": model.image_token(),
        "tie_word_embeddings": false,
        "text_config": text,
        "vision_config": {
            "model_type": TOWER_TYPE,
            "hidden_size": vision.width,
            "intermediate_size": vision.d_ff,
            "attention_heads": vision.heads,
            "num_hidden_layers": vision.layers,
            "num_global_layers": vision.global_layers,
            "hidden_act": "gelu",
            "num_channels": CHANNELS,
            "image_size": vision.tile_size,
            "patch_size": vision.patch_size,
            "max_num_tiles": vision.max_tiles,
            "supported_aspect_ratios": vision.aspect_ratios,
            "intermediate_layers_indices": vision.intermediate_layers,
            "vision_output_dim": vision.output_width(),
            "norm_eps": vision.norm_epsilon,
            "initializer_range": vision.initializer_range,
        },
    })
}

/// The configuration under Hugging Face's keys.
fn hugging_face(model: &ModelConfig, family: &Family) -> Value {
    let mut value = json!({
        "vocab_size": model.vocab_size,
        "num_hidden_layers": model.layers.len(),
        "hidden_size": model.d_model,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.context_length,
        "rope_theta": model.rope_theta,
        "rope_parameters": rope_parameters(model),
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied_embeddings,
        "initializer_range": model.initializer_range,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        // Some families have a default that may be no token of this vocabulary, or one whose embedding is then not trained.
        "pad_token_id": null,
    });
    let fields = value.as_object_mut().expect("an object");
    if model.rope_scaling.is_some() {
        // The name of older versions.
        fields.insert("rope_scaling".to_owned(), rope_parameters(model));
    }
    add_attention(fields, model, family);
    let (dense, widths): (Vec<usize>, Vec<usize>) = model.dense_layers().unzip();
    let Some(moe) = &model.moe else {
        fields.insert(family.d_ff.to_owned(), json!(widths[0]));
        return value;
    };
    add_mixture(fields, moe, family);
    let mut add = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    match family.dense_layers {
        DenseLayers::None => return value,
        DenseLayers::Any => {
            add("decoder_sparse_step", json!(1));
            add("mlp_only_layers", json!(dense));
        }
        DenseLayers::First => {
            add("first_k_dense_replace", json!(dense.len()));
        }
    }
    let d_ff = widths.first().copied();
    let d_ff = d_ff.unwrap_or_else(|| moe.experts.active_d_ff());
    add("intermediate_size", json!(d_ff));
    value
}

/// What a mixture is, but for which layers are dense.
fn add_mixture(
    fields: &mut Map<String, Value>,
    MoeConfig { experts, router }: &MoeConfig,
    family: &Family,
) {
    // When balanced, Hugging Face's pooled loss is k and our per-layer loss is 1; the product with the coefficient must
    // be the same.
    let mut add = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    for key in family.experts {
        add(key, json!(experts.count));
    }
    add(family.d_ff, json!(experts.d_ff));
    add("num_experts_per_tok", json!(experts.top_k));
    add("norm_topk_prob", json!(router.normalize));
    add("output_router_logits", json!(false));
    let coefficient = match router.balance {
        BalanceKind::Pooled | BalanceKind::Quantile => router.balance_coefficient,
        BalanceKind::PerLayer => router.balance_coefficient / experts.top_k as f64,
    };
    match family.router {
        RouterKind::Softmax | RouterKind::GptOss => {
            add("router_aux_loss_coef", json!(coefficient));
        }
        RouterKind::Qwen2Moe => {
            add("router_aux_loss_coef", json!(coefficient));
            add(
                "shared_expert_intermediate_size",
                json!(experts.shared_d_ff),
            );
        }
        RouterKind::DeepSeekV3 => {
            add(
                "n_shared_experts",
                json!(experts.shared_d_ff / experts.d_ff),
            );
            add("n_group", json!(router.groups));
            add("topk_group", json!(router.top_groups));
            add("routed_scaling_factor", json!(router.scaling));
        }
    }
    if let ExpertActivation::ClampedSwiglu { alpha, limit } = experts.activation {
        add("swiglu_alpha", json!(alpha));
        add("swiglu_limit", json!(limit));
    }
}

/// The factor whose product with the width of a head, rounded down, is the number of values that are rotated.
fn partial_rotary_factor(model: &ModelConfig) -> f64 {
    let head_dim = model.head_dim as f64;
    let mut factor = model.rotary_dim as f64 / head_dim;
    while ((head_dim * factor) as usize) < model.rotary_dim {
        factor = factor.next_up();
    }
    factor
}

/// Says which layers attend to a window, or that none does where the family might have one; which have no rotary
/// positions; and whether there are biases.
fn add_attention(fields: &mut Map<String, Value>, model: &ModelConfig, family: &Family) {
    let mut windows = model
        .layers
        .iter()
        .filter_map(|layer| layer.attention.window());
    let alternating = family.windows == Windows::Alternating;
    // Of a family with layer_types always, `transformers` asks for one even where no layer has it.
    let unused = family.defaults.sliding_window.filter(|_| alternating);
    let window = windows.next().or(unused);
    let mut add = |key: &str, value: Value| _ = fields.insert(key.to_owned(), value);
    if window.is_some() || family.defaults.sliding_window.is_some() {
        add("sliding_window", json!(window));
    }
    if family.usage("use_sliding_window").is_some() {
        add("use_sliding_window", json!(window.is_some()));
    }
    let biased = json!(model.attention_bias != AttentionBias::None);
    match family.bias {
        Bias::Qkv => {}
        Bias::QkvBias => add("qkv_bias", biased),
        Bias::None | Bias::AsConfigured | Bias::QkvAsConfigured => add("attention_bias", biased),
    }
    if let Some(latent) = &model.latent {
        // To `transformers` the width of the rotary positions.
        add("head_dim", json!(model.rotary_dim));
        add("qk_head_dim", json!(model.head_dim));
        add("qk_nope_head_dim", json!(model.head_dim - model.rotary_dim));
        add("qk_rope_head_dim", json!(model.rotary_dim));
        add("v_head_dim", json!(latent.value_dim));
        add("kv_lora_rank", json!(latent.rank));
        add("q_lora_rank", json!(latent.query_rank));
        add("rope_interleave", json!(latent.interleaved));
    }
    if family.multipliers {
        let factors = &model.multipliers;
        let usual = Multipliers::usual_attention(model.head_dim);
        add("embedding_multiplier", json!(factors.embedding));
        add("residual_multiplier", json!(factors.residual));
        add(
            "attention_multiplier",
            json!(factors.attention.unwrap_or(usual)),
        );
        add("logits_scaling", json!(factors.logits_divisor));
    }
    if let Some(switch) = family.qk_norm_switch {
        add(switch, json!(model.qk_norm != QkNorm::None));
    }
    if family.partial_rotary {
        add("partial_rotary_factor", json!(partial_rotary_factor(model)));
    }
    if family.nope {
        let rotary = model.layers.iter();
        let rotary = rotary.map(|layer| u8::from(layer.attention != AttentionKind::Nope));
        add("no_rope_layers", rotary.collect());
    }
    let by_layer = matches!(family.windows, Windows::ByLayer | Windows::EvenBelow);
    if alternating || window.is_some() && by_layer {
        let kinds = model.layers.iter().map(|layer| match layer.attention {
            AttentionKind::Window(_) => "sliding_attention",
            AttentionKind::Full | AttentionKind::Nope | AttentionKind::Cross => "full_attention",
        });
        add("layer_types", kinds.collect());
    }
}

/// The rotary positions under Hugging Face's keys.
fn rope_parameters(model: &ModelConfig) -> Value {
    let theta = model.rope_theta;
    match &model.rope_scaling {
        None => json!({ "rope_theta": theta, "rope_type": "default" }),
        Some(RopeScaling::Linear { factor }) => {
            json!({ "rope_theta": theta, "rope_type": "linear", "factor": factor })
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        }) => json!({
            "rope_theta": theta,
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context,
        }),
        Some(RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
            mscale_all_dim,
        }) => {
            let mut yarn = json!({
                "rope_theta": theta,
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_context,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "attention_factor": attention_factor,
                "truncate": truncate,
            });
            if *mscale_all_dim != 0.0 {
                yarn["mscale_all_dim"] = json!(mscale_all_dim);
            }
            yarn
        }
    }
}
