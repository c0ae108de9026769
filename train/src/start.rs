//! The initial weights of a run, random or from a checkpoint, and its tokenizer after a resume.

use std::path::Path;

use burn::tensor::Device;
use firebox_checkpoint::{
    Accept, CONFIG_FILE, Notes, checkpoint_folder, load_weights, read_config, upcycle,
};
use firebox_model::accounting::Parameters;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::RandomParameters;
use firebox_runtime::device;
use firebox_text::{TOKENIZER_FILE, Tokenizer};

use crate::config::{RunConfig, TokenizerConfig};
use crate::error::TrainError;
use crate::ranks::Team;
use firebox_console::numbers::scaled;

/// The device of a name, which must compute at the precision of the run.
///
/// # Errors
///
/// When the device is not available or does not compute at `train.precision`.
pub fn select_device(name: &str, config: &RunConfig) -> Result<Device, TrainError> {
    let selected = device::select(name)?;
    let precision = config.train.precision;
    match precision.runs_on(&selected) {
        true => Ok(selected),
        false => Err(TrainError::Precision {
            precision,
            device: name.to_owned(),
        }),
    }
}

/// Random weights, or those of the checkpoint `train.init`, in f32, with products at `train.precision`. A dense checkpoint is
/// upcycled if the configuration asks for an MoE model. A rank of a team gets what it has of it.
///
/// # Errors
///
/// When the checkpoint does not exist, cannot be read, or does not fit `config.model`; when the model cannot be made in parts.
pub fn starting_model(
    config: &RunConfig,
    team: &Team,
    device: &Device,
) -> Result<LanguageModel, TrainError> {
    let model = team.joined(starting_weights(config, team, device)?);
    Ok(model.at_precision(config.train.precision))
}

fn starting_weights(
    config: &RunConfig,
    team: &Team,
    device: &Device,
) -> Result<LanguageModel, TrainError> {
    let shard = team.shard(&config.model);
    let seed = config.train.seed;
    let Some(origin) = config.train.origin() else {
        let mut source = RandomParameters::new(seed, device);
        if config.train.zero_outputs {
            source = source.with_zero_outputs();
        }
        if let Some(shard) = shard {
            source = source.of_shard(shard);
        }
        let Ok(model) = LanguageModel::new(&config.model, &mut source);
        return Ok(model);
    };
    let folder = checkpoint_folder(&origin)?;
    let origin = read_config(&folder, Accept::Key(&config.train.accept))?;
    let source = format!(
        "starting from {}: {}, {} parameters",
        folder.display(),
        origin.family.model_type,
        scaled(Parameters::of(&origin.model).total() as f64)
    );
    for (key, value) in origin.notes.training_options(&origin.family) {
        tracing::warn!(
            "{}: {key} = {value}: Firebox trains without it",
            folder.join(CONFIG_FILE).display()
        );
    }
    let opens_eyes = config.model.vision.is_some() && origin.model.vision.is_none();
    let is_upcycled = origin.model.moe.is_none() && config.model.moe.is_some();
    // What is made of other weights is made as a whole.
    let (whole, read) = match opens_eyes || is_upcycled {
        true => (shard, None),
        false => (None, shard),
    };
    let model = match opens_eyes {
        false => config.model.clone(),
        true => ModelConfig {
            tied_embeddings: origin.model.tied_embeddings,
            ..config.model.text_only()
        },
    };
    let weights = match (&origin.model.moe, &model.moe) {
        (None, Some(moe)) => {
            let experts = &moe.experts;
            tracing::info!(
                "{source}; upcycled to {} experts, {} per token",
                experts.count,
                experts.top_k
            );
            upcycle(&folder, &origin, &model, seed, device)?
        }
        _ => {
            tracing::info!("{source}");
            load_weights(&folder, &origin, &model, read.as_ref(), device)?
        }
    };
    let model = match opens_eyes {
        false => weights,
        true => weights.with_vision(&config.model, seed),
    };
    Ok(match whole {
        Some(shard) => model.part(shard),
        None => model,
    })
}

/// What the run's checkpoints say in config.json besides what is computed: what the checkpoint says that the run started
/// from, or that it is `resumed` from; with another tokenizer, the ids are those of the tokenizer. Warns of the fields that
/// are accepted.
///
/// # Errors
///
/// When the checkpoint does not exist or cannot be read.
pub fn notes(
    config: &RunConfig,
    resumed: Option<&Path>,
    tokenizer: &Tokenizer,
) -> Result<Notes, TrainError> {
    let origin = match (resumed, config.train.origin()) {
        (Some(folder), _) => Some((folder.to_owned(), Accept::Nothing)),
        (None, Some(init)) => Some((checkpoint_folder(&init)?, Accept::Key(&config.train.accept))),
        (None, None) => None,
    };
    let mut notes = match origin {
        Some((folder, accept)) => {
            let notes = read_config(&folder, accept)?.notes;
            for warning in notes.warnings(&folder) {
                tracing::warn!("{warning}");
            }
            notes
        }
        None => Notes::default(),
    };
    if !notes.eos_ids().contains(&tokenizer.eos_id()) {
        notes.set_tokens(tokenizer.eos_ids(), tokenizer.bos_ids().first().copied());
    }
    notes.set_document_mask(config.data.document_mask);
    Ok(notes)
}

/// The configuration with a checkpoint's own tokenizer in place of the original file, which may have changed or no
/// longer exist.
pub fn with_own_tokenizer(config: &RunConfig, checkpoint: &Path) -> RunConfig {
    let mut config = config.clone();
    if let TokenizerConfig::File { path, .. } = &mut config.tokenizer {
        *path = checkpoint.join(TOKENIZER_FILE);
    }
    config
}

#[cfg(test)]
mod tests {
    use std::fs;

    use firebox_checkpoint::{SaveOptions, save};
    use firebox_kernels::Precision;
    use firebox_runtime::testing::values;

    use super::*;
    use crate::config::{Frozen, load_resumed, load_saved};
    use crate::testing::{SmallRun, bits, default_device};

    #[test]
    fn a_model_computes_at_the_precision_of_its_run() {
        let run = SmallRun::new();
        let device = default_device();
        let precision = |set: &[&str]| {
            starting_model(&run.config(set), &Team::default(), &device)
                .unwrap()
                .precision()
        };
        assert_eq!(precision(&[]), Precision::F32);
        assert_eq!(precision(&["train.precision=bf16"]), Precision::Bf16);
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn a_device_without_products_in_bf16_is_refused() {
        let run = SmallRun::new();
        assert!(select_device("ndarray", &run.config(&[])).is_ok());
        let bf16 = run.config(&["train.precision=bf16"]);
        assert!(select_device("flex", &bf16).is_ok());
        let error = select_device("ndarray", &bf16).unwrap_err();
        assert_eq!(
            error.to_string(),
            "train.precision = bf16: the device ndarray does not compute products in bf16"
        );
    }

    #[test]
    fn without_a_checkpoint_the_weights_follow_from_the_seed() {
        let run = SmallRun::new();
        let device = default_device();
        let model = |set: &str| {
            bits(&starting_model(&run.config(&[set]), &Team::default(), &device).unwrap())
        };
        let config = run.config(&[]);
        let expected = LanguageModel::random(&config.model, 9, &device);
        assert_eq!(model("train.seed=9"), bits(&expected));
        let run = SmallRun::new();
        let zeros = run.config(&["train.seed=9", "train.zero_outputs=true"]);
        let zeros = bits(&starting_model(&zeros, &Team::default(), &device).unwrap());
        for ((path, zeros), (_, random)) in zeros.iter().zip(&bits(&expected)) {
            let is_output = path.ends_with("output.weight") || path.ends_with("down");
            assert_eq!(zeros.iter().all(|&bits| bits == 0), is_output, "{path}");
            assert!(is_output || zeros == random, "{path}");
        }
        assert_ne!(model("train.seed=8"), bits(&expected));
    }

    #[test]
    fn a_text_checkpoint_is_given_a_tower() {
        let run = SmallRun::new();
        let device = default_device();
        let text = starting_model(&run.config(&[]), &Team::default(), &device).unwrap();
        let folder = run.path("text");
        fs::create_dir(&folder).unwrap();
        save(&text, &folder, &SaveOptions::default(), |_| {}).unwrap();
        let init = format!("train.init={}", folder.display());
        let set = [
            init.as_str(),
            "model.vision.cross_attention_layers=[1]",
            "model.vision.width=8",
            "model.vision.heads=2",
            "model.vision.layers=1",
            "model.vision.tile_size=8",
            "model.vision.patch_size=4",
            "data.source=[{ name = 'emoji', cargo = 'twemoji-assets', weight = 1 }]",
        ];
        let config = run.config(&set);
        let seeing = starting_model(&config, &Team::default(), &device).unwrap();
        assert_eq!(seeing.config(), &config.model);
        let cross = seeing.blocks[1].cross().unwrap();
        assert_eq!(values(cross.gates.attention.val()), [0.0]);
        assert_eq!(bits(&seeing.text_only()), bits(&text));

        // The text is frozen unless the file says otherwise, also of a resume, which does not look at the checkpoint.
        assert_eq!(config.train.frozen, Some(Frozen::Text));
        let other = run.config(&[&set[..], &["train.frozen=nothing"]].concat());
        assert_eq!(other.train.frozen, Some(Frozen::Nothing));
        fs::remove_dir_all(&folder).unwrap();
        for config in [&config, &other] {
            let saved = run.path("saved.toml");
            fs::write(&saved, config.to_toml().unwrap()).unwrap();
            assert_eq!(load_saved(&saved).unwrap().train, config.train);
            let set = set.map(str::to_owned);
            let resumed = load_resumed(&run.path("run.toml"), &set, &saved).unwrap();
            assert_eq!(resumed.train, config.train);
        }
    }

    #[test]
    fn the_tokenizer_of_a_checkpoint_takes_the_place_of_its_file() {
        let run = SmallRun::new();
        let path = run.path("tokenizer.json");
        let mut config = run.config(&[]);
        assert_eq!(with_own_tokenizer(&config, &run.path("checkpoint")), config);
        config.tokenizer = TokenizerConfig::File {
            path: path.clone(),
            end_of_text: "<|end|>".to_owned(),
        };
        let found = || with_own_tokenizer(&config, &run.path("checkpoint")).tokenizer;
        let TokenizerConfig::File { path: own, .. } = found() else {
            panic!("another kind");
        };
        assert_eq!(own, run.path("checkpoint").join("tokenizer.json"));
        // The file that the tokenizer came from may have changed since.
        fs::write(&path, "{}").unwrap();
        let TokenizerConfig::File { path: again, .. } = found() else {
            panic!("another kind");
        };
        assert_eq!(again, own);
    }
}
