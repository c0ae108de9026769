//! What metadata says of a model, in the words of config.json, so that it is read and checked as any other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::architecture::Architecture;
use super::file::GgufFile;
use super::keys::{self, SIGMOID};
use super::names::{EMBEDDING, HEAD, ROPE_FACTORS};
use super::tokenizer_keys;
use super::value::{Number, Value};
use crate::families::{Bias, Family, RouterKind};
use crate::fields::Fields;
use crate::{Accept, CheckpointConfig, CheckpointError};
use firebox_model::config::{FeedForwardName, LatentConfig, MOST_LAYERS, ModelConfig, RopeScaling};
use firebox_model::rope::{frequencies, yarn_length};

type Read<T> = Result<T, CheckpointError>;

/// Reads what the metadata of a file says. A key of its architecture that Firebox does not know may be accepted, as a field of
/// config.json may.
///
/// # Errors
///
/// When a key is missing or has a value that Firebox does not support, and see [`crate::read_config`].
pub(crate) fn read_config(path: &Path, accept: Accept) -> Read<CheckpointConfig> {
    let file = GgufFile::open(path)?;
    let fields = fields(&file)?;
    let config = Fields::new(path, &fields, accept).and_then(|fields| fields.config());
    let config = config.map_err(|error| in_words_of_the_file(error, file.architecture()))?;
    check_factors(&file, &config.model)?;
    Ok(config)
}

/// Which keys say what these fields of config.json say.
const KEYS_OF_FIELDS: [(&str, &str); 36] = [
    ("attention_multiplier", keys::ATTENTION_SCALE),
    ("embedding_multiplier", keys::EMBEDDING_SCALE),
    ("first_k_dense_replace", keys::DENSE_LAYERS),
    ("head_dim", keys::KEY_WIDTH),
    ("hidden_size", keys::WIDTH),
    ("intermediate_size", keys::D_FF),
    ("kv_lora_rank", keys::RANK),
    ("layer_types", keys::WINDOW_PATTERN),
    ("logits_scaling", keys::LOGIT_SCALE),
    ("max_position_embeddings", keys::CONTEXT),
    ("moe_intermediate_size", keys::EXPERT_D_FF),
    ("n_group", keys::GROUPS),
    ("n_routed_experts", keys::EXPERTS),
    ("n_shared_experts", keys::SHARED),
    ("norm_topk_prob", keys::WEIGHT_NORM),
    ("num_attention_heads", keys::HEADS),
    ("num_experts", keys::EXPERTS),
    ("num_experts_per_tok", keys::TOP_K),
    ("num_hidden_layers", keys::LAYERS),
    ("num_key_value_heads", keys::KV_HEADS),
    ("num_local_experts", keys::EXPERTS),
    ("partial_rotary_factor", keys::ROTARY),
    ("q_lora_rank", keys::QUERY_RANK),
    ("qk_nope_head_dim", keys::LATENT_KEY_WIDTH),
    ("qk_rope_head_dim", keys::ROTARY),
    ("residual_multiplier", keys::RESIDUAL_SCALE),
    ("rms_norm_eps", keys::EPSILON),
    ("rope_theta", keys::ROPE_BASE),
    ("routed_scaling_factor", keys::WEIGHT_SCALE),
    ("shared_expert_intermediate_size", keys::SHARED_D_FF),
    ("sliding_window", keys::WINDOW),
    ("topk_group", keys::TOP_GROUPS),
    ("v_head_dim", keys::LATENT_VALUE_WIDTH),
    ("vocab_size", keys::VOCABULARY),
    ("rope_parameters.factor", keys::SCALING_FACTOR),
    (
        "rope_parameters.original_max_position_embeddings",
        keys::ORIGINAL_CONTEXT,
    ),
];

/// A refusal of a field of config.json as one of the key that says it.
fn in_words_of_the_file(error: CheckpointError, architecture: &Architecture) -> CheckpointError {
    let CheckpointError::Config {
        path,
        key,
        value,
        rule,
    } = error
    else {
        return error;
    };
    let named = |text: &str| {
        let word = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '.';
        let mut rest = text;
        let mut named = String::new();
        while let Some(start) = rest.find(word) {
            let end = rest[start..].find(|letter| !word(letter));
            let end = end.map_or(rest.len(), |length| start + length);
            named.push_str(&rest[..start]);
            let mut names = KEYS_OF_FIELDS.iter();
            let found = names.find(|(field, _)| rest[start..end] == **field);
            match found {
                Some((_, key)) => named.push_str(&format!("{}.{key}", architecture.name)),
                None => named.push_str(&rest[start..end]),
            }
            rest = &rest[end..];
        }
        named + rest
    };
    CheckpointError::Config {
        path,
        key: named(&key),
        value,
        rule: named(&rule),
    }
}

/// The keys of an architecture, and which of them were asked for.
struct Keys<'a> {
    path: &'a Path,
    architecture: Architecture,
    metadata: &'a BTreeMap<String, Value>,
    known: BTreeSet<String>,
}

/// The fields of config.json.
fn fields(file: &GgufFile) -> Read<Map<String, Json>> {
    let architecture = *file.architecture();
    let mut keys = Keys {
        path: file.path(),
        architecture,
        metadata: file.metadata(),
        known: BTreeSet::new(),
    };
    let has_experts = keys.size_or(keys::EXPERTS, 0)? > 0;
    let fits = |family: &&Family| has_experts == (family.feed_forward == FeedForwardName::Moe);
    let family = architecture.families.iter().find(fits);
    let family = family.unwrap_or(&architecture.families[0]);
    let mut fields = Map::new();
    fields.insert("model_type".to_owned(), json!(family.model_type));
    keys.add_sizes(&mut fields, file)?;
    keys.add_attention(&mut fields, family, file)?;
    keys.add_positions(&mut fields, file)?;
    keys.add_feed_forwards(&mut fields, family, has_experts)?;
    keys.add_tokens(&mut fields)?;
    keys.add_unknown(&mut fields);
    Ok(fields)
}

impl<'a> Keys<'a> {
    /// A key of the architecture.
    fn get(&mut self, key: &str) -> Option<&'a Value> {
        let key = format!("{}.{key}", self.architecture.name);
        self.known.insert(key.clone());
        self.metadata.get(&key)
    }

    fn wrong(&self, key: &str, reason: &str) -> CheckpointError {
        CheckpointError::Damaged {
            path: self.path.to_owned(),
            reason: format!("{}.{key} {reason}", self.architecture.name),
        }
    }

    /// A size; every value of an array of them where a file gives one for each layer, which have to be one.
    fn size(&mut self, key: &str) -> Read<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = match value.as_numbers() {
            None => value.as_u64(),
            Some(mut numbers) => {
                let first = numbers.next().map(Number::as_u64);
                if numbers.any(|number| Some(number.as_u64()) != first) {
                    let reason = "differs between layers, which Firebox does not compute";
                    return Err(self.wrong(key, reason));
                }
                first.flatten()
            }
        };
        let size = size.and_then(|size| usize::try_from(size).ok());
        match size {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(key, "must be an integer of 0 or above")),
        }
    }

    fn size_or(&mut self, key: &str, absent: usize) -> Read<usize> {
        Ok(self.size(key)?.unwrap_or(absent))
    }

    fn needed(&mut self, key: &str) -> Read<usize> {
        self.size(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    fn number(&mut self, key: &str) -> Read<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, "must be a finite number")),
        }
    }

    fn flag(&mut self, key: &str) -> Read<Option<bool>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_bool() {
            Some(flag) => Ok(Some(flag)),
            None => Err(self.wrong(key, "must be a truth value")),
        }
    }

    /// A key of no architecture; `None` if it is absent.
    fn general<T>(
        &self,
        key: &str,
        read: impl Fn(&Value) -> Option<T>,
        allowed: &str,
    ) -> Read<Option<T>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(CheckpointError::Damaged {
                path: self.path.to_owned(),
                reason: format!("{key} must be {allowed}"),
            }),
        }
    }

    fn add_sizes(&mut self, fields: &mut Map<String, Json>, file: &GgufFile) -> Read<()> {
        let mut add = |key: &str, value: Json| _ = fields.insert(key.to_owned(), value);
        let rows = file.info(EMBEDDING).map(|info| info.shape[0]);
        let rows = rows.ok_or_else(|| CheckpointError::Damaged {
            path: self.path.to_owned(),
            reason: format!("the tensor {EMBEDDING} is missing"),
        })?;
        // A note of how many rows the embedding has.
        self.size(keys::VOCABULARY)?;
        add("vocab_size", json!(rows));
        add(
            "max_position_embeddings",
            json!(self.needed(keys::CONTEXT)?),
        );
        add("hidden_size", json!(self.needed(keys::WIDTH)?));
        add("num_hidden_layers", json!(self.needed(keys::LAYERS)?));
        let epsilon = self.number(keys::EPSILON)?;
        let epsilon = epsilon.ok_or_else(|| self.wrong(keys::EPSILON, "is missing"))?;
        add("rms_norm_eps", json!(epsilon));
        add("tie_word_embeddings", json!(file.info(HEAD).is_none()));
        Ok(())
    }

    fn add_attention(
        &mut self,
        fields: &mut Map<String, Json>,
        family: &Family,
        file: &GgufFile,
    ) -> Read<()> {
        if family.latent {
            return self.add_latent_attention(fields);
        }
        let mut add = |key: &str, value: Json| _ = fields.insert(key.to_owned(), value);
        let (heads, width) = (self.needed(keys::HEADS)?, self.needed(keys::WIDTH)?);
        let of_heads = width / heads.max(1);
        let key_width = self.size_or(keys::KEY_WIDTH, of_heads)?;
        if self.size_or(keys::VALUE_WIDTH, of_heads)? != key_width {
            let reason = format!("must be that of keys, {key_width}");
            return Err(self.wrong(keys::VALUE_WIDTH, &reason));
        }
        add("num_attention_heads", json!(heads));
        add(
            "num_key_value_heads",
            json!(self.size_or(keys::KV_HEADS, heads)?),
        );
        add("head_dim", json!(key_width));
        let rotated = self.size_or(keys::ROTARY, key_width)?;
        match family.partial_rotary {
            true => add(
                "partial_rotary_factor",
                json!(rotated as f64 / key_width as f64),
            ),
            false if rotated == key_width => {}
            false => {
                let reason = format!("must be the width of a head, {key_width}");
                return Err(self.wrong(keys::ROTARY, &reason));
            }
        }
        let has = |tensor: &str| file.info(&format!("blk.0.{tensor}")).is_some();
        match family.bias {
            Bias::None | Bias::Qkv => {}
            Bias::QkvBias => add("qkv_bias", json!(has("attn_q.bias"))),
            Bias::AsConfigured | Bias::QkvAsConfigured => {
                add("attention_bias", json!(has("attn_q.bias")));
            }
        }
        if let Some(switch) = family.qk_norm_switch {
            add(switch, json!(has("attn_q_norm.weight")));
        }
        if self.architecture.windows {
            let layers = self.needed(keys::LAYERS)?;
            add("sliding_window", json!(self.needed(keys::WINDOW)?));
            add("layer_types", self.layer_types(layers)?);
        } else if family.defaults.sliding_window.is_some() {
            add("sliding_window", Json::Null);
        }
        if family.multipliers {
            let usual = (key_width as f64).sqrt().recip();
            // llama.cpp takes 0 for a factor that is not there.
            let attention = self
                .number(keys::ATTENTION_SCALE)?
                .filter(|&scale| scale != 0.0);
            add("attention_multiplier", json!(attention.unwrap_or(usual)));
            for (field, key) in [
                ("embedding_multiplier", keys::EMBEDDING_SCALE),
                ("residual_multiplier", keys::RESIDUAL_SCALE),
                ("logits_scaling", keys::LOGIT_SCALE),
            ] {
                let factor = self.number(key)?.filter(|&factor| factor != 0.0);
                add(field, json!(factor.unwrap_or(1.0)));
            }
        }
        Ok(())
    }

    /// Latent attention, whose keys and values are one for all heads to llama.cpp: the latent, with the rotated key.
    fn add_latent_attention(&mut self, fields: &mut Map<String, Json>) -> Read<()> {
        let (heads, rank) = (self.needed(keys::HEADS)?, self.needed(keys::RANK)?);
        let rotated = self.needed(keys::ROTARY)?;
        let key_width = self.needed(keys::LATENT_KEY_WIDTH)?;
        let plain = key_width.checked_sub(rotated).filter(|&plain| plain > 0);
        let plain = plain.ok_or_else(|| {
            let reason = format!("must be above {}, {rotated}", keys::ROTARY);
            self.wrong(keys::LATENT_KEY_WIDTH, &reason)
        })?;
        for (key, expected) in [
            (keys::KV_HEADS, 1),
            (keys::KEY_WIDTH, rank.saturating_add(rotated)),
            (keys::VALUE_WIDTH, rank),
        ] {
            if self.needed(key)? != expected {
                let reason = format!("must be {expected}: all heads share one latent");
                return Err(self.wrong(key, &reason));
            }
        }
        if self.number(keys::EPSILON)? != Some(LatentConfig::NORM_EPSILON) {
            let reason = "must be 1e-6, that of the latents' norms";
            return Err(self.wrong(keys::EPSILON, reason));
        }
        let query_rank = self.size_or(keys::QUERY_RANK, 0)?;
        let value_dim = self.needed(keys::LATENT_VALUE_WIDTH)?;
        for (field, value) in [
            ("num_attention_heads", json!(heads)),
            ("num_key_value_heads", json!(heads)),
            ("kv_lora_rank", json!(rank)),
            ("q_lora_rank", json!((query_rank > 0).then_some(query_rank))),
            ("qk_rope_head_dim", json!(rotated)),
            ("qk_nope_head_dim", json!(plain)),
            ("v_head_dim", json!(value_dim)),
            ("rope_interleave", json!(true)),
            ("attention_bias", json!(false)),
        ] {
            fields.insert(field.to_owned(), value);
        }
        Ok(())
    }

    /// Every other layer has a window, unless the file says which.
    fn layer_types(&mut self, layers: usize) -> Read<Json> {
        let named = |window| match window {
            true => "sliding_attention",
            false => "full_attention",
        };
        let Some(value) = self.get(keys::WINDOW_PATTERN) else {
            // More layers than a model may have are refused by their number.
            let layers = 0..layers.min(MOST_LAYERS + 1);
            return Ok(layers.map(|layer| named(layer.is_multiple_of(2))).collect());
        };
        let numbers = value.as_numbers().filter(|numbers| numbers.len() == layers);
        let flags = numbers.and_then(|mut numbers| {
            numbers.try_fold(Vec::new(), |mut flags, number| {
                flags.push(named(number.as_flag()?));
                Some(flags)
            })
        });
        match flags {
            Some(flags) if layers <= MOST_LAYERS => Ok(json!(flags)),
            _ => {
                let reason =
                    format!("must be a list of a truth value for each of the {layers} layers");
                Err(self.wrong(keys::WINDOW_PATTERN, &reason))
            }
        }
    }

    fn add_positions(&mut self, fields: &mut Map<String, Json>, file: &GgufFile) -> Read<()> {
        let theta = self.number(keys::ROPE_BASE)?.unwrap_or(10_000.0);
        self.get(keys::FINETUNED);
        let kind = self
            .get(keys::SCALING)
            .map(|value| value.as_text().map(str::to_owned));
        let factor = self
            .number(keys::SCALING_FACTOR)?
            .filter(|&factor| factor != 0.0);
        let mut rope = match kind.as_ref().map(Option::as_deref) {
            Some(Some("none")) => json!({ "rope_type": "default" }),
            None | Some(Some("linear")) => match factor.filter(|&factor| factor != 1.0) {
                None => json!({ "rope_type": "default" }),
                Some(_) if self.architecture.latent => {
                    let reason = "must be none or yarn: of latent attention, llama.cpp scales the scores too";
                    return Err(self.wrong(keys::SCALING, reason));
                }
                Some(factor) => json!({ "rope_type": "linear", "factor": factor }),
            },
            Some(Some("yarn")) => {
                let factor =
                    factor.ok_or_else(|| self.wrong(keys::SCALING_FACTOR, "is missing"))?;
                let context = self.needed(keys::CONTEXT)?;
                let original = self.size_or(keys::ORIGINAL_CONTEXT, context)?;
                let further = self.number(keys::ATTENTION_FACTOR)?;
                let further = further.filter(|&further| further != 1.0);
                // What was a short decimal number before it was multiplied or divided.
                let short = |number: f64| Number::Single(number as f32).as_f64();
                let m = match self.architecture.latent {
                    true => self.number(keys::LOG_MULTIPLIER)?.unwrap_or(0.0),
                    false => 0.0,
                };
                let m = short(m / keys::LOG_MULTIPLIER_UNIT).unwrap_or(0.0);
                // Where m is given, llama.cpp takes it for the m of rotated keys too, and divides by that of the scores.
                let attention_factor = match m == 0.0 {
                    true => further.and_then(|further| short(further * yarn_length(factor, 1.0))),
                    false => Some(further.unwrap_or(1.0)),
                };
                let length = attention_factor.unwrap_or_else(|| yarn_length(factor, 1.0));
                if self.architecture.latent && (length != 1.0 || factor < 1.0) {
                    let reason = "lengthens rotated keys, of latent attention, and llama.cpp then scales all scores";
                    return Err(self.wrong(keys::ATTENTION_FACTOR, reason));
                }
                json!({
                    "rope_type": "yarn",
                    "factor": factor,
                    "original_max_position_embeddings": original,
                    "beta_fast": self.number(keys::BETA_FAST)?.unwrap_or(32.0),
                    "beta_slow": self.number(keys::BETA_SLOW)?.unwrap_or(1.0),
                    "attention_factor": attention_factor,
                    "mscale_all_dim": m,
                })
            }
            Some(_) => return Err(self.wrong(keys::SCALING, "must be none, linear or yarn")),
        };
        if file.info(ROPE_FACTORS).is_some() {
            if !self.architecture.factors {
                let reason = format!("has no tensor {ROPE_FACTORS}, and the file has");
                return Err(self.wrong(keys::SCALING, &reason));
            }
            if rope["rope_type"] != "default" {
                let reason = format!("and {ROPE_FACTORS} both scale rotary positions");
                return Err(self.wrong(keys::SCALING, &reason));
            }
            // The original context of those that Llama 3.1 and 3.2 have.
            self.size(keys::ORIGINAL_CONTEXT)?;
            rope = self.llama3(file)?;
        }
        rope["rope_theta"] = json!(theta);
        fields.insert("rope_parameters".to_owned(), rope);
        Ok(())
    }

    /// The four numbers of Llama 3's scaling: those that Firebox wrote, or those of Llama 3.1 and 3.2, whose factor is the largest
    /// divisor. Whether the tensor has the divisors that follow from them is checked by [`check_factors`].
    fn llama3(&self, file: &GgufFile) -> Read<Json> {
        let largest = file.read(ROPE_FACTORS)?.into_iter().fold(1.0, f32::max);
        let number = |key: &str, absent: f64| {
            let finite = |value: &Value| value.as_f64().filter(|number| number.is_finite());
            let key = format!("{}.{key}", keys::LLAMA3);
            let number = self.general(&key, finite, "a finite number")?;
            Read::Ok(number.unwrap_or(absent))
        };
        Ok(json!({
            "rope_type": "llama3",
            "factor": number("factor", largest.into())?,
            "low_freq_factor": number("low_freq_factor", 1.0)?,
            "high_freq_factor": number("high_freq_factor", 4.0)?,
            "original_max_position_embeddings": number("original_context", 8192.0)? as u64,
        }))
    }

    fn add_feed_forwards(
        &mut self,
        fields: &mut Map<String, Json>,
        family: &Family,
        has_experts: bool,
    ) -> Read<()> {
        let mut add = |key: &str, value: Json| _ = fields.insert(key.to_owned(), value);
        if !has_experts {
            add("intermediate_size", json!(self.needed(keys::D_FF)?));
            return Ok(());
        }
        let count = self.needed(keys::EXPERTS)?;
        for key in family.experts {
            add(key, json!(count));
        }
        add("num_experts_per_tok", json!(self.needed(keys::TOP_K)?));
        let dense = self.size(keys::D_FF)?;
        let width = match self.architecture.expert_width {
            true => self.needed(keys::EXPERT_D_FF)?,
            false => dense.ok_or_else(|| self.wrong(keys::D_FF, "is missing"))?,
        };
        // llama.cpp writes that of the experts here too, where there are no dense layers.
        if family.d_ff != "intermediate_size" && family.usage("first_k_dense_replace").is_some() {
            add("intermediate_size", json!(dense.unwrap_or(width)));
        }
        add(family.d_ff, json!(width));
        let normalizes = match self.architecture.normalizes {
            Some(normalizes) => normalizes,
            None => self.flag(keys::WEIGHT_NORM)?.unwrap_or(false),
        };
        if family.usage("norm_topk_prob").is_some() {
            add("norm_topk_prob", json!(normalizes));
        }
        match family.router {
            RouterKind::Softmax | RouterKind::GptOss => {}
            RouterKind::Qwen2Moe => {
                let shared = self.needed(keys::SHARED_D_FF)?;
                add("shared_expert_intermediate_size", json!(shared));
            }
            RouterKind::DeepSeekV3 => {
                // Files of DeepSeek-V2 have no such key, and mean a softmax.
                let absent = if family.latent { 1 } else { SIGMOID };
                if self.size_or(keys::GATING, absent)? != SIGMOID {
                    return Err(self.wrong(keys::GATING, "must be 2, the sigmoid of each logit"));
                }
                add("n_shared_experts", json!(self.needed(keys::SHARED)?));
                let dense = self.size_or(keys::DENSE_LAYERS, 0)?;
                add("first_k_dense_replace", json!(dense));
                // llama.cpp takes 0 for a factor that is not there.
                let scale = self
                    .number(keys::WEIGHT_SCALE)?
                    .filter(|&scale| scale != 0.0);
                add("routed_scaling_factor", json!(scale.unwrap_or(1.0)));
                let groups = self.size_or(keys::GROUPS, 1)?.max(1);
                add("n_group", json!(groups));
                add(
                    "topk_group",
                    json!(self.size_or(keys::TOP_GROUPS, groups)?.max(1)),
                );
            }
        }
        Ok(())
    }

    fn add_tokens(&mut self, fields: &mut Map<String, Json>) -> Read<()> {
        let id = |key: &str| {
            let of_32_bits = |value: &Value| value.as_u64().filter(|&id| id <= u32::MAX.into());
            self.general(key, of_32_bits, "the id of a token")
        };
        let mut ends: Vec<u64> = Vec::new();
        for key in tokenizer_keys::EOS {
            if let Some(id) = id(key)?.filter(|id| !ends.contains(id)) {
                ends.push(id);
            }
        }
        fields.insert("eos_token_id".to_owned(), json!(ends));
        // llama.cpp wants one even where no text begins with it.
        let begins = self.general(tokenizer_keys::ADD_BOS, Value::as_bool, "a truth value")?;
        let begin = id(tokenizer_keys::BOS)?.filter(|_| begins != Some(false));
        fields.insert("bos_token_id".to_owned(), json!(begin));
        if let Some(mask) = self.general(keys::DOCUMENT_MASK, Value::as_bool, "a truth value")? {
            fields.insert("firebox_document_mask".to_owned(), json!(mask));
        }
        Ok(())
    }

    /// Adds the keys of the architecture that nothing has asked for, under their own names, so that they are refused by name or
    /// accepted.
    fn add_unknown(&self, fields: &mut Map<String, Json>) {
        let prefix = format!("{}.", self.architecture.name);
        let unknown = self
            .metadata
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix) && !self.known.contains(key.as_str()));
        fields.extend(unknown.map(|(key, value)| (key.clone(), value.to_json())));
    }
}

/// Checks that the divisors of rotary frequencies in a file are those of its four numbers.
fn check_factors(file: &GgufFile, model: &ModelConfig) -> Read<()> {
    let Some(stored) = file.info(ROPE_FACTORS).map(|_| file.read(ROPE_FACTORS)) else {
        return Ok(());
    };
    let (stored, expected) = (stored?, rope_factors(model));
    let near = |(stored, expected): (&f32, &f32)| (stored - expected).abs() <= 1e-5 * expected;
    if stored.len() == expected.len() && stored.iter().zip(&expected).all(near) {
        return Ok(());
    }
    Err(CheckpointError::Damaged {
        path: file.path().to_owned(),
        reason: format!(
            "the values of {ROPE_FACTORS} are neither those of Llama 3.1 nor those that {} says",
            keys::LLAMA3
        ),
    })
}

/// The divisors of rotary frequencies of a model that scales them as Llama 3 does.
pub(super) fn rope_factors(model: &ModelConfig) -> Vec<f32> {
    let plain = ModelConfig {
        rope_scaling: None,
        ..model.clone()
    };
    let (plain, scaled) = (frequencies(&plain), frequencies(model));
    let pairs = plain.radians.iter().zip(&scaled.radians);
    pairs.map(|(plain, scaled)| plain / scaled).collect()
}

/// Whether a model's rotary frequencies have divisors of their own.
pub(super) fn has_rope_factors(model: &ModelConfig) -> bool {
    matches!(model.rope_scaling, Some(RopeScaling::Llama3 { .. }))
}
