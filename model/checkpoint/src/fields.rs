//! The fields of a `config.json`, each understood or refused; none is passed over.

use std::path::Path;

use serde_json::{Map, Value};

use super::family::{FIREBOX, Family, Normalize};
use super::{CheckpointConfig, CheckpointError};
use firebox_model::config::{
    BalanceKind, DenseConfig, ExpertsConfig, FeedForwardKind, ModelConfig, RouterConfig,
};

/// Keys that say nothing of how the network computes.
const HARMLESS: &[&str] = &[
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "keys_to_ignore_at_inference",
    "label2id",
    "license",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// Keys that are read, where the family has them.
const READ: &[&str] = &[
    "bos_token_id",
    "decoder_sparse_step",
    "eos_token_id",
    "head_dim",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_only_layers",
    "model",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "router_aux_loss_coef",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Options that must be off, and why.
const OFF: &[(&str, &str)] = &[
    ("attention_bias", "Firebox has no biases"),
    ("attention_dropout", "Firebox has no dropout"),
    ("clip_qkv", "Firebox does not clip queries, keys and values"),
    ("mlp_bias", "Firebox has no biases"),
    ("router_jitter_noise", "Firebox adds no noise"),
];

/// A file that is being read.
pub(super) struct Fields<'a> {
    path: &'a Path,
    value: &'a Map<String, Value>,
}

type Read<T> = Result<T, CheckpointError>;

impl<'a> Fields<'a> {
    pub(super) fn new(path: &'a Path, value: &'a Map<String, Value>) -> Self {
        Self { path, value }
    }

    pub(super) fn config(&self) -> Read<CheckpointConfig> {
        let family = self.family()?;
        self.refuse_unknown()?;
        let model = match family == FIREBOX {
            true => {
                let model = self.get("model").unwrap_or(&Value::Null);
                serde_json::from_value::<ModelConfig>(model.clone())
                    .map_err(|error| self.error("model", model, &error.to_string()))?
            }
            false => self.model(&family)?,
        };
        model.validate().map_err(|error| CheckpointError::Config {
            path: self.path.to_owned(),
            key: error.key.to_owned(),
            value: error.value,
            rule: error.rule,
        })?;
        Ok(CheckpointConfig {
            model,
            family,
            end_of_text: self.token_ids("eos_token_id")?,
            beginning_of_text: self.token_ids("bos_token_id")?.first().copied(),
        })
    }

    fn family(&self) -> Read<Family> {
        let kind = self.get("model_type").unwrap_or(&Value::Null);
        let known = Family::ALL
            .into_iter()
            .find(|family| kind == family.model_type);
        known.ok_or_else(|| {
            let names = Family::ALL.map(|family| family.model_type).join(", ");
            self.error("model_type", kind, &format!("Firebox reads {names}"))
        })
    }

    /// An option that nobody here knows may change what the network computes.
    fn refuse_unknown(&self) -> Read<()> {
        for (key, value) in self.value {
            let off = value.is_null() || value == false || value.as_f64() == Some(0.0);
            if let Some((_, rule)) = OFF.iter().find(|(name, _)| name == key) {
                if !off {
                    return Err(self.error(key, value, rule));
                }
                continue;
            }
            if key == "hidden_act" {
                if value != "silu" {
                    return Err(self.error(key, value, "Firebox computes silu"));
                }
                continue;
            }
            let known = HARMLESS.contains(&key.as_str()) || READ.contains(&key.as_str());
            if !known && !off && !key.starts_with('_') {
                let rule = "Firebox does not know this option; if it says nothing of how the network computes, remove it";
                return Err(self.error(key, value, rule));
            }
        }
        Ok(())
    }

    fn model(&self, family: &Family) -> Read<ModelConfig> {
        let (d_model, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let layers = self.size("num_hidden_layers")?;
        let context = self.size("max_position_embeddings")?;
        self.refuse_windows(context)?;
        let sparse = family.feed_forward == FeedForwardKind::Moe;
        Ok(ModelConfig {
            vocabulary: self.size("vocab_size")?,
            layers,
            d_model,
            heads,
            kv_heads: self.size_or("num_key_value_heads", family.kv_heads.unwrap_or(heads))?,
            head_dim: self.size_or(
                "head_dim",
                family.head_dim.unwrap_or(d_model / heads.max(1)),
            )?,
            context,
            rope_theta: self.rope_theta(family)?,
            norm_epsilon: self.number("rms_norm_eps")?,
            tied_embeddings: self.flag("tie_word_embeddings")?,
            initializer_range: self.number_or("initializer_range", 0.02)?,
            qk_norm: family.qk_norm,
            feed_forward: family.feed_forward,
            dense: match family.dense_layers {
                true => self.dense(layers)?,
                false => None,
            },
            experts: ExpertsConfig {
                count: if sparse { self.experts(family)? } else { 1 },
                per_token: if sparse {
                    self.size("num_experts_per_tok")?
                } else {
                    1
                },
                d_ff: self.size(family.d_ff)?,
            },
            router: RouterConfig {
                normalize: match family.normalize {
                    Normalize::Always => match self.get("norm_topk_prob") {
                        Some(value) if value != true && sparse => {
                            let rule =
                                "transformers normalises in this family whatever the field says";
                            return Err(self.error("norm_topk_prob", value, rule));
                        }
                        _ => true,
                    },
                    Normalize::AsConfigured => self.flag("norm_topk_prob")?,
                },
                balance: BalanceKind::Pooled,
                balance_coefficient: match sparse {
                    true => self.number_or("router_aux_loss_coef", 0.0)?,
                    false => 0.0,
                },
                z_coefficient: 0.0,
                bias_update_rate: 0.0,
            },
        })
    }

    fn experts(&self, family: &Family) -> Read<usize> {
        let mut spellings = family.experts.iter().filter(|key| self.get(key).is_some());
        let Some(first) = spellings.next() else {
            return self.size(family.experts[0]);
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

    /// Layer i is a mixture where i + 1 is a multiple of `decoder_sparse_step` and i is not in
    /// `mlp_only_layers`.
    fn dense(&self, layers: usize) -> Read<Option<DenseConfig>> {
        let step = self.size_or("decoder_sparse_step", 1)?.max(1);
        let listed = match self.get("mlp_only_layers") {
            None => Vec::new(),
            Some(value) => self.numbers("mlp_only_layers", value)?,
        };
        let is_dense =
            |layer: &usize| !(layer + 1).is_multiple_of(step) || listed.contains(&(*layer as u64));
        let dense: Vec<usize> = (0..layers).filter(is_dense).collect();
        if dense.is_empty() {
            return Ok(None);
        }
        Ok(Some(DenseConfig {
            layers: dense,
            d_ff: self.size("intermediate_size")?,
        }))
    }

    /// A sliding window hides nothing where it is as long as the context, or not in use.
    fn refuse_windows(&self, context: usize) -> Read<()> {
        let rule = "Firebox attends to the whole context";
        let in_use = self
            .get("use_sliding_window")
            .is_none_or(|value| value != false);
        if let Some(window) = self.get("sliding_window").filter(|_| in_use)
            && window.as_u64().is_none_or(|window| window < context as u64)
        {
            return Err(self.error("sliding_window", window, rule));
        }
        let kinds = self.get("layer_types").and_then(Value::as_array);
        let other = kinds.and_then(|kinds| kinds.iter().find(|kind| *kind != "full_attention"));
        other.map_or(Ok(()), |kind| Err(self.error("layer_types", kind, rule)))
    }

    /// From `rope_parameters`, or as older files spell it, from `rope_theta`.
    fn rope_theta(&self, family: &Family) -> Read<f64> {
        for table in ["rope_parameters", "rope_scaling"] {
            let Some(value) = self.get(table) else {
                continue;
            };
            let Some(fields) = value.as_object() else {
                return Err(self.error(table, value, "must be a table"));
            };
            for (key, value) in fields {
                let allowed = match key.as_str() {
                    "rope_theta" => value.is_number(),
                    "rope_type" | "type" => value == "default",
                    "partial_rotary_factor" => value.as_f64() == Some(1.0),
                    _ => value.is_null(),
                };
                if !allowed {
                    let key = format!("{table}.{key}");
                    return Err(self.error(
                        &key,
                        value,
                        "Firebox computes unscaled rotary positions",
                    ));
                }
            }
        }
        let nested = self
            .get("rope_parameters")
            .and_then(|table| table.get("rope_theta")?.as_f64());
        let old = self
            .get("rope_theta")
            .map(|_| self.number("rope_theta"))
            .transpose()?;
        match (nested, old) {
            (Some(nested), Some(old)) if nested != old => {
                let rule = format!(
                    "must be rope_parameters.rope_theta = {nested}, which it is another name of"
                );
                Err(self.error("rope_theta", &self.value["rope_theta"], &rule))
            }
            (theta, other) => Ok(theta.or(other).unwrap_or(family.rope_theta)),
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

    /// The field's value, unless it is absent or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn numbers(&self, key: &str, value: &Value) -> Read<Vec<u64>> {
        let numbers = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_u64).collect());
        numbers.ok_or_else(|| self.error(key, value, "must be a list of whole numbers"))
    }

    fn size(&self, key: &str) -> Read<usize> {
        let value = self.get(key).unwrap_or(&Value::Null);
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.error(key, value, "must be a whole number"))
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
        match self.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(key, value, "must be true or false")),
        }
    }

    fn error(&self, key: &str, value: &Value, rule: &str) -> CheckpointError {
        CheckpointError::Config {
            path: self.path.to_owned(),
            key: key.to_owned(),
            value: value.to_string(),
            rule: rule.to_owned(),
        }
    }
}
