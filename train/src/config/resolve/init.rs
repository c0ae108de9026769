//! Resolves the model and tokenizer of a run that starts from a checkpoint. The checkpoint decides most keys; some may
//! differ, and a dense checkpoint may be upcycled to MoE (arXiv 2212.05055).

mod dense;
mod moe;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::path::{Path, PathBuf};

use firebox_checkpoint::{
    Accept, CHECKPOINTS, CheckpointConfig, CheckpointError, checkpoint_folder, planned_config,
    read_config,
};
use firebox_model::config::{AttentionName, FeedForwardName, ModelConfig, ModelKeys};
use serde::Serialize;
use toml::{Table, Value};

use super::model::model;
use super::{Checked, without_effect};
use crate::config::error::Problem;
use crate::config::load::Chain;
use crate::config::{TokenizerConfig, first_run};
use crate::run_folder;

/// The maximum default context: many checkpoints allow longer contexts than a training step has memory for.
const LONGEST_DEFAULT_CONTEXT: usize = 2048;

/// The key of the checkpoint.
const KEY: &str = "train.init";

/// The checkpoint that a run starts from.
pub(super) struct Origin {
    folder: PathBuf,
    config: CheckpointConfig,
    /// The tokenizer, where the checkpoint does not exist yet; that of `folder` otherwise.
    planned_tokenizer: Option<TokenizerConfig>,
}

impl Origin {
    /// Reads the `config.json` of the checkpoint `init`, in which these fields are accepted; or finds out what the run of
    /// the configuration `init` gives.
    pub fn open(init: &Path, accept: &[String], chain: &Chain) -> Checked<Self> {
        if let Some(first) = first_run(init) {
            return Self::of_run(first, accept, chain);
        }
        if init.as_os_str().is_empty() {
            return Err(Problem::new(KEY, "must not be empty")
                .hint("remove it to start from random weights"));
        }
        let unusable = || Problem::new(KEY, "cannot be used");
        let folder = checkpoint_folder(init).map_err(|error| unusable().caused_by(error))?;
        let config = read_config(&folder, Accept::Key(accept)).map_err(|error| {
            let problem = match &error {
                CheckpointError::AcceptedAbsent { .. } | CheckpointError::AcceptedKnown { .. } => {
                    Problem::new("train.accept", "cannot be used")
                }
                _ => unusable(),
            };
            problem.caused_by(error)
        })?;
        Ok(Self {
            folder,
            config,
            planned_tokenizer: None,
        })
    }

    /// The newest checkpoint of the run of a configuration, or one as it is planned.
    fn of_run(file: &Path, accept: &[String], chain: &Chain) -> Checked<Self> {
        let unusable = || Problem::new(KEY, "cannot be used");
        let saved = file.parent().filter(|folder| {
            run_folder::config(folder) == file && folder.join(CHECKPOINTS).is_dir()
        });
        if let Some(folder) = saved {
            let rule =
                "is what a run has saved of its configuration, which is no run to be done first";
            let hint = format!(
                "write {KEY} = \"{}\" to start from the run",
                folder.display()
            );
            return Err(Problem::new(KEY, rule).hint(hint));
        }
        if let Some(circle) = chain.circle(file) {
            let rule = format!("leads back to itself: {circle}");
            return Err(Problem::new(KEY, rule)
                .hint("a run starts from another one, or from random weights without train.init"));
        }
        let first = chain
            .follow(file)
            .map_err(|error| unusable().caused_by(error))?;
        if !accept.is_empty() {
            let condition = "when train.init names the configuration of a run";
            return Err(without_effect("train.accept", condition)
                .hint("remove it; Firebox knows all that it writes"));
        }
        let folder = run_folder::default_folder(file);
        match checkpoint_folder(&folder) {
            Ok(_) => Self::open(&folder, accept, chain),
            Err(_) if chain.planned => Ok(Self {
                folder,
                config: planned_config(&first.model)
                    .map_err(|error| unusable().caused_by(error))?,
                planned_tokenizer: Some(first.tokenizer),
            }),
            Err(error) => Err(unusable().caused_by(error).hint(format!(
                "`cargo train run` of this configuration does that run first; `cargo train run {}` does it alone",
                file.display()
            ))),
        }
    }

    /// Whether it sees pictures.
    pub fn sees(&self) -> bool {
        self.config.model.vision.is_some()
    }

    /// The model of the checkpoint, with the keys of the file that may differ.
    pub fn model(&self, written: ModelKeys) -> Checked<ModelConfig> {
        use FeedForwardName::{Dense, Moe};
        let own = ModelKeys::of(&self.config.model);
        let own_kind = own.feed_forward.unwrap_or(Moe);
        let kind = written.feed_forward.unwrap_or(own_kind);
        let dense_is_written = written.feed_forward == Some(Dense);
        let context_length = self.context(&written, &own)?;
        let extended = context_length > self.config.model.context_length;
        // These have rules of their own; all others must be those of the checkpoint.
        let (dense, experts, router) = (written.dense, written.experts, written.router);
        let (rope_theta, rope_scaling) = (written.rope_theta, written.rope_scaling);
        let layers = own.layers.unwrap_or(0);
        let attention = written
            .attention
            .filter(|words| !repeat_alike(words, own.attention.as_deref(), layers));
        // A text model may be given a tower; what a checkpoint has of one stays as it is.
        let vision = match (&own.vision, written.vision) {
            (Some(own), written) => {
                self.agree("model.vision", &written.unwrap_or_default(), own)?;
                Some(own.clone())
            }
            (None, written) => written,
        };
        let multipliers = written.multipliers.clone().unwrap_or_default();
        let own_multipliers = own.multipliers.clone().unwrap_or_default();
        self.agree("model.multipliers", &multipliers, &own_multipliers)?;
        let latent = written.latent.clone().unwrap_or_default();
        self.agree(
            "model.latent",
            &latent,
            &own.latent.clone().unwrap_or_default(),
        )?;
        let others = ModelKeys {
            attention,
            latent: None,
            multipliers: None,
            vision: None,
            context_length: None,
            feed_forward: None,
            dense: None,
            experts: None,
            router: None,
            rope_theta: None,
            rope_scaling: None,
            ..written
        };
        self.agree("model", &others, &own)?;
        if !extended {
            let positions = ModelKeys {
                rope_theta,
                ..ModelKeys::default()
            };
            self.agree("model", &positions, &own)?;
            let own_scaling = own.rope_scaling.clone().unwrap_or_default();
            let scaling = rope_scaling.clone().unwrap_or_default();
            self.agree("model.rope_scaling", &scaling, &own_scaling)?;
        }
        let shape = ModelKeys {
            context_length: Some(context_length),
            feed_forward: Some(kind),
            rope_theta: rope_theta.or(own.rope_theta),
            rope_scaling: match extended {
                true => rope_scaling.or_else(|| own.rope_scaling.clone()),
                false => own.rope_scaling.clone(),
            },
            vision,
            ..own.clone()
        };
        model(&match (own_kind, kind) {
            (Moe, Dense) => {
                let rule = format!("must be \"moe\", as in {}", self.name());
                return Err(Problem::new("model.feed_forward", rule)
                    .hint("an MoE checkpoint cannot become dense; only a dense one can become MoE (upcycling)"));
            }
            (Moe, Moe) => {
                let own_dense = own.dense.clone().unwrap_or_default();
                self.agree("model.dense", &dense.unwrap_or_default(), &own_dense)?;
                let own_experts = own.experts.clone().unwrap_or_default();
                self.agree("model.experts", &experts.unwrap_or_default(), &own_experts)?;
                ModelKeys {
                    router: Some(self.router(router.unwrap_or_default())?),
                    ..shape
                }
            }
            (Dense, Dense) => {
                self.check_dense_width(dense, experts, dense_is_written)?;
                shape
            }
            (Dense, Moe) => ModelKeys {
                dense: self.upcycled_dense_layers(dense)?,
                experts: Some(self.upcycled_experts(experts.unwrap_or_default())?),
                router: Some(dense::upcycled_router(router.unwrap_or_default())?),
                ..shape
            },
        })
    }

    fn context(&self, written: &ModelKeys, own_keys: &ModelKeys) -> Checked<usize> {
        let own = self.config.model.context_length;
        let Some(context) = written.context_length else {
            return Ok(own.min(LONGEST_DEFAULT_CONTEXT));
        };
        let differ = |written: &ModelKeys| {
            let theta = written.rope_theta.is_some() && written.rope_theta != own_keys.rope_theta;
            let scaling = &written.rope_scaling;
            theta || scaling.is_some() && *scaling != own_keys.rope_scaling
        };
        if context > own && !differ(written) {
            let rule = format!("must be at most {own}, the context of {}", self.name());
            return Err(Problem::new("model.context_length", rule).hint(
                "a longer context needs other rotary positions: set [model.rope_scaling], or model.rope_theta",
            ));
        }
        Ok(context)
    }

    /// Checks that the written keys of a table have the checkpoint's values.
    fn agree<T: Serialize>(&self, path: &str, written: &T, own: &T) -> Checked<()> {
        let table = |keys| Table::try_from(keys).expect("keys with numbers, words and lists");
        let own = table(own);
        for (key, value) in table(written) {
            let path = format!("{path}.{key}");
            let determined = "remove it; the checkpoint determines it";
            let rule = match own.get(&key) {
                None => format!("is not allowed, because {} has none", self.name()),
                Some(own) if same(&value, own) => continue,
                Some(own) => format!("must be {own}, as in {}", self.name()),
            };
            return Err(Problem::new(path, rule).hint(determined));
        }
        Ok(())
    }

    fn name(&self) -> String {
        let folder = self.folder.display();
        match self.planned_tokenizer {
            None => format!("the checkpoint {folder}"),
            Some(_) => format!("the run planned in {folder}"),
        }
    }
}

/// Whether two patterns say the same of so many layers.
fn repeat_alike(written: &[AttentionName], own: Option<&[AttentionName]>, layers: usize) -> bool {
    let of = |words: &[AttentionName], layer: usize| words.get(layer % words.len().max(1)).copied();
    own.is_some_and(|own| (0..layers).all(|layer| of(written, layer) == of(own, layer)))
}

/// Whether two values are equal, up to rounding: a float may change by one bit when written to JSON and read back.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => (a - b).abs() <= 1e-12 * b.abs(),
        _ => a == b,
    }
}
