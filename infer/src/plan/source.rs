//! The model of a run's configuration or of a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use firebox_checkpoint::{Accept, checkpoint_place, is_gguf, read_config};
use firebox_console::durable::FileError;
use firebox_model::config::{ModelConfig, ModelKeys};
use firebox_text::Tokenizer;

use super::{PlanError, toml_fault};
use crate::engine::warn_of_accepted;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The model.
    pub config: ModelConfig,
    /// A remark to print beside its numbers: `plan.note` of a configuration.
    pub note: Option<String>,
}

/// The tables of a run's configuration that say something of the model.
#[derive(Deserialize)]
struct Run {
    #[serde(default)]
    model: ModelKeys,
    train: Option<Train>,
    tokenizer: Option<TokenizerKeys>,
    plan: Option<PlanKeys>,
}

#[derive(Deserialize)]
struct Train {
    /// A configuration, checkpoint or run folder, from the working directory.
    init: Option<PathBuf>,
}

#[derive(Deserialize)]
struct TokenizerKeys {
    kind: String,
    vocab_size: Option<usize>,
}

#[derive(Deserialize)]
struct PlanKeys {
    note: Option<String>,
}

/// The model that a path leads to: the configuration of a run (a TOML file), a checkpoint, a run folder or a sharded
/// checkpoint. Of a configuration no more is read than the model's table, the size of the vocabulary and a remark;
/// `cargo train check` checks all of it. Where it starts from another model (`train.init`), that one is opened
/// in the same way. Warns of accepted fields of config.json.
///
/// # Errors
///
/// When there is nothing, or it does not describe a model.
pub fn open_model(path: &Path, accept: Accept) -> Result<Model, PlanError> {
    open_after(path, accept, &[])
}

/// The same, where these configurations start from it.
fn open_after(path: &Path, accept: Accept, later: &[&Path]) -> Result<Model, PlanError> {
    if path.is_file() && !is_gguf(path) {
        return of_run(path, accept, later);
    }
    let folder = checkpoint_place(path)?;
    let config = read_config(&folder, accept)?;
    warn_of_accepted(&folder, &config.notes);
    Ok(Model {
        config: config.model,
        note: None,
    })
}

fn of_run(path: &Path, accept: Accept, later: &[&Path]) -> Result<Model, PlanError> {
    let invalid = |reason: String, hint: Option<String>| PlanError::Model {
        file: path.to_owned(),
        reason,
        hint,
    };
    let text = fs::read_to_string(path).map_err(FileError::of("read", path))?;
    let Run {
        mut model,
        train,
        tokenizer,
        plan,
    } = toml::from_str(&text).map_err(|error| {
        let hint = "name a configuration such as configs/gpt4.toml, or the folder of a checkpoint";
        invalid(toml_fault(&text, &error), Some(hint.to_owned()))
    })?;
    if let Some(init) = train.and_then(|train| train.init) {
        if later.contains(&&*init) || init == path {
            return Err(invalid("train.init leads back to itself".to_owned(), None));
        }
        let first = open_after(&init, accept, &[later, &[path]].concat())?;
        model = started_from(model, &first.config).map_err(|reason| {
            let hint =
                "`cargo train check` has its parameters; a checkpoint of the run can be planned";
            invalid(reason, Some(hint.to_owned()))
        })?;
    } else if let Some(TokenizerKeys { kind, vocab_size }) = tokenizer
        && model.vocab_size.is_none()
    {
        model.vocab_size = vocab_size.or_else(|| match kind.as_str() {
            "bytes" => Some(Tokenizer::bytes().vocab_size()),
            _ => None,
        });
    }
    if model.vocab_size.is_none() {
        return Err(invalid(
            "it does not say how many token ids there are".to_owned(),
            Some("set tokenizer.vocab_size; a tokenizer in a file is not opened".to_owned()),
        ));
    }
    let config = model
        .resolve()
        .map_err(|error| invalid(format!("model.{error}"), error.hint.clone()))?;
    Ok(Model {
        config,
        note: plan.and_then(|plan| plan.note),
    })
}

/// The keys of a model that starts from another one, which has all but the context and, if it sees no pictures, the tower.
fn started_from(written: ModelKeys, first: &ModelConfig) -> Result<ModelKeys, String> {
    let own = ModelKeys::of(first);
    if written.feed_forward.is_some() && written.feed_forward != own.feed_forward {
        return Err("a dense model that becomes a mixture is not planned".to_owned());
    }
    Ok(ModelKeys {
        context_length: written.context_length.or(own.context_length),
        vision: own.vision.clone().or(written.vision),
        ..own
    })
}
