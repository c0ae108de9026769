//! The training state of a checkpoint: what a resume needs in addition to the weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use firebox_checkpoint::{CheckpointError, SaveOptions, TensorFile, write_tensors};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::language_model::LanguageModel;
use firebox_text::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::optimizer::AdamW;
use crate::run_folder::failed;

const STATE_FILE: &str = "train_state.json";
const MOMENTS_FILE: &str = "train_state.safetensors";

/// The progress of a run. The order of the data is a function of the seed, so `sequences` alone is the position in it.
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
    /// Content hash of the prepared data.
    pub data_hash: String,
}

/// The validation with the lowest loss so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Optimizer steps done.
    pub step: u64,
    /// Validation loss, in nats per token.
    pub nats_per_token: f64,
}

/// Writes a complete checkpoint to a folder: the Hugging Face files and the training state.
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
        end_of_text: tokenizer.eos_ids().to_vec(),
        beginning_of_text: tokenizer.bos_ids().first().copied(),
        ..SaveOptions::default()
    };
    firebox_checkpoint::save(model, folder, &options, |_| ())?;
    let moments = folder.join(MOMENTS_FILE);
    write_tensors(&moments, &optimizer.tensors(), WeightDtype::F32)?;
    tokenizer.save_to(folder, model.config().context)?;
    let state = serde_json::to_string_pretty(progress).expect("numbers and strings") + "\n";
    let path = folder.join(STATE_FILE);
    fs::write(&path, state)
        .and_then(|()| fs::File::open(&path)?.sync_all())
        .map_err(failed("write", &path))?;
    Ok(())
}

/// Reads the progress of a run from a checkpoint that [`save`] wrote.
///
/// # Errors
///
/// When `train_state.json` is missing or damaged.
pub fn progress(folder: &Path) -> Result<Progress, CheckpointError> {
    let path = folder.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
        path,
        reason: error.to_string(),
    })
}

/// Reads the model and the optimizer from a checkpoint that [`save`] wrote at this progress. The model has no
/// gradients.
///
/// # Errors
///
/// When a file is missing, damaged, or belongs to another model.
pub fn load(
    folder: &Path,
    progress: &Progress,
    config: &RunConfig,
    device: &Device,
) -> Result<(LanguageModel, AdamW), CheckpointError> {
    let model = firebox_checkpoint::load_weights(folder, &config.model, device)?;
    let moments = TensorFile::open(&folder.join(MOMENTS_FILE))?;
    let optimizer = AdamW::read(&moments, progress.step, &model, device)?;
    Ok((model, optimizer))
}

/// Keys that may change between a run and its resume, because they do not change the weights, or change them by
/// rounding only: a run that is out of memory resumes with a smaller micro-batch.
const RESUMABLE_CHANGES: [&str; 8] = [
    "train.micro_batch",
    "train.log_every",
    "train.validate_every",
    "train.validation_tokens",
    "train.sample",
    "checkpoint",
    "plan",
    "data.cache",
];

/// The keys with which two configurations would train different weights, as one `key: old → new` per key.
pub fn differences(old: &RunConfig, new: &RunConfig) -> Vec<String> {
    let flat = |config: &RunConfig| {
        let mut keys = BTreeMap::new();
        let value = serde_json::to_value(config).expect("a configuration is plain data");
        flatten(String::new(), &value, &mut keys);
        keys.retain(|key, _| {
            !RESUMABLE_CHANGES
                .iter()
                .any(|allowed| key == allowed || key.starts_with(&format!("{allowed}.")))
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
