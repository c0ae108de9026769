//! What a resume needs besides the weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use firebox_checkpoint::{CheckpointError, SaveOptions, TensorFile, write_tensors};
use firebox_console::durable::{self, FileError};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::language_model::LanguageModel;
use firebox_text::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::optimizer::AdamW;

const STATE_FILE: &str = "train_state.json";
const MOMENTS_FILE: &str = "train_state.safetensors";

/// How far a run has come. The order of the data is a function of the seed, so that one number is all
/// that there is to know of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Sequences taken from the training stream.
    pub sequences: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Training time, in seconds.
    pub seconds: f64,
    /// The lowest validation loss so far.
    pub best: Option<Best>,
    /// What the prepared data hashed to.
    pub data_hash: String,
}

/// A validation that none was better than.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Optimizer steps done.
    pub step: u64,
    /// Validation loss, in nats per token.
    pub nats_per_token: f64,
}

/// Writes a whole checkpoint into a folder: the Hugging Face files, and what a resume needs beside them.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save(
    folder: &Path,
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    optimizer: &AdamW,
    progress: &Progress,
) -> Result<(), TrainError> {
    let options = SaveOptions {
        end_of_text: tokenizer.stops().to_vec(),
        beginning_of_text: tokenizer.beginning().first().copied(),
        ..SaveOptions::default()
    };
    firebox_checkpoint::save(model, folder, &options, |_| ())?;
    let moments = folder.join(MOMENTS_FILE);
    write_tensors(&moments, &optimizer.tensors(), WeightDtype::F32)?;
    tokenizer.save_to(folder, model.config().context)?;
    let state = serde_json::to_string_pretty(progress).expect("numbers and strings") + "\n";
    let path = folder.join(STATE_FILE);
    Ok(durable::write(&path, state)?)
}

/// Reads what [`save`] wrote. The model comes back without gradients.
///
/// # Errors
///
/// When a file is absent, damaged, or of another model.
pub fn load(
    folder: &Path,
    config: &RunConfig,
    device: &Device,
) -> Result<(LanguageModel, AdamW, Progress), CheckpointError> {
    let path = folder.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(FileError::of("read", &path))?;
    let progress: Progress =
        serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
            path,
            reason: error.to_string(),
        })?;
    let model = firebox_checkpoint::load_weights(folder, &config.model, device)?;
    let moments = TensorFile::open(&folder.join(MOMENTS_FILE))?;
    let optimizer = AdamW::read(&moments, progress.step, &model, device)?;
    Ok((model, optimizer, progress))
}

/// Keys that may change between a run and its resume, for they change no weight, or by rounding alone: a smaller
/// micro-batch is what a run needs whose device ran out of memory.
const FREE: [&str; 8] = [
    "train.micro_batch",
    "train.log_every",
    "train.validate_every",
    "train.validation_tokens",
    "train.sample",
    "checkpoint",
    "plan",
    "data.cache",
];

/// The keys by which two configurations would train differently, each as `key: old → new`.
pub fn differences(old: &RunConfig, new: &RunConfig) -> Vec<String> {
    let flat = |config: &RunConfig| {
        let mut keys = BTreeMap::new();
        let value = serde_json::to_value(config).expect("a configuration is plain data");
        flatten(String::new(), &value, &mut keys);
        keys.retain(|key, _| {
            !FREE
                .iter()
                .any(|free| key == free || key.starts_with(&format!("{free}.")))
        });
        keys
    };
    let (old, new) = (flat(old), flat(new));
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let absent = "(absent)".to_owned();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| {
            let [old, new] = [&old, &new].map(|keys| keys.get(key).unwrap_or(&absent));
            format!("{key}: {old} → {new}")
        })
        .collect()
}

fn flatten(path: String, value: &serde_json::Value, keys: &mut BTreeMap<String, String>) {
    let join = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        serde_json::Value::Object(fields) => {
            fields
                .iter()
                .for_each(|(key, value)| flatten(join(key), value, keys));
        }
        serde_json::Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(i, value)| flatten(join(&i.to_string()), value, keys));
        }
        leaf => {
            keys.insert(path, leaf.to_string());
        }
    }
}
