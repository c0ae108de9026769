//! The fields of a `config.json`: each is read, known to say nothing of what is computed, or refused by name.

mod rope;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::accept::ACCEPTED;
use super::families::{Defaults, DenseLayers, FIREBOX, Family, Normalize, RouterKind, Usage};
use super::{Accept, CheckpointConfig, CheckpointError, Notes};
use firebox_model::config::{
    BalanceKind, DenseConfig, ExpertsConfig, FeedForwardKind, ModelConfig, RouterConfig, Scores,
};

/// A file that is being read.
pub(super) struct Fields<'a> {
    path: &'a Path,
    value: &'a Map<String, Value>,
    family: Family,
    accept: Accept<'a>,
    /// The fields that are accepted, now or when the file was written.
    accepted: BTreeSet<&'a str>,
}

/// Both spellings of the number of experts.
const EXPERT_COUNTS: [&str; 2] = ["num_experts", "num_local_experts"];

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

/// The default of the field with the width of a feed-forward.
fn width(absent: &Defaults, field: &str) -> usize {
    match field {
        "moe_intermediate_size" => absent.moe_intermediate_size,
        _ => absent.intermediate_size,
    }
}

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
        self.family.usage(key).is_none() && !QUANTIZATION.contains(&key)
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
            _ if self.family.usage(&key) == Some(Usage::Read) => {
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
        let model = match family == FIREBOX {
            true => {
                let model = self.get("model").unwrap_or(&Value::Null);
                serde_json::from_value::<ModelConfig>(model.clone())
                    .map_err(|error| self.error("model", model, &error.to_string()))?
            }
            false => self.model()?,
        };
        model.validate().map_err(|error| CheckpointError::Config {
            path: self.path.to_owned(),
            key: self.field_of(error.key),
            value: error.value,
            rule: error.rule,
        })?;
        Ok(CheckpointConfig {
            model,
            family,
            eos_ids: self.token_ids("eos_token_id")?,
            bos_id: self.token_ids("bos_token_id")?.first().copied(),
            notes: Notes::of_file(self.value, &self.family, &self.accepted),
        })
    }

    /// The field that a key of [`ModelConfig`] is read from.
    fn field_of(&self, key: &str) -> String {
        if self.family == FIREBOX {
            return key.to_owned();
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
            "norm_epsilon" => "rms_norm_eps",
            "experts.count" => self.family.experts.first().copied().unwrap_or(key),
            "experts.top_k" => "num_experts_per_tok",
            "experts.d_ff" => self.family.d_ff,
            "dense.d_ff" => "intermediate_size",
            "dense.layers" if self.family.dense_layers == DenseLayers::First => {
                "first_k_dense_replace"
            }
            "dense.layers" => "mlp_only_layers",
            "experts.shared_d_ff" => "n_shared_experts",
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
        match self.family.usage(key) {
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
            None if QUANTIZATION.contains(&key) => Err(CheckpointError::Quantized {
                path: self.path.to_owned(),
                key: key.to_owned(),
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
            key: key.to_owned(),
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
        let layers = self.size_or("num_hidden_layers", absent.num_hidden_layers)?;
        let context = self.size_or("max_position_embeddings", absent.max_position_embeddings)?;
        self.refuse_windows(layers, context)?;
        let (rope_theta, rope_scaling) = self.rope(context)?;
        let sparse = family.feed_forward == FeedForwardKind::Moe;
        let d_ff = self.size_or(family.d_ff, width(absent, family.d_ff))?;
        Ok(ModelConfig {
            vocab_size: self.size_or("vocab_size", absent.vocab_size)?,
            layers,
            d_model,
            heads,
            kv_heads: self.kv_heads(heads)?,
            head_dim: self.size_or(
                "head_dim",
                absent.head_dim.unwrap_or(d_model / heads.max(1)),
            )?,
            context_length: context,
            rope_theta,
            rope_scaling,
            norm_epsilon: self.number_or("rms_norm_eps", absent.rms_norm_eps)?,
            tied_embeddings: self.flag("tie_word_embeddings")?,
            initializer_range: self.number_or("initializer_range", 0.02)?,
            qk_norm: family.qk_norm,
            feed_forward: family.feed_forward,
            dense: self.dense(layers)?,
            experts: ExpertsConfig {
                count: if sparse { self.experts()? } else { 1 },
                top_k: if sparse {
                    self.size_or("num_experts_per_tok", absent.num_experts_per_tok)?
                } else {
                    1
                },
                d_ff,
                shared_d_ff: self.size_or("n_shared_experts", 0)?.saturating_mul(d_ff),
            },
            router: RouterConfig {
                scores: match family.router {
                    RouterKind::Softmax => Scores::Softmax,
                    RouterKind::DeepSeekV3 => Scores::Sigmoid,
                },
                scaling: self.number_or("routed_scaling_factor", 1.0)?,
                groups: self.size_or("n_group", 1)?,
                top_groups: self.size_or("topk_group", 1)?,
                normalize: match family.normalize {
                    Normalize::Always => true,
                    Normalize::AsConfigured => self.flag("norm_topk_prob")?,
                },
                balance: BalanceKind::Pooled,
                balance_coefficient: match sparse {
                    true => self.number_or("router_aux_loss_coef", absent.router_aux_loss_coef)?,
                    false => 0.0,
                },
                z_coefficient: 0.0,
                bias_update_rate: 0.0,
            },
        })
    }

    fn experts(&self) -> Read<usize> {
        let all = self.family.experts.iter().chain(&EXPERT_COUNTS);
        let mut spellings = all.filter(|key| self.get(key).is_some());
        let Some(first) = spellings.next() else {
            return Ok(self.family.defaults.num_experts);
        };
        let count = self.size(first)?;
        match spellings.find(|key| self.get(key) != self.get(first)) {
            Some(other) => {
                let rule = format!("must be {first} = {count}, which it is another name of");
                Err(self.error(other, self.get(other).unwrap_or(&Value::Null), &rule))
            }
            None => Ok(count),
        }
    }

    /// The dense layers: the first ones, or all but those where i + 1 is a multiple of `decoder_sparse_step` and i is not
    /// in `mlp_only_layers`.
    fn dense(&self, layers: usize) -> Read<Option<DenseConfig>> {
        let dense: Vec<usize> = match self.family.dense_layers {
            DenseLayers::None => Vec::new(),
            DenseLayers::First => {
                let first = self.size_or("first_k_dense_replace", 0)?;
                (0..first.min(layers)).collect()
            }
            DenseLayers::Any => {
                let step = self.size_or("decoder_sparse_step", 1)?.max(1);
                let listed = match self.get("mlp_only_layers") {
                    None => Vec::new(),
                    Some(value) => self.numbers("mlp_only_layers", value)?,
                };
                let is_dense = |layer: &usize| {
                    !(layer + 1).is_multiple_of(step) || listed.contains(&(*layer as u64))
                };
                (0..layers).filter(is_dense).collect()
            }
        };
        if dense.is_empty() {
            return Ok(None);
        }
        Ok(Some(DenseConfig {
            layers: dense,
            d_ff: self.size_or("intermediate_size", self.family.defaults.intermediate_size)?,
        }))
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

    /// A sliding window hides nothing where it is as long as the context, begins behind the last layer, or is not in use:
    /// families with a switch for it have it off unless the switch is on.
    fn refuse_windows(&self, layers: usize, context: usize) -> Read<()> {
        let rule = "Firebox attends to the whole context";
        let absent = &self.family.defaults;
        let has = |key| self.family.usage(key) == Some(Usage::Read);
        self.size_or("sliding_window", 0)?;
        let in_use = !has("use_sliding_window") || self.flag("use_sliding_window")?;
        let begins = self.size_or("max_window_layers", absent.max_window_layers)?;
        let listed = self.get("layer_types").is_some();
        if in_use && (listed || !has("max_window_layers") || begins < layers) {
            let window = match (self.value.get("sliding_window"), absent.sliding_window) {
                (Some(window), _) => window.clone(),
                (None, Some(window)) => window.into(),
                (None, None) => Value::Null,
            };
            let hides = window.as_u64().is_none_or(|window| window < context as u64);
            if !window.is_null() && hides && !self.all_layers_are_full() {
                return Err(self.error("sliding_window", &window, rule));
            }
        }
        let Some(value) = self.get("layer_types") else {
            return Ok(());
        };
        let kinds = value
            .as_array()
            .ok_or_else(|| self.error("layer_types", value, "must be a list"))?;
        match kinds.iter().find(|kind| *kind != "full_attention") {
            Some(kind) => Err(self.error("layer_types", kind, rule)),
            None => Ok(()),
        }
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
        let read = self.family.usage(key) == Some(Usage::Read);
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

    /// Whether the file lists the kind of every layer, and none has a window.
    fn all_layers_are_full(&self) -> bool {
        let kinds = self.get("layer_types").and_then(Value::as_array);
        // Where the family's own class reads the list.
        self.family.usage("max_window_layers") == Some(Usage::Read)
            && kinds.is_some_and(|kinds| kinds.iter().all(|kind| kind == "full_attention"))
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
        match self.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(key, value, "must be true or false")),
        }
    }

    fn error(&self, key: &str, value: &Value, rule: &str) -> CheckpointError {
        refusal(self.path, key, value, rule)
    }
}

fn refusal(path: &Path, key: &str, value: &Value, rule: &str) -> CheckpointError {
    CheckpointError::Config {
        path: path.to_owned(),
        key: key.to_owned(),
        value: value.to_string(),
        rule: rule.to_owned(),
    }
}
