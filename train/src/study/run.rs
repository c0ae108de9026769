//! Trains the runs of a study, one after the other.

use std::path::{Path, PathBuf};

use firebox_console::durable::{self, FileError};
use firebox_console::numbers::{brief, grouped};
use firebox_model::accounting::Accounting;
use firebox_runtime::control::Control;
use firebox_runtime::failure::guard;
use serde::{Deserialize, Serialize};

use super::{Equal, Study, StudyError, StudyOptions, StudyResult, Variant};
use crate::bench::tokens_per_second;
use crate::chain;
use crate::config::{RunConfig, load_planned};
use crate::error::TrainError;
use crate::ranks::Team;
use crate::report::Report;
use crate::run_folder;
use crate::trainer::{Resume, RunOptions};

/// Times that each variant's speed is measured, in turn, so that a machine that becomes slower does so for all.
const ROUNDS: usize = 3;

/// What a study's folder says of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Begun {
    study: Study,
    /// Steps of each variant.
    steps: Vec<u64>,
}

/// Trains what is missing of a study, and compares its runs. A study that was interrupted continues where it was.
///
/// # Errors
///
/// See [`StudyError`]; all variants are checked before the first one is trained.
pub fn run(
    study: &Study,
    options: &StudyOptions,
    control: &Control,
) -> Result<StudyResult, StudyError> {
    let configs = study
        .variants
        .iter()
        .map(|variant| study.config(variant, &[]));
    let configs = configs.collect::<Result<Vec<_>, _>>()?;
    let file = options.out.join("study.json");
    let steps = match begun(&file)? {
        Some(begun) => {
            let keys = study.differences(&begun.study);
            if !keys.is_empty() {
                let folder = options.out.clone();
                return Err(StudyError::Another { folder, keys });
            }
            begun.steps
        }
        None if run_folder::config(&options.out).exists() => {
            return Err(StudyError::OfARun(options.out.clone()));
        }
        None => steps(study, &configs, &options.device)?,
    };
    for (variant, &steps) in study.variants.iter().zip(&steps) {
        study.config(variant, &[format!("train.steps={steps}")])?;
    }
    std::fs::create_dir_all(&options.out).map_err(FileError::of("create", &options.out))?;
    let begun = Begun {
        study: study.clone(),
        steps,
    };
    let text = serde_json::to_string_pretty(&begun).expect("plain data");
    durable::write(&file, text)?;
    // Seed by seed, so that an unfinished study has comparable runs.
    let count = study.seeds.len() * study.variants.len();
    let mut done = 0;
    for &seed in &study.seeds {
        for (variant, steps) in study.variants.iter().zip(&begun.steps) {
            done += 1;
            let what = format!(
                "{} with seed {seed}, {} steps",
                variant.name,
                grouped(*steps)
            );
            tracing::info!("run {done} of {count}: {what}");
            let decided = [format!("train.steps={steps}"), format!("train.seed={seed}")];
            let run = RunOptions {
                out: folder(&options.out, variant, seed),
                device: options.device.clone(),
                resume: Resume::Auto,
            };
            chain::run(
                &study.config,
                &study.set(variant, &decided),
                &run,
                &Team::default(),
                control,
            )
            .map_err(|source| StudyError::Run {
                variant: variant.name.clone(),
                seed,
                source: source.into(),
            })?;
        }
    }
    let folders = study.variants.iter().flat_map(|variant| {
        let seeds = study.seeds.iter();
        seeds.map(|&seed| folder(&options.out, variant, seed))
    });
    let folders: Vec<PathBuf> = folders.collect();
    StudyResult::new(study.clone(), Report::read(&folders)?)
}

fn folder(out: &Path, variant: &Variant, seed: u64) -> PathBuf {
    out.join(format!("{}-{seed}", variant.name))
}

fn begun(file: &Path) -> Result<Option<Begun>, StudyError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::of("read", file)(error).into()),
    };
    let begun = serde_json::from_str(&text).map_err(|error| StudyError::File {
        file: file.to_owned(),
        what: format!("not what a study writes: {error}"),
        hint: Some("use --out DIR to begin another study".to_owned()),
    })?;
    Ok(Some(begun))
}

/// The steps of each variant.
fn steps(study: &Study, configs: &[RunConfig], device: &str) -> Result<Vec<u64>, StudyError> {
    // A caption has fewer tokens than its row, and what it costs depends on pictures and on what is frozen.
    if configs.iter().any(|config| config.model.vision.is_some()) {
        return Err(StudyError::Pictures);
    }
    let tokens: Vec<f64> = match study.equal {
        Equal::Tokens(tokens) => vec![tokens as f64; configs.len()],
        Equal::Flops(flops) => {
            let of_a_token = configs.iter().map(|config| {
                let operations = Accounting::of(&config.model).operations;
                operations.training + 3.0 * operations.attention_scores
            });
            of_a_token.map(|of_a_token| flops / of_a_token).collect()
        }
        Equal::Seconds(seconds) => {
            let speeds = speeds(study, configs, device)?;
            speeds.into_iter().map(|speed| seconds * speed).collect()
        }
    };
    let variants = study.variants.iter().zip(configs).zip(tokens);
    let steps = variants.map(|((variant, config), tokens)| {
        let (batches, context) = (&config.schedule.batch_tokens, config.model.context_length);
        let of_steps = |steps| batches.total_tokens(steps, context) as f64;
        let amount = || (variant.name.clone(), study.equal);
        if tokens / of_steps(1) > f64::from(u32::MAX) {
            let (variant, what) = amount();
            return Err(StudyError::TooMuch { variant, what });
        }
        let mut steps = (tokens / of_steps(1)) as u64;
        // A batch that grows has fewer steps of more tokens.
        if of_steps(steps) > tokens {
            let (mut low, mut high) = (0, steps);
            while low + 1 < high {
                let middle = low + (high - low) / 2;
                match of_steps(middle) > tokens {
                    true => high = middle,
                    false => low = middle,
                }
            }
            steps = low;
        }
        if steps == 0 {
            let (variant, what) = amount();
            return Err(StudyError::TooLittle { variant, what });
        }
        Ok(steps)
    });
    steps.collect()
}

/// Tokens per second of each variant: the median of some rounds.
fn speeds(study: &Study, configs: &[RunConfig], device: &str) -> Result<Vec<f64>, StudyError> {
    let mut measured = vec![Vec::new(); configs.len()];
    for _ in 0..ROUNDS {
        for (of_variant, config) in measured.iter_mut().zip(configs) {
            let speed = guard(device, || tokens_per_second(config, device));
            let speed = speed.map_err(|failure| TrainError::Computation {
                step: None,
                failure: failure.into(),
                checkpoint: None,
            });
            of_variant.push(
                speed
                    .and_then(|speed| speed)
                    .map_err(|error| StudyError::Speed(error.into()))?,
            );
        }
    }
    let medians = study.variants.iter().zip(measured);
    let medians = medians.map(|(variant, mut measured)| {
        measured.sort_by(f64::total_cmp);
        let median = measured[ROUNDS / 2];
        tracing::info!("{}: {} tokens/s", variant.name, brief(median));
        median
    });
    Ok(medians.collect())
}

impl Study {
    /// The configuration of a variant, with what the study has decided.
    fn config(&self, variant: &Variant, decided: &[String]) -> Result<RunConfig, StudyError> {
        let config = load_planned(&self.config, &self.set(variant, decided));
        config.map_err(|source| StudyError::Variant {
            variant: variant.name.clone(),
            source: source.into(),
        })
    }

    /// Its overrides.
    fn set(&self, variant: &Variant, decided: &[String]) -> Vec<String> {
        let set = self.set.iter().chain(&variant.set).chain(decided);
        set.cloned().collect()
    }

    /// The keys that another study has other values of. Seeds may be added.
    fn differences(&self, begun: &Self) -> Vec<&'static str> {
        let keys = [
            ("config", self.config == begun.config),
            ("set", self.set == begun.set),
            ("seeds", self.seeds.starts_with(&begun.seeds)),
            (self.equal.key_and_value().0, self.equal == begun.equal),
            ("variant", self.variants == begun.variants),
        ];
        let differ = keys.into_iter().filter(|(_, is_equal)| !is_equal);
        differ.map(|(key, _)| key).collect()
    }
}
