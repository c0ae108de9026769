//! `config.json`, the way Hugging Face spells a [`ModelConfig`].

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::layout::{FIREBOX, LLAMA, Layout};
use super::{CONFIG_FILE, CheckpointError};
use crate::config::{BalanceKind, ExpertsConfig, FeedForwardKind, ModelConfig, RouterConfig};

/// What a `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct HuggingFaceConfig {
    /// The network's shape.
    pub model: ModelConfig,
    /// `eos_token_id`
    pub end_of_text: Option<u32>,
}

/// Reads the `config.json` of a checkpoint folder.
///
/// # Errors
///
/// When it is absent or damaged, lacks a field, or asks for what Firebox does not compute.
pub fn read_config(folder: &Path) -> Result<HuggingFaceConfig, CheckpointError> {
    let path = folder.join(CONFIG_FILE);
    if !path.exists() {
        return Err(CheckpointError::NotACheckpoint {
            folder: folder.to_owned(),
            missing: CONFIG_FILE,
        });
    }
    let text = fs::read_to_string(&path).map_err(CheckpointError::io("read", &path))?;
    let value: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
    Fields { path: &path, value }.config()
}

impl HuggingFaceConfig {
    /// The file's text, in both the old and the new spelling of what transformers 5 renamed.
    pub fn to_json(&self) -> String {
        let ModelConfig {
            experts, router, ..
        } = &self.model;
        let model = &self.model;
        let layout = Layout::of(model);
        let mut value = json!({
            "architectures": [layout.architecture],
            "model_type": layout.model_type,
            "vocab_size": model.vocabulary,
            "num_hidden_layers": model.layers,
            "hidden_size": model.d_model,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "max_position_embeddings": model.context,
            "rope_theta": model.rope_theta,
            "rope_parameters": { "rope_theta": model.rope_theta, "rope_type": "default" },
            "rms_norm_eps": model.norm_epsilon,
            "tie_word_embeddings": model.tied_embeddings,
            "initializer_range": model.initializer_range,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "bos_token_id": null,
            "eos_token_id": self.end_of_text,
            "dtype": "float32",
            "torch_dtype": "float32",
        });
        let specific = match model.feed_forward {
            FeedForwardKind::Dense => json!({
                "intermediate_size": model.active_d_ff(),
                "attention_bias": false,
                "mlp_bias": false,
            }),
            FeedForwardKind::Moe => json!({
                "intermediate_size": experts.d_ff,
                "num_local_experts": experts.count,
                "num_experts_per_tok": experts.per_token,
                "norm_topk_prob": router.normalize,
                "router_aux_loss_coef": router.balance_coefficient,
                "router_jitter_noise": 0.0,
                "output_router_logits": false,
                "sliding_window": null,
            }),
        };
        let fields = value.as_object_mut().expect("an object");
        fields.extend(specific.as_object().expect("an object").clone());
        if layout == FIREBOX {
            fields.insert(
                "bias_update_rate".to_owned(),
                json!(router.bias_update_rate),
            );
        }
        serde_json::to_string_pretty(&value).expect("a value without odd keys") + "\n"
    }
}

/// The fields of a file that is being read.
struct Fields<'a> {
    path: &'a Path,
    value: Map<String, Value>,
}

impl Fields<'_> {
    fn config(&self) -> Result<HuggingFaceConfig, CheckpointError> {
        let layout = self.layout()?;
        self.refuse(
            "hidden_act",
            |value| value == "silu",
            "Firebox computes silu",
        )?;
        self.refuse(
            "sliding_window",
            Value::is_null,
            "Firebox attends to the whole context",
        )?;
        self.refuse(
            "rope_scaling",
            Value::is_null,
            "Firebox computes unscaled rotary positions",
        )?;
        self.refuse(
            "attention_bias",
            |value| value == false,
            "Firebox has no biases",
        )?;
        self.refuse("mlp_bias", |value| value == false, "Firebox has no biases")?;
        self.refuse(
            "router_jitter_noise",
            |value| value.as_f64() == Some(0.0),
            "Firebox adds no noise",
        )?;
        let rope = self.value.get("rope_parameters").and_then(Value::as_object);
        if let Some(kind) = rope
            .and_then(|rope| rope.get("rope_type"))
            .filter(|kind| *kind != "default")
        {
            return Err(self.error(
                "rope_parameters.rope_type",
                kind,
                "Firebox computes the default type",
            ));
        }
        let rope_theta = match rope.and_then(|rope| rope.get("rope_theta")) {
            Some(theta) => theta.as_f64().ok_or_else(|| {
                self.error("rope_parameters.rope_theta", theta, "must be a number")
            })?,
            None => self.number("rope_theta")?,
        };

        let (d_model, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let dense = layout == LLAMA;
        let model = ModelConfig {
            vocabulary: self.size("vocab_size")?,
            layers: self.size("num_hidden_layers")?,
            d_model,
            heads,
            kv_heads: self.size("num_key_value_heads")?,
            head_dim: match self.get("head_dim") {
                Some(_) => self.size("head_dim")?,
                None => d_model / heads.max(1),
            },
            context: self.size("max_position_embeddings")?,
            rope_theta,
            norm_epsilon: self.number("rms_norm_eps")?,
            tied_embeddings: self
                .get("tie_word_embeddings")
                .is_some_and(|value| value == true),
            initializer_range: match self.get("initializer_range") {
                Some(_) => self.number("initializer_range")?,
                None => 0.02,
            },
            feed_forward: if dense {
                FeedForwardKind::Dense
            } else {
                FeedForwardKind::Moe
            },
            experts: ExpertsConfig {
                count: if dense {
                    1
                } else {
                    self.size("num_local_experts")?
                },
                per_token: if dense {
                    1
                } else {
                    self.size("num_experts_per_tok")?
                },
                d_ff: self.size("intermediate_size")?,
            },
            router: RouterConfig {
                normalize: layout != FIREBOX
                    || self.get("norm_topk_prob").is_none_or(|value| value == true),
                balance: BalanceKind::PerLayer,
                balance_coefficient: match self.get("router_aux_loss_coef") {
                    Some(_) => self.number("router_aux_loss_coef")?,
                    None => 0.0,
                },
                z_coefficient: 0.0,
                bias_update_rate: match self.get("bias_update_rate") {
                    Some(_) if layout == FIREBOX => self.number("bias_update_rate")?,
                    _ => 0.0,
                },
            },
        };
        model.validate().map_err(|error| CheckpointError::Config {
            path: self.path.to_owned(),
            key: error.key.to_owned(),
            value: error.value,
            rule: error.rule,
        })?;
        let end_of_text = self
            .get("eos_token_id")
            .and_then(Value::as_u64)
            .and_then(|id| u32::try_from(id).ok());
        Ok(HuggingFaceConfig { model, end_of_text })
    }

    fn layout(&self) -> Result<Layout, CheckpointError> {
        let kind = self.get("model_type").unwrap_or(&Value::Null);
        let known = Layout::ALL
            .into_iter()
            .find(|layout| kind == layout.model_type);
        known.ok_or_else(|| {
            let names = Layout::ALL.map(|layout| layout.model_type).join(", ");
            self.error("model_type", kind, &format!("Firebox reads {names}"))
        })
    }

    /// The field's value, unless it is absent or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// An option that is present must be as Firebox computes it.
    fn refuse(
        &self,
        key: &str,
        allowed: impl Fn(&Value) -> bool,
        rule: &str,
    ) -> Result<(), CheckpointError> {
        match self.get(key) {
            Some(value) if !allowed(value) => Err(self.error(key, value, rule)),
            _ => Ok(()),
        }
    }

    fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        let value = self.get(key).unwrap_or(&Value::Null);
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.error(key, value, "must be a whole number"))
    }

    fn number(&self, key: &str) -> Result<f64, CheckpointError> {
        let value = self.get(key).unwrap_or(&Value::Null);
        value
            .as_f64()
            .ok_or_else(|| self.error(key, value, "must be a number"))
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
