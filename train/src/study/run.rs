//! Trains the runs of a study, one after the other.

use std::path::{Path, PathBuf};

use firebox_console::durable::{self, FileError};
use firebox_console::numbers::{brief, grouped};
use firebox_model::accounting::Accounting;
use firebox_runtime::control::Control;
use firebox_runtime::failure::guard;
use serde::{Deserialize, Serialize};

use super::{Equal, Study, StudyError, StudyOptions, StudyResult, Variant};
use crate::bench::step_seconds;
use crate::chain;
use crate::config::{BatchRamp, RunConfig, load_planned};
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

/// Trains what is missing of a study, and compares its runs. A study that was interrupted continues where it was; runs that
/// diverged do so again, from their newest checkpoints.
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
            let ended = chain::run(
                &study.config,
                &study.set(variant, &decided),
                &run,
                &Team::default(),
                control,
            );
            match ended {
                // That too is a result, if it is this run that has diverged, and not one that it starts from.
                Err(error @ TrainError::Diverged { .. })
                    if run_folder::config(&run.out).exists() =>
                {
                    tracing::warn!("{}, seed {seed}: {error}; the study goes on", variant.name);
                }
                ended => {
                    ended.map_err(|source| StudyError::Run {
                        variant: variant.name.clone(),
                        seed,
                        source: source.into(),
                    })?;
                }
            }
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
    let costs: Vec<Cost> = match study.equal {
        Equal::Tokens(_) => vec![Cost::of_tokens(1.0); configs.len()],
        Equal::Flops(_) => {
            let of_a_token = configs.iter().map(|config| {
                let operations = Accounting::of(&config.model).operations;
                operations.training + 3.0 * operations.attention_scores
            });
            of_a_token.map(Cost::of_tokens).collect()
        }
        Equal::Seconds(seconds) => measured_costs(study, configs, seconds, device)?,
    };
    let most = match study.equal {
        Equal::Tokens(tokens) => tokens as f64,
        Equal::Flops(most) | Equal::Seconds(most) => most,
    };
    let variants = study.variants.iter().zip(configs).zip(costs);
    let steps = variants.map(|((variant, config), cost)| {
        let amount = || (variant.name.clone(), study.equal);
        let (batches, context) = (&config.schedule.batch_tokens, config.model.context_length);
        match cost.steps(batches, context, most) {
            0 => {
                let (variant, what) = amount();
                Err(StudyError::TooLittle { variant, what })
            }
            steps if steps > u64::from(u32::MAX) => {
                let (variant, what) = amount();
                Err(StudyError::TooMuch { variant, what })
            }
            steps => Ok(steps),
        }
    });
    steps.collect()
}

/// What a step costs, in the unit that is the same for all variants: so much by itself, and so much for each of its tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cost {
    step: f64,
    token: f64,
}

impl Cost {
    /// So much for each token, however many a step has.
    fn of_tokens(token: f64) -> Self {
        Self { step: 0.0, token }
    }

    /// Through two batches, each of so many tokens that take so many seconds: a larger batch takes less for each token where
    /// something is done once a step, such as Muon's products.
    fn through([first, last]: [(f64, f64); 2]) -> Self {
        let token = (last.1 - first.1) / (last.0 - first.0);
        let step = last.1 - token * last.0;
        // Where the two are alike, or noise has reversed them, the larger one says more.
        match token.is_finite() && token > 0.0 && step > 0.0 {
            true => Self { step, token },
            false => Self::of_tokens(last.1 / last.0),
        }
    }

    /// The most steps of a run that together cost no more than `most`, in the same unit; at most 2³².
    fn steps(self, batches: &BatchRamp, context: usize, most: f64) -> u64 {
        let taken = |steps: u64| {
            steps as f64 * self.step + batches.total_tokens(steps, context) as f64 * self.token
        };
        // No step costs less than the first one.
        let bound = (most / taken(1)).min(f64::from(u32::MAX)) as u64;
        let (mut low, mut high) = (0, bound + 2);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            match taken(middle) > most {
                true => high = middle,
                false => low = middle,
            }
        }
        low
    }
}

/// The cost of each variant in seconds, from its first batch and from the last one that a run of so many seconds comes to:
/// medians of some rounds.
fn measured_costs(
    study: &Study,
    configs: &[RunConfig],
    seconds: f64,
    device: &str,
) -> Result<Vec<Cost>, StudyError> {
    let first = configs.iter().map(|config| sequences_at(config, 0));
    let first: Vec<u64> = first.collect();
    let of_first = medians(configs, &first, device)?;
    let last = configs.iter().zip(&first).zip(&of_first);
    let last = last.map(|((config, &first), &of_first)| {
        let (batches, context) = (&config.schedule.batch_tokens, config.model.context_length);
        let cost = Cost::of_tokens(of_first / (first as f64 * context as f64));
        sequences_at(config, cost.steps(batches, context, seconds))
    });
    let last: Vec<u64> = last.collect();
    let of_last = match first == last {
        true => of_first.clone(),
        false => medians(configs, &last, device)?,
    };
    let costs = study.variants.iter().zip(configs).enumerate();
    let costs = costs.map(|(index, (variant, config))| {
        let tokens = [first[index], last[index]]
            .map(|sequences| sequences as f64 * config.model.context_length as f64);
        let points = [(tokens[0], of_first[index]), (tokens[1], of_last[index])];
        let [slow, fast] = points.map(|(tokens, seconds)| brief(tokens / seconds));
        let size = |tokens: f64| grouped(tokens as u128);
        match tokens[0] == tokens[1] {
            true => tracing::info!("{}: {slow} tokens/s", variant.name),
            false => tracing::info!(
                "{}: {slow} tokens/s in batches of {}, {fast} in batches of {}",
                variant.name,
                size(tokens[0]),
                size(tokens[1]),
            ),
        }
        Cost::through(points)
    });
    Ok(costs.collect())
}

/// Sequences of the batch of a step, counted from 0.
fn sequences_at(config: &RunConfig, step: u64) -> u64 {
    let batches = &config.schedule.batch_tokens;
    batches.sequences_at(step, config.model.context_length)
}

/// Seconds of a step of each variant with so many sequences: medians of some rounds.
fn medians(configs: &[RunConfig], sequences: &[u64], device: &str) -> Result<Vec<f64>, StudyError> {
    let mut measured = vec![Vec::new(); configs.len()];
    for _ in 0..ROUNDS {
        for ((seconds, config), &sequences) in measured.iter_mut().zip(configs).zip(sequences) {
            seconds.push(measure(config, sequences, device)?);
        }
    }
    let medians = measured.into_iter().map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        seconds[ROUNDS / 2]
    });
    Ok(medians.collect())
}

/// Seconds of a step of so many sequences.
fn measure(config: &RunConfig, sequences: u64, device: &str) -> Result<f64, StudyError> {
    let seconds = guard(device, || step_seconds(config, sequences, device));
    let seconds = seconds.map_err(|failure| TrainError::Computation {
        step: None,
        failure: failure.into(),
        checkpoint: None,
    });
    let seconds = seconds.and_then(|seconds| seconds);
    seconds.map_err(|error| StudyError::Speed(error.into()))
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

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: usize = 8;

    fn batches(start: u64, end: u64, ramp_steps: u64) -> BatchRamp {
        BatchRamp {
            start,
            end,
            ramp_steps,
        }
    }

    // Half a second for each step and a hundredth for each token: batches of 16 and 48 tokens take 0.66 and 0.98 seconds.
    #[test]
    fn a_step_has_a_part_that_does_not_grow_with_its_batch() {
        let cost = Cost::through([(16.0, 0.66), (48.0, 0.98)]);
        assert!((cost.step - 0.5).abs() < 1e-9 && (cost.token - 0.01).abs() < 1e-9);
        // 16, 32, 48 and 48 tokens: 0.66, 0.82, 0.98 and 0.98 seconds.
        let growing = batches(16, 48, 2);
        for (most, steps) in [
            (0.6, 0),
            (0.7, 1),
            (1.5, 2),
            (2.47, 3),
            (3.43, 3),
            (3.45, 4),
        ] {
            assert_eq!(cost.steps(&growing, CONTEXT, most), steps, "{most}");
        }
        assert_eq!(Cost::of_tokens(1.0).steps(&growing, CONTEXT, 96.0), 3);
        assert_eq!(Cost::of_tokens(1.0).steps(&growing, CONTEXT, 95.0), 2);
    }

    #[test]
    fn one_size_of_batches_and_chance_leave_the_larger_one() {
        for first in [(48.0, 0.96), (16.0, 0.97), (16.0, 0.1)] {
            let cost = Cost::through([first, (48.0, 0.96)]);
            assert_eq!(cost, Cost::of_tokens(0.02), "{first:?}");
        }
    }

    #[test]
    fn there_is_an_end_to_steps() {
        let steps = Cost::of_tokens(1e-300).steps(&batches(16, 16, 0), CONTEXT, 1.0);
        assert_eq!(steps, u64::from(u32::MAX) + 1);
        assert_eq!(
            Cost::of_tokens(1e300).steps(&batches(16, 16, 0), CONTEXT, 1.0),
            0
        );
    }
}
