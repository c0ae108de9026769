//! The training state of a checkpoint: what a resume needs in addition to the weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use firebox_checkpoint::{
    Accept, CheckpointError, Notes, SaveOptions, TensorFile, load_weights, read_config, save_part,
    write_tensors,
};
use firebox_console::durable::{self, FileError};
use firebox_image::PREPROCESSOR_FILE;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::language_model::LanguageModel;
use firebox_text::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::config::{RunConfig, TileLimits};
use crate::error::TrainError;
use crate::optimizer::Optimizer;
use crate::ranks::{Weights, own_weights};

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

/// Writes a complete checkpoint to a folder: the Hugging Face files and the training state. `notes` is what config.json
/// says besides what is computed. The first rank of a team does this, and the others [answer] meanwhile.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save(
    folder: &Path,
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    notes: &Notes,
    optimizer: &Optimizer,
    progress: &Progress,
) -> Result<(), TrainError> {
    let options = SaveOptions {
        notes: notes.clone(),
        ..SaveOptions::default()
    };
    let team = optimizer.team();
    let weights = Weights::new(team, model);
    let elsewhere = |parameter: &_, expert| weights.values(parameter, expert);
    save_part(model, folder, &options, &elsewhere, |_| ())?;
    let moments = folder.join(MOMENTS_FILE);
    write_tensors(&moments, &optimizer.tensors(), WeightDtype::F32)?;
    team.dismiss();
    tokenizer.save_to(folder, model.config().context_length)?;
    if let Some(vision) = &model.config().vision {
        let processor = TileLimits::of(vision).processor();
        let text = serde_json::to_string_pretty(&processor.to_json()).expect("numbers and strings");
        durable::write(&folder.join(PREPROCESSOR_FILE), text + "\n")?;
    }
    let state = serde_json::to_string_pretty(progress).expect("numbers and strings") + "\n";
    let path = folder.join(STATE_FILE);
    Ok(durable::write(&path, state)?)
}

/// Gives the first rank of a team, which [saves](save) a checkpoint, what this one has of the model and of the optimizer.
pub fn answer(model: &LanguageModel, optimizer: &Optimizer) {
    let team = optimizer.team();
    team.answer(|name| match own_weights(model, name) {
        Some(values) => values,
        None => optimizer.own_moment(name),
    });
}

/// Reads the progress of a run from a checkpoint that [`save`] wrote.
///
/// # Errors
///
/// When `train_state.json` is missing or damaged.
pub fn progress(folder: &Path) -> Result<Progress, CheckpointError> {
    let path = folder.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(FileError::of("read", &path))?;
    serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
        path,
        reason: error.to_string(),
    })
}

/// Reads the model and the optimizer from a checkpoint that [`save`] wrote at this progress, whatever the number of ranks
/// was; `optimizer` is a new one. The model has no gradients.
///
/// # Errors
///
/// When a file is missing, damaged, or belongs to another model.
pub fn load(
    folder: &Path,
    progress: &Progress,
    config: &RunConfig,
    optimizer: Optimizer,
    device: &Device,
) -> Result<(LanguageModel, Optimizer), CheckpointError> {
    let own = read_config(folder, Accept::Nothing)?;
    let shard = optimizer.team().shard(&config.model);
    let model = load_weights(folder, &own, &config.model, shard.as_ref(), device)?;
    let model = optimizer.team().joined(model);
    let moments = TensorFile::open(&folder.join(MOMENTS_FILE))?;
    let optimizer = optimizer.read(&moments, progress.step, &config.model, device)?;
    Ok((model.at_precision(config.train.precision), optimizer))
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

#[cfg(test)]
mod tests {
    use firebox_kernels::Precision;

    use super::*;
    use crate::data::prepare;
    use crate::learned::Learned;
    use crate::ranks::Team;
    use crate::step::TrainingState;
    use crate::testing::{SmallRun, bits, default_device};

    #[test]
    fn what_is_saved_is_loaded() {
        for precision in Precision::ALL {
            save_and_load(precision, "model.router.bias_update_rate=0.25", "none");
            save_and_load(precision, "model.router.balance=quantile", "dense");
            save_and_load(precision, "model.router.balance=quantile", "all");
        }
    }

    fn save_and_load(precision: Precision, balance: &str, muon: &str) {
        let run = SmallRun::new();
        let precise = format!("train.precision={precision}");
        let muon = format!("optimizer.muon={muon}");
        let config = run.config(&[balance, &precise, &muon]);
        let device = default_device();
        let prepared = prepare(&config, false).unwrap();
        let stream = prepared.training_stream(8, 1, config.sequences()).unwrap();
        let model = LanguageModel::random(&config.model, 1, &device).at_precision(precision);
        let new_optimizer = || {
            let alone = Team::default();
            Optimizer::new(
                &config.model,
                config.optimizer.muon,
                Learned::Everything,
                &alone,
            )
        };
        let training = TrainingState::new(model, new_optimizer(), Progress::default(), &device);
        let (mut training, _) = training.step(&config, &stream).unwrap();
        training.progress.data_hash = "5eed".to_owned();
        training.progress.best = Some(Best {
            step: 1,
            nats_per_token: 5.25,
        });
        let folder = run.path("checkpoint");
        fs::create_dir(&folder).unwrap();
        let TrainingState {
            model,
            optimizer,
            progress,
            ..
        } = &training;
        let tokenizer = &prepared.tokenizer;
        save(
            &folder,
            model,
            tokenizer,
            &Notes::default(),
            optimizer,
            progress,
        )
        .unwrap();

        let found = super::progress(&folder).unwrap();
        assert_eq!(&found, progress);
        let (loaded, moments) = load(&folder, &found, &config, new_optimizer(), &device).unwrap();
        assert_eq!(bits(&loaded), bits(model));
        assert_eq!(loaded.precision(), precision);
        assert_eq!(loaded.router_bias(), model.router_bias());
        assert_ne!(loaded.router_bias(), [[0.0, 0.0]]);
        assert_eq!(moments.steps(), 1);
        // The next step is the same one.
        let resumed = TrainingState::new(loaded, moments, found, &device);
        let [expected, found] = [training, resumed].map(|training| {
            let (training, step) = training.step(&config, &stream).unwrap();
            (bits(&training.model), step.loss.to_bits())
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn what_changes_a_weight_is_a_difference() {
        let run = SmallRun::new();
        let old = run.config(&[]);
        let differences = |set: &[&str]| differences(&old, &run.config(set));
        assert_eq!(differences(&[]), [""; 0]);
        let free = [
            "train.micro_batch=1",
            "train.log_every=3",
            "train.validate_every=2",
            "train.validation_tokens=64",
            "checkpoint.every=3",
            "data.cache='elsewhere'",
        ];
        assert_eq!(differences(&free), [""; 0]);
        let changed = [
            "optimizer.learning_rate=0.5",
            "train.seed=9",
            "model.context_length=4",
            "train.precision=bf16",
        ];
        let found = differences(&changed);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0], "model.context_length: 8 → 4");
        assert_eq!(found[1], "optimizer.learning_rate: 0.01 → 0.5");
        assert_eq!(found[2], r#"train.precision: "f32" → "bf16""#);
        assert!(found[3].starts_with("train.seed: ") && found[3].ends_with(" → 9"));
    }
}
