//! The fields of a `config.json`: each is read, known to say nothing of what is computed, or refused by name.

mod attention;
mod mixture;
mod rope;
mod vision;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::accept::ACCEPTED;
use super::families::{Bias, DenseLayers, FIREBOX, Family, RouterKind, Usage, Windows};
use super::{Accept, CheckpointConfig, CheckpointError, Notes};
use firebox_model::config::{
    ConfigError, FeedForwardKind, LayerConfig, MOST_LAYERS, ModelConfig, ModelKeys, QkNorm,
};

/// A file that is being read.
pub(super) struct Fields<'a> {
    path: &'a Path,
    value: &'a Map<String, Value>,
    family: Family,
    table: Table,
    accept: Accept<'a>,
    /// The fields that are accepted, now or when the file was written.
    accepted: BTreeSet<&'a str>,
}

/// Which table of a config.json is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    /// The only one, of a model of text alone.
    Only,
    /// The whole file of a model with a tower.
    Top,
    /// `text_config` in it.
    Text,
    /// `vision_config` in it.
    Tower,
}

impl Table {
    /// What stands before a field in its path.
    fn prefix(self) -> &'static str {
        match self {
            Self::Only | Self::Top => "",
            Self::Text => "text_config.",
            Self::Tower => "vision_config.",
        }
    }
}

/// Whether a value comes to nothing, so that the option that it is of is not in use.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::String(_) => false,
    }
}

/// Fields that say that the weights are quantized.
const QUANTIZATION: [&str; 3] = ["compression_config", "quantization", "quantization_config"];

type Read<T> = Result<T, CheckpointError>;

impl<'a> Fields<'a> {
    /// A file whose fields are all its family's, accepted, or come to nothing.
    pub(super) fn new(
        path: &'a Path,
        value: &'a Map<String, Value>,
        accept: Accept<'a>,
    ) -> Read<Self> {
        let kind = value.get("model_type").unwrap_or(&Value::Null);
        let known = Family::ALL
            .into_iter()
            .find(|family| kind == family.model_type);
        let Some(family) = known else {
            let names = Family::ALL.map(|family| family.model_type).join(", ");
            let rule = format!("Firebox reads {names}");
            return Err(refusal(path, "model_type", kind, &rule));
        };
        let mut fields = Self {
            path,
            value,
            family,
            table: match family.vision {
                true => Table::Top,
                false => Table::Only,
            },
            accept,
            accepted: BTreeSet::new(),
        };
        fields.accepted = fields.remembered()?;
        for key in accept.fields() {
            fields.refuse_known(key)?;
            fields.accepted.insert(key);
        }
        for (key, value) in value {
            fields.check(key, value)?;
        }
        Ok(fields)
    }

    /// The unknown fields that were accepted when the file was written.
    fn remembered(&self) -> Read<BTreeSet<&'a str>> {
        let Some(value) = self.value.get(ACCEPTED) else {
            return Ok(BTreeSet::new());
        };
        let names = value
            .as_array()
            .and_then(|names| names.iter().map(Value::as_str).collect());
        let mut names: BTreeSet<&str> =
            names.ok_or_else(|| self.error(ACCEPTED, value, "must be a list of fields"))?;
        // Firebox may have come to know a field since then.
        names.retain(|name| self.value.contains_key(*name) && self.is_unknown(name));
        Ok(names)
    }

    fn is_unknown(&self, key: &str) -> bool {
        self.usage(key).is_none() && !QUANTIZATION.contains(&key)
    }

    /// Only what Firebox does not know can be accepted.
    fn refuse_known(&self, key: &str) -> Read<()> {
        let (path, option) = (self.path.to_owned(), self.accept.option());
        let key = key.to_owned();
        let Some(value) = self.value.get(&key) else {
            let refused = self.value.iter().filter(|(key, value)| {
                matches!(
                    self.check(key, value),
                    Err(CheckpointError::ForeignField { .. })
                )
            });
            return Err(CheckpointError::AcceptedAbsent {
                path,
                key,
                option,
                unknown: refused.map(|(key, _)| key.clone()).collect(),
            });
        };
        if self.is_unknown(&key) {
            return Ok(());
        }
        let found = self
            .check(&key, value)
            .and_then(|()| self.config().map(drop));
        let reason = match found {
            Err(CheckpointError::Config {
                key: refused, rule, ..
            }) if refused == key || refused.starts_with(&format!("{key}.")) => rule,
            Err(CheckpointError::Quantized { .. }) => "the weights are quantized".to_owned(),
            _ if self.usage(&key) == Some(Usage::Read) => {
                "it is part of the computation".to_owned()
            }
            _ => "it is ignored anyway".to_owned(),
        };
        Err(CheckpointError::AcceptedKnown {
            path,
            key,
            value: value.to_string(),
            option,
            reason,
        })
    }

    /// What the file says.
    pub(super) fn config(&self) -> Read<CheckpointConfig> {
        let family = self.family;
        if self.table == Table::Top {
            return self.config_of_tables();
        }
        let model = match family == FIREBOX {
            true => self.own_model()?,
            false => {
                let model = self.model()?;
                model.validate().map_err(|error| self.broken(error))?;
                model
            }
        };
        Ok(CheckpointConfig {
            model,
            family,
            eos_ids: self.token_ids("eos_token_id")?,
            bos_id: self.token_ids("bos_token_id")?.first().copied(),
            notes: Notes::of_file(self.value, &self.family, &self.accepted),
        })
    }

    /// The model of a file of Firebox's own family.
    fn own_model(&self) -> Read<ModelConfig> {
        let model = self.get("model").unwrap_or(&Value::Null);
        let keys: ModelKeys = serde_path_to_error::deserialize(model).map_err(|error| {
            let rule = error.inner().to_string();
            match error.path().to_string().as_str() {
                "." => self.error("model", model, &rule),
                path => self.error(&format!("model.{path}"), at(model, path), &rule),
            }
        })?;
        keys.resolve().map_err(|error| self.broken(error))
    }

    fn broken(&self, error: ConfigError) -> CheckpointError {
        let model = self.value.get("model").unwrap_or(&Value::Null);
        CheckpointError::Config {
            path: self.path.to_owned(),
            key: match self.table {
                Table::Only => self.field_of(error.key),
                Table::Top | Table::Text | Table::Tower => self.field_in_tables(error.key),
            },
            value: error
                .value
                .unwrap_or_else(|| at(model, error.key).to_string()),
            rule: self.in_words_of_the_file(error.rule),
        }
    }

    /// A rule with the names that the file has for other keys than the one that the rule is of.
    fn in_words_of_the_file(&self, rule: String) -> String {
        let keys = ["experts.count", "experts.top_k", "router.groups"];
        keys.into_iter()
            .fold(rule, |rule, key| rule.replace(key, &self.field_of(key)))
    }

    /// The field that a key of [`ModelKeys`] is read from.
    fn field_of(&self, key: &str) -> String {
        if self.family == FIREBOX {
            return format!("model.{key}");
        }
        if let Some(rest) = key.strip_prefix("rope_scaling.") {
            let table = match self.get("rope_parameters") {
                Some(_) => "rope_parameters",
                None => "rope_scaling",
            };
            let rest = match rest {
                "original_context" => "original_max_position_embeddings",
                rest => rest,
            };
            return format!("{table}.{rest}");
        }
        let field = match key {
            "layers" => "num_hidden_layers",
            "d_model" => "hidden_size",
            "heads" => "num_attention_heads",
            "kv_heads" => "num_key_value_heads",
            "context_length" => "max_position_embeddings",
            "window" => "sliding_window",
            "norm_epsilon" => "rms_norm_eps",
            "rotary_dim" if self.family.latent => "qk_rope_head_dim",
            "rotary_dim" => "partial_rotary_factor",
            "experts.count" => self.family.experts.first().copied().unwrap_or(key),
            "experts.top_k" => "num_experts_per_tok",
            "experts.d_ff" => self.family.d_ff,
            "experts.alpha" => "swiglu_alpha",
            "experts.limit" => "swiglu_limit",
            "dense.d_ff" => "intermediate_size",
            "dense.layers" if self.family.dense_layers == DenseLayers::First => {
                "first_k_dense_replace"
            }
            "dense.layers" => "mlp_only_layers",
            "experts.shared_d_ff" | "experts.shared_gate" => match self.family.router {
                RouterKind::Qwen2Moe => "shared_expert_intermediate_size",
                _ => "n_shared_experts",
            },
            "head_dim" if self.family.latent => "qk_nope_head_dim",
            "latent.rank" => "kv_lora_rank",
            "latent.query_rank" => "q_lora_rank",
            "latent.value_dim" => "v_head_dim",
            "multipliers.embedding" => "embedding_multiplier",
            "multipliers.residual" => "residual_multiplier",
            "multipliers.attention" => "attention_multiplier",
            "multipliers.logits_divisor" => "logits_scaling",
            "router.groups" => "n_group",
            "router.top_groups" => "topk_group",
            "router.scaling" => "routed_scaling_factor",
            "router.balance_coefficient" => "router_aux_loss_coef",
            key => key,
        };
        field.to_owned()
    }

    /// Refuses what the family does not have and nobody accepts, or Firebox does not compute: it may change what the
    /// network computes.
    fn check(&self, key: &str, value: &Value) -> Read<()> {
        match self.usage(key) {
            Some(Usage::Read | Usage::Neutral | Usage::Training) => Ok(()),
            Some(Usage::Only { values, rule }) => {
                let written = value.to_string();
                match value.is_null() || values.contains(&written.as_str()) {
                    true => Ok(()),
                    false => Err(self.error(key, value, rule)),
                }
            }
            Some(Usage::Off { rule }) => match is_off(value) {
                true => Ok(()),
                false => Err(self.error(key, value, rule)),
            },
            None if is_off(value) || key.starts_with('_') => Ok(()),
            // The tensors themselves say which of them are.
            None if key == "quantization_config" && self.family.is_packed(value) => Ok(()),
            None if QUANTIZATION.contains(&key) => Err(CheckpointError::Quantized {
                path: self.path.to_owned(),
                key: format!("{}{key}", self.table.prefix()),
                method: value
                    .get("quant_method")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            }),
            None if self.accepted.contains(key) => Ok(()),
            None => Err(self.foreign(key, value)),
        }
    }

    fn foreign(&self, key: &str, value: &Value) -> CheckpointError {
        CheckpointError::ForeignField {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.table.prefix()),
            value: value.to_string(),
            family: self.family.model_type,
            accept: self.accept.of(key),
        }
    }

    fn model(&self) -> Read<ModelConfig> {
        let family = &self.family;
        let absent = &family.defaults;
        let d_model = self.size_or("hidden_size", absent.hidden_size)?;
        let heads = self.size_or("num_attention_heads", absent.num_attention_heads)?;
        let layers = self.text_layers()?;
        let context = self.size_or("max_position_embeddings", absent.max_position_embeddings)?;
        if layers > MOST_LAYERS {
            let rule = format!("must be at most {MOST_LAYERS}");
            return Err(self.error("num_hidden_layers", &layers.into(), &rule));
        }
        let attention = self.attention(layers, context)?;
        let (rope_theta, rope_scaling) = self.rope(context)?;
        let feed_forwards = self.feed_forwards(layers)?;
        let sparse = feed_forwards.contains(&FeedForwardKind::Moe);
        let of_heads = d_model / heads.max(1);
        let latent = self.latent()?;
        let (head_dim, rotary_dim) = match (&latent, self.value.get("head_dim")) {
            (Some((_, widths)), _) => *widths,
            (None, None) => self.with_rotary_dim(absent.head_dim.unwrap_or(of_heads))?,
            (None, Some(_)) => self.with_rotary_dim(self.size_or("head_dim", of_heads)?)?,
        };
        let layer = |(attention, feed_forward)| LayerConfig {
            attention,
            feed_forward,
        };
        Ok(ModelConfig {
            vocab_size: self.size_or("vocab_size", absent.vocab_size)?,
            d_model,
            heads,
            kv_heads: self.kv_heads(heads)?,
            head_dim,
            rotary_dim,
            context_length: context,
            rope_theta,
            rope_scaling,
            norm_epsilon: self.number_or("rms_norm_eps", absent.rms_norm_eps)?,
            tied_embeddings: self.flag_or("tie_word_embeddings", absent.tie_word_embeddings)?,
            initializer_range: self.number_or("initializer_range", 0.02)?,
            multipliers: self.multipliers(head_dim)?,
            latent: latent.map(|(latent, _)| latent),
            qk_norm: match family.qk_norm_switch {
                Some(switch) if !self.flag(switch)? => QkNorm::None,
                _ => family.qk_norm,
            },
            sinks: family.sinks,
            attention_bias: self.attention_bias()?,
            layers: attention
                .into_iter()
                .zip(feed_forwards)
                .map(layer)
                .collect(),
            moe: match sparse {
                true => Some(self.moe()?),
                false => None,
            },
            vision: None,
        })
    }

    /// Where the field is there but null, a model has as many key/value heads as query heads.
    fn kv_heads(&self, heads: usize) -> Read<usize> {
        let key = "num_key_value_heads";
        let absent = match self.value.contains_key(key) {
            true => heads,
            false => self.family.defaults.num_key_value_heads.unwrap_or(heads),
        };
        self.size_or(key, absent)
    }

    /// One token or a list of them; none where it is absent.
    fn token_ids(&self, key: &str) -> Read<Vec<u32>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let ids = match value {
            Value::Array(_) => self.numbers(key, value)?,
            one => self.numbers(key, &Value::Array(vec![one.clone()]))?,
        };
        let small = |id: u64| u32::try_from(id).ok();
        let ids: Option<Vec<u32>> = ids.into_iter().map(small).collect();
        ids.ok_or_else(|| self.error(key, value, "must be a token's number"))
    }

    /// The value of a field that the family reads, unless it is absent or null.
    fn get(&self, key: &str) -> Option<&Value> {
        let read = self.usage(key) == Some(Usage::Read);
        let value = self.value.get(key).filter(|_| read);
        value.filter(|value| !value.is_null())
    }

    fn numbers(&self, key: &str, value: &Value) -> Read<Vec<u64>> {
        let numbers = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_u64).collect());
        numbers.ok_or_else(|| self.error(key, value, "must be a list of integers"))
    }

    fn size(&self, key: &str) -> Read<usize> {
        let value = self.get(key).unwrap_or(&Value::Null);
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.error(key, value, "must be an integer of 0 or above"))
    }

    fn size_or(&self, key: &str, absent: usize) -> Read<usize> {
        self.get(key).map_or(Ok(absent), |_| self.size(key))
    }

    fn number(&self, key: &str) -> Read<f64> {
        let value = self.get(key).unwrap_or(&Value::Null);
        value
            .as_f64()
            .ok_or_else(|| self.error(key, value, "must be a number"))
    }

    fn number_or(&self, key: &str, absent: f64) -> Read<f64> {
        self.get(key).map_or(Ok(absent), |_| self.number(key))
    }

    fn flag(&self, key: &str) -> Read<bool> {
        self.flag_or(key, false)
    }

    fn flag_or(&self, key: &str, absent: bool) -> Read<bool> {
        match self.get(key) {
            None => Ok(absent),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(key, value, "must be true or false")),
        }
    }

    fn error(&self, key: &str, value: &Value, rule: &str) -> CheckpointError {
        let key = format!("{}{key}", self.table.prefix());
        refusal(self.path, &key, value, rule)
    }

    /// What the table makes of a field.
    fn usage(&self, key: &str) -> Option<Usage> {
        match self.table {
            Table::Only | Table::Text => self.family.usage(key),
            Table::Top => Family::top_usage(key),
            Table::Tower => Family::tower_usage(key),
        }
    }
}

/// What is at a path such as `experts.top_k`; null if nothing is.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    let pointer = format!("/{}", path.replace('.', "/"));
    value.pointer(&pointer).unwrap_or(&Value::Null)
}

fn refusal(path: &Path, key: &str, value: &Value, rule: &str) -> CheckpointError {
    CheckpointError::Config {
        path: path.to_owned(),
        key: key.to_owned(),
        value: value.to_string(),
        rule: rule.to_owned(),
    }
}
