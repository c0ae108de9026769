//! The model of a run's configuration or of a checkpoint.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use firebox_checkpoint::sharded::ShardedCheckpoint;
use firebox_checkpoint::{Accept, CONFIG_FILE, checkpoint_folder, read_config};
use firebox_console::durable::FileError;
use firebox_model::config::{ModelConfig, ModelKeys};
use firebox_text::Tokenizer;

use super::PlanError;

/// The tables of a run's configuration that decide over the model.
#[derive(Deserialize)]
struct Run {
    model: ModelKeys,
    tokenizer: Option<TokenizerKeys>,
}

#[derive(Deserialize)]
struct TokenizerKeys {
    kind: String,
    vocab_size: Option<usize>,
}

/// The model that a path leads to: the configuration of a run (a TOML file), a checkpoint, a run folder or a sharded
/// checkpoint. Only the model's table and the size of the vocabulary are read of a configuration; `cargo train check`
/// checks all of it.
///
/// # Errors
///
/// When there is nothing, or it does not describe a model.
pub fn open_model(path: &Path, accept: Accept) -> Result<ModelConfig, PlanError> {
    if path.is_file() {
        return of_run(path);
    }
    let folder = match ShardedCheckpoint::is_one(path) || path.join(CONFIG_FILE).is_file() {
        true => path.to_owned(),
        false => checkpoint_folder(path)?,
    };
    Ok(read_config(&folder, accept)?.model)
}

fn of_run(path: &Path) -> Result<ModelConfig, PlanError> {
    let invalid = |reason: String, hint: Option<String>| PlanError::Model {
        file: path.to_owned(),
        reason,
        hint,
    };
    let text = fs::read_to_string(path).map_err(FileError::of("read", path))?;
    let Run {
        mut model,
        tokenizer,
    } = toml::from_str(&text).map_err(|error| {
        let hint = "name a configuration such as configs/gpt4.toml, or the folder of a checkpoint";
        let line = error.span().map_or(1, |span| {
            text[..span.start.min(text.len())].matches('\n').count() + 1
        });
        let reason = format!("{} (line {line})", error.message());
        invalid(reason, Some(hint.to_owned()))
    })?;
    if let Some(TokenizerKeys { kind, vocab_size }) = tokenizer
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
    model
        .resolve()
        .map_err(|error| invalid(format!("model.{error}"), error.hint.clone()))
}
