//! The training loop.

mod open;

pub(crate) use open::saved_config;

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use firebox_checkpoint::Notes;
use firebox_console::durable::FileError;
use firebox_model::batch::Sequence;
use firebox_model::evaluate::{self, Evaluation, evaluate_parts};
use firebox_model::generate::generate;
use firebox_model::moe::stats::warning;
use firebox_model::sampling::Sampling;
use firebox_runtime::control::Control;
use firebox_runtime::failure::guard;

use crate::config::RunConfig;
use crate::data::{Prepared, ValidationPart};
use crate::error::TrainError;
use crate::lock::Lock;
use crate::looking;
use crate::metrics::{
    self, Lowest, MetricsLog, Record, SampleRecord, SourceLoss, TrainRecord, Validation,
    ValidationRecord,
};
use crate::progress::ProgressDisplay;
use crate::ranks::{Shared, Team, slow_rank};
use crate::rows::Rows;
use crate::run_folder::{self, RunFolder};
use crate::start::select_device;
use crate::state::{self, Best};
use crate::step::TrainingState;

/// Whether a run continues from the newest checkpoint of its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Resume {
    /// Start; fail if there is a checkpoint. This is the behaviour without --resume. A run that this one starts from (train.init
    /// names its configuration) is continued in any case.
    Never,
    /// Continue; fail if there is no checkpoint, of this run or of one that it starts from. This is what --resume alone
    /// means.
    Required,
    /// Continue if there is a checkpoint, else start: for a job that may be restarted at any time (Slurm,
    /// Kubernetes). A finished run ends at once, with success.
    Auto,
}

/// Options of a run that its configuration file does not contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// The run folder.
    pub out: PathBuf,
    /// The device's name.
    pub device: String,
    /// Whether to continue from the newest checkpoint of the run folder.
    pub resume: Resume,
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The last validation.
    pub validation: Validation,
    /// The text generated for `[train.sample]`, including its prompt.
    pub sample: Option<String>,
    /// The folder of the last checkpoint.
    pub checkpoint: PathBuf,
    /// Of captions of pictures, the lowest loss of each kind in all validations.
    pub lowest: Vec<Lowest>,
}

/// Trains from the start, or from the newest checkpoint of the run folder. Records the current step in `control`; if
/// `control` requests a stop, the run writes a checkpoint after the current step and ends. Every rank of a team calls this;
/// the first one writes what there is to write.
///
/// # Errors
///
/// See [`TrainError`]. No error damages an existing checkpoint.
pub fn run(
    config: &RunConfig,
    options: &RunOptions,
    team: &Team,
    control: &Control,
) -> Result<Outcome, TrainError> {
    // There may have been a run before this one.
    control.set_step(0);
    let device = select_device(&options.device, config)?;
    let work = || train(config, options, team, &device, control);
    if !team.is_alone() {
        // Whoever has started the ranks catches their panics, and tells of the first.
        return work();
    }
    let outcome = guard(&options.device, work);
    outcome.map_err(|failure| TrainError::Computation {
        step: control.step(),
        failure: failure.into(),
        checkpoint: newest_checkpoint(&options.out),
    })?
}

/// The newest checkpoint of a run and its step, if there is one.
fn newest_checkpoint(root: &Path) -> Option<(PathBuf, u64)> {
    let step = run_folder::newest(root).ok()??;
    Some((run_folder::checkpoint(root, step), step))
}

fn train(
    config: &RunConfig,
    options: &RunOptions,
    team: &Team,
    device: &Device,
    control: &Control,
) -> Result<Outcome, TrainError> {
    let mut run = Run::open(config, options, team, device)?;
    control.heed_stop();
    let steps = run.config.train.steps;
    let done = run.training.progress.tokens;
    let display = ProgressDisplay::new(steps, run.all_tokens(), done, team.is_first());

    if run.training.progress.step == 0 {
        run.validate(&display)?;
    }
    let mut validated = None;
    while run.training.progress.step < steps {
        control.set_step(run.training.progress.step + 1);
        team.doing(format_args!("step {}", run.training.progress.step + 1));
        run = run.step(&display)?;
        let step = run.training.progress.step;
        let last = step == steps;
        let mut improved = false;
        if last || step.is_multiple_of(run.config.train.validate_every) {
            let (result, best) = run.validate(&display)?;
            validated = Some(result);
            // Machines that round otherwise may differ in it, and all save or none.
            improved = team.all(best)[0] && run.config.checkpoint.keep_best;
        }
        let stop = team.any(control.stop_requested()) && !last;
        if last || stop || improved || step.is_multiple_of(run.config.checkpoint.every) {
            run.save()?;
        }
        if stop {
            return Err(TrainError::Interrupted {
                step,
                checkpoint: run.folder.checkpoint(step),
            });
        }
    }
    // A run that starts from this one finds its last checkpoint.
    team.told_by_first(|| Ok::<_, TrainError>(()))?;
    let Validated { validation, sample } = match validated {
        Some(validated) => validated,
        // Resuming a finished run only reports its result.
        None => run.validated(&display)?,
    };
    drop(display);
    if let Some(emitted) = sample.as_ref().and_then(|sample| sample.cut) {
        tracing::warn!(
            "train.sample.tokens = {}: after {emitted} tokens the sample exceeded the model's context of {} tokens, so \
             the oldest half of its text was dropped",
            config
                .train
                .sample
                .as_ref()
                .map_or(0, |sample| sample.tokens),
            config.model.context_length
        );
    }
    Ok(Outcome {
        validation,
        sample: sample.map(|sample| sample.text),
        checkpoint: run.folder.checkpoint(steps),
        lowest: metrics::lowest(&run.folder.metrics())
            .map_err(FileError::of("read", &run.folder.metrics()))?,
    })
}

/// The loss on captions and on text, with the router health of the captions.
fn together(captions: &Evaluation, text: &Evaluation) -> Evaluation {
    let both = [captions, text];
    let tokens: u64 = both.iter().map(|part| part.tokens).sum();
    let bytes: u64 = both.iter().map(|part| part.bytes).sum();
    let nats = both
        .iter()
        .map(|part| part.nats_per_token * part.tokens as f64);
    let nats: f64 = nats.sum();
    let nats_per_token = nats / tokens.max(1) as f64;
    Evaluation {
        tokens,
        bytes,
        nats_per_token,
        perplexity: nats_per_token.exp(),
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes.max(1) as f64,
        layers: captions.layers.clone(),
    }
}

/// A run between two steps.
struct Run {
    config: RunConfig,
    folder: RunFolder,
    prepared: Prepared,
    /// What config.json says besides what is computed.
    notes: Notes,
    rows: Rows,
    training: TrainingState,
    /// What the first rank writes to.
    writer: Option<Writer>,
    /// Time and token count at the last log line.
    since: Since,
    training_flops_per_token: f64,
}

/// What a run writes to besides its checkpoints.
struct Writer {
    metrics: MetricsLog,
    _lock: Lock,
}

struct Since {
    start: Instant,
    tokens: u64,
}

/// How good a model is, and what it writes.
struct Validated {
    validation: Validation,
    sample: Option<Sample>,
}

/// The continuation of `[train.sample]`'s prompt.
struct Sample {
    /// With its prompt.
    text: String,
    /// Number of tokens after which it exceeded the model's context, and lost its oldest half.
    cut: Option<usize>,
}

impl Run {
    /// Number of tokens in the whole run; with captions, about so many.
    fn all_tokens(&self) -> u64 {
        if self.config.model.vision.is_some() {
            let sources = self.prepared.sources.iter();
            let of_one = sources
                .map(|source| source.part * source.text.tokens as f64 / source.sequences.max(1.0));
            return (self.config.sequences() as f64 * of_one.sum::<f64>()) as u64;
        }
        let batches = &self.config.schedule.batch_tokens;
        batches.total_tokens(self.config.train.steps, self.config.model.context_length) as u64
    }

    /// Takes one optimizer step and logs it.
    fn step(mut self, display: &ProgressDisplay) -> Result<Self, TrainError> {
        let result;
        (self.training, result) = self.rows.step(self.training, &self.config)?;
        let (config, progress) = (&self.config, &self.training.progress);
        let (step, tokens) = (progress.step, result.tokens);
        display.step(step, result.loss, progress.tokens, tokens);
        if step == 1 || step.is_multiple_of(config.train.log_every) || step == config.train.steps {
            let seconds = self.since.start.elapsed().as_secs_f64();
            let tokens_per_second = (progress.tokens - self.since.tokens) as f64 / seconds;
            let layers = result.layers;
            display.log(
                step,
                result.loss,
                result.learning_rate,
                result.gradient_norm,
                tokens_per_second,
                &layers,
            );
            let experts = config.model.moe.as_ref().map(|moe| moe.experts);
            let assignments = tokens * experts.map_or(0, |experts| experts.top_k as u64);
            if let Some(warning) =
                warning(&layers, assignments).filter(|_| step > config.schedule.warmup_steps)
            {
                display.warn(&format!("step {step}: {warning}"));
            }
            if let Some(warning) = slow_rank(&result.ranks) {
                display.warn(&format!("step {step}: {warning}"));
            }
            let record = TrainRecord {
                step,
                tokens: progress.tokens,
                loss: result.loss,
                total_loss: result.total_loss,
                learning_rate: result.learning_rate,
                gradient_norm: result.gradient_norm,
                batch_tokens: tokens,
                tokens_per_expert: experts.map(|experts| assignments as f64 / experts.count as f64),
                tokens_per_second,
                flops_per_second: tokens_per_second * self.training_flops_per_token,
                seconds: progress.seconds,
                layout: (!self.team().is_alone()).then(|| self.team().layout()),
                ranks: match result.ranks.len() {
                    1 => Vec::new(),
                    _ => result.ranks,
                },
                layers,
            };
            self.log(&Record::Train(record))?;
            self.restart_clock();
        }
        Ok(self)
    }

    /// Evaluates on the held-out text, and lets the model write; also returns whether the loss is the lowest so far.
    fn validate(&mut self, display: &ProgressDisplay) -> Result<(Validated, bool), TrainError> {
        let validated = self.validated(display)?;
        let Validated { validation, sample } = &validated;
        let progress = &self.training.progress;
        let step = progress.step;
        let value = validation.whole.nats_per_token;
        if !value.is_finite() {
            let what = "held-out loss";
            return Err(TrainError::Diverged { step, what, value });
        }
        display.validation(step, validation);
        let record = ValidationRecord {
            step,
            trained_tokens: progress.tokens,
            seconds: progress.seconds,
            validation: validation.clone(),
        };
        self.log(&Record::Validation(record))?;
        if let Some(Sample { text, .. }) = sample {
            let text = text.clone();
            self.log(&Record::Sample(SampleRecord { step, text }))?;
        }
        let nats_per_token = validation.whole.nats_per_token;
        let progress = &mut self.training.progress;
        let improved = step > 0
            && progress
                .best
                .is_none_or(|best| nats_per_token < best.nats_per_token);
        if improved {
            progress.best = Some(Best {
                step,
                nats_per_token,
            });
        }
        self.restart_clock();
        Ok((validated, improved))
    }

    fn validated(&self, display: &ProgressDisplay) -> Result<Validated, TrainError> {
        Ok(Validated {
            validation: self.validation(display)?,
            sample: self.sample()?,
        })
    }

    fn validation(&self, display: &ProgressDisplay) -> Result<Validation, TrainError> {
        let limit = self.config.train.validation_tokens;
        let context = self.config.model.context_length;
        if self.config.model.vision.is_none() {
            return self.text_validation(display, limit);
        }
        // Of each kind, as many captions as there would be sequences of text.
        let seen = self.caption_validation(display, (limit / context as u64).max(1))?;
        let read = self.text_validation(display, limit)?;
        Ok(match read.whole.tokens {
            0 => seen,
            _ => Validation {
                whole: together(&seen.whole, &read.whole),
                sources: read.sources,
                captions: seen.captions,
            },
        })
    }

    /// Evaluates on held-out text.
    fn text_validation(
        &self,
        display: &ProgressDisplay,
        limit: u64,
    ) -> Result<Validation, TrainError> {
        let context = self.config.model.context_length;
        let parts = self.prepared.validation(context, limit)?;
        let all = parts.iter().map(ValidationPart::targets).sum();
        let document_end = self.prepared.document_end();
        let texts = parts.iter().map(|part| {
            let windows = part.windows.iter();
            let sequences =
                windows.map(move |window| Sequence::of_window(window, context, document_end));
            (sequences, part.bytes)
        });
        let model = self.training.model.valid();
        let mut shared = Shared::new(self.team(), &model);
        let (whole, evaluations) = evaluate_parts(&mut shared, texts, evaluate::ROWS, |tokens| {
            display.validating(tokens, all);
        });
        let sources = parts.iter().zip(&evaluations);
        let sources = sources.map(|(part, found)| SourceLoss::new(part.source.clone(), found));
        Ok(Validation {
            whole,
            sources: sources.collect(),
            captions: Vec::new(),
        })
    }

    /// Evaluates on held-out captions and their pictures, at most `limit` of each kind.
    fn caption_validation(
        &self,
        display: &ProgressDisplay,
        limit: u64,
    ) -> Result<Validation, TrainError> {
        let context = self.config.model.context_length;
        let parts = self.prepared.held_out_captions(context, limit)?;
        let all = looking::rows(&parts);
        let model = self.training.model.valid();
        let tokenizer = &self.prepared.tokenizer;
        let (whole, captions) = looking::evaluate(&model, &parts, tokenizer, |rows| {
            display.validating(rows, all);
        });
        Ok(Validation {
            whole,
            sources: Vec::new(),
            captions,
        })
    }

    /// The ranks that train the model.
    fn team(&self) -> &Team {
        self.training.optimizer.team()
    }

    fn save(&mut self) -> Result<(), TrainError> {
        self.training.check_weights()?;
        let Self {
            training,
            prepared,
            notes,
            config,
            ..
        } = self;
        let Some(writer) = &self.writer else {
            state::answer(&training.model.valid(), &training.optimizer);
            self.restart_clock();
            return Ok(());
        };
        let TrainingState {
            model,
            optimizer,
            progress,
            ..
        } = training;
        let model = model.valid();
        let metrics = self.folder.metrics();
        let synced = writer.metrics.sync();
        synced.map_err(FileError::of("write", &metrics))?;
        self.folder.save(progress.step, |folder| {
            state::save(
                folder,
                &model,
                &prepared.tokenizer,
                notes,
                optimizer,
                progress,
            )
        })?;
        let best = progress
            .best
            .map(|best| best.step)
            .filter(|_| config.checkpoint.keep_best);
        if let Some(step) = best.filter(|&step| self.folder.checkpoint(step).exists()) {
            self.folder.name("best", step)?;
        }
        self.folder.prune(config.checkpoint.keep_last, best)?;
        self.restart_clock();
        Ok(())
    }

    /// Continues the prompt of `[train.sample]`.
    fn sample(&self) -> Result<Option<Sample>, TrainError> {
        let Some(sample) = &self.config.train.sample else {
            return Ok(None);
        };
        let tokenizer = &self.prepared.tokenizer;
        let mut text = tokenizer
            .prompt(&sample.prompt)
            .map_err(crate::data::DataError::from)?;
        let sampling = Sampling {
            temperature: sample.temperature,
            seed: self.config.train.seed,
            ..Sampling::default()
        };
        let prompt = text.clone();
        let model = self.training.model.valid();
        let cut = generate(
            &model,
            &prompt,
            sample.tokens,
            tokenizer.eos_ids(),
            sampling,
            |id| {
                text.push(id);
                true
            },
        );
        Ok(Some(Sample {
            text: tokenizer.decode(&text),
            cut,
        }))
    }

    fn log(&mut self, record: &Record) -> Result<(), TrainError> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let written = writer.metrics.write(record);
        Ok(written.map_err(FileError::of("write", &self.folder.metrics()))?)
    }

    /// Restarts the clock, so that logged tokens per second exclude validation and checkpointing.
    fn restart_clock(&mut self) {
        self.since = Since {
            start: Instant::now(),
            tokens: self.training.progress.tokens,
        };
    }
}
