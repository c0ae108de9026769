//! Resolves the model and tokenizer of a run that starts from a checkpoint. The checkpoint decides most keys; some may
//! differ, and a dense checkpoint may be upcycled to MoE (arXiv 2212.05055).

mod dense;
mod moe;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::path::{Path, PathBuf};

use firebox_checkpoint::{
    Accept, CheckpointConfig, CheckpointError, checkpoint_folder, read_config,
};
use firebox_model::config::{FeedForwardKind, ModelConfig};
use serde::Serialize;
use toml::Value;

use super::Checked;
use super::model::{ROUTER, checked, refuse_dense_layers, router};
use super::rope::rope_scaling;
use crate::config::error::Problem;
use crate::config::raw::RawModel;

/// The maximum default context: many checkpoints allow longer contexts than a training step has memory for.
const LONGEST_DEFAULT_CONTEXT: usize = 2048;

/// The key of the checkpoint.
const KEY: &str = "train.init";

/// The checkpoint that a run starts from.
pub(super) struct Origin {
    folder: PathBuf,
    config: CheckpointConfig,
}

impl Origin {
    /// Reads the `config.json` of the checkpoint `init`, in which these fields are accepted.
    pub fn open(init: &Path, accept: &[String]) -> Checked<Self> {
        if init.as_os_str().is_empty() {
            return Err(Problem::new(KEY, "must not be empty")
                .hint("remove it to start from random weights"));
        }
        let unusable = || Problem::new(KEY, "cannot be used");
        let hint = "it must be a checkpoint or run folder, such as runs/NAME, relative to the working directory";
        let folder =
            checkpoint_folder(init).map_err(|error| unusable().hint(hint).caused_by(error))?;
        let config = read_config(&folder, Accept::Key(accept)).map_err(|error| {
            let problem = match &error {
                CheckpointError::AcceptedAbsent { .. } | CheckpointError::AcceptedKnown { .. } => {
                    Problem::new("train.accept", "cannot be used")
                }
                _ => unusable(),
            };
            problem.caused_by(error)
        })?;
        Ok(Self { folder, config })
    }

    /// The model of the checkpoint, with the keys of the file that may differ.
    pub fn model(&self, raw: RawModel) -> Checked<ModelConfig> {
        let own = &self.config.model;
        let chosen = raw.feed_forward;
        let shape = ModelConfig {
            vocab_size: self.agreed("model.vocab_size", raw.vocab_size, own.vocab_size)?,
            layers: self.agreed("model.layers", raw.layers, own.layers)?,
            d_model: self.agreed("model.d_model", raw.d_model, own.d_model)?,
            heads: self.agreed("model.heads", raw.heads, own.heads)?,
            kv_heads: self.agreed("model.kv_heads", raw.kv_heads, own.kv_heads)?,
            head_dim: self.agreed("model.head_dim", raw.head_dim, own.head_dim)?,
            context_length: self.context(raw.context_length)?,
            rope_theta: self.agreed("model.rope_theta", raw.rope_theta, own.rope_theta)?,
            rope_scaling: match (
                raw.rope_scaling.map(rope_scaling).transpose()?,
                &own.rope_scaling,
            ) {
                (None, own) => own.clone(),
                (Some(written), Some(own)) => {
                    Some(self.agreed("model.rope_scaling", Some(written), own.clone())?)
                }
                (Some(_), None) => {
                    let rule = format!("is not allowed, because {} has none", self.name());
                    return Err(Problem::new("model.rope_scaling", rule)
                        .hint("remove it; the checkpoint determines it"));
                }
            },
            norm_epsilon: self.agreed("model.norm_epsilon", raw.norm_epsilon, own.norm_epsilon)?,
            tied_embeddings: self.agreed(
                "model.tied_embeddings",
                raw.tied_embeddings,
                own.tied_embeddings,
            )?,
            initializer_range: self.agreed(
                "model.initializer_range",
                raw.initializer_range,
                own.initializer_range,
            )?,
            qk_norm: self.agreed("model.qk_norm", raw.qk_norm, own.qk_norm)?,
            feed_forward: chosen.unwrap_or(own.feed_forward),
            ..own.clone()
        };
        let experts = raw.experts.unwrap_or_default();
        refuse_dense_layers(shape.feed_forward, raw.dense.as_ref())?;
        checked(match (own.feed_forward, shape.feed_forward) {
            (FeedForwardKind::Moe, FeedForwardKind::Dense) => {
                let rule = format!("must be \"moe\", as in {}", self.name());
                return Err(Problem::new("model.feed_forward", rule)
                    .hint("an MoE checkpoint cannot become dense; only a dense one can become MoE (upcycling)"));
            }
            (FeedForwardKind::Moe, FeedForwardKind::Moe) => ModelConfig {
                dense: self.dense_layers(raw.dense)?,
                experts: self.experts(experts)?,
                router: self.router(raw.router)?,
                ..shape
            },
            (FeedForwardKind::Dense, FeedForwardKind::Dense) => ModelConfig {
                experts: self.dense_experts(experts, chosen.is_some())?,
                router: router(raw.router, ROUTER),
                ..shape
            },
            (FeedForwardKind::Dense, FeedForwardKind::Moe) => ModelConfig {
                dense: self.upcycled_dense_layers(raw.dense)?,
                experts: self.upcycled_experts(experts)?,
                router: dense::upcycled_router(raw.router)?,
                ..shape
            },
        })
    }

    fn context(&self, written: Option<usize>) -> Checked<usize> {
        let own = self.config.model.context_length;
        match written {
            Some(context) if context > own => {
                let rule = format!("must be at most {own}, the context of {}", self.name());
                Err(Problem::new("model.context_length", rule))
            }
            Some(context) => Ok(context),
            None => Ok(own.min(LONGEST_DEFAULT_CONTEXT)),
        }
    }

    /// The checkpoint's value, which a written value must equal.
    fn agreed<T: Serialize>(&self, key: &str, written: Option<T>, own: T) -> Checked<T> {
        let as_toml = |value: &T| Value::try_from(value).expect("numbers, words and lists");
        let shown = as_toml(&own);
        match written {
            Some(written) if !same(&as_toml(&written), &shown) => {
                let rule = format!("must be {shown}, as in {}", self.name());
                Err(Problem::new(key, rule).hint("remove it; the checkpoint determines it"))
            }
            _ => Ok(own),
        }
    }

    fn name(&self) -> String {
        format!("the checkpoint {}", self.folder.display())
    }
}

/// Whether two values are equal, up to rounding: a float may change by one bit when written to JSON and read back.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => (a - b).abs() <= 1e-12 * b.abs(),
        _ => a == b,
    }
}
