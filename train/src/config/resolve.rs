//! Resolves a configuration: fills in defaults and checks rules, also across keys.

mod data;
mod init;
mod model;
mod pictures;
mod tokenizer;

use std::fmt::Display;

use firebox_model::config::{LARGEST_SIZE, ModelConfig, ModelKeys};

use super::error::Problem;
use super::load::Chain;
use super::raw::{
    RawBatch, RawCheckpoint, RawConfig, RawOptimizer, RawPlan, RawSchedule, RawTokenizer, RawTrain,
};
use super::{
    BatchRamp, CheckpointConfig, DecayKind, Frozen, Muon, OptimizerConfig, PlanConfig, RunConfig,
    SampleConfig, ScheduleConfig, TokenizerConfig, TrainConfig,
};

/// Maximum number of steps of a run: summing over a batch ramp of this length takes less than a second.
const MOST_STEPS: u64 = 100_000_000;

type Checked<T> = Result<T, Problem>;

/// `complete` means that model and tokenizer are already resolved, so that the checkpoint of `train.init` is not
/// needed. `chain` ends with this configuration.
pub(super) fn resolve(raw: RawConfig, complete: bool, chain: &Chain) -> Checked<RunConfig> {
    let mut opens_eyes = false;
    let given = raw.tokenizer.is_some();
    let (tokenizer, model) = match &raw.train.init {
        Some(init) if !complete => {
            let accept = raw.train.accept.as_deref().unwrap_or_default();
            let origin = init::Origin::open(init, accept, chain)?;
            let special_tokens = raw.data.special_tokens.unwrap_or(false);
            let tokenizer = origin.tokenizer(raw.tokenizer, special_tokens)?;
            let model = origin.model(raw.model.unwrap_or_default())?;
            opens_eyes = model.vision.is_some() && !origin.sees();
            (tokenizer, model)
        }
        init => without_checkpoint(raw.tokenizer, raw.model, init.is_some())?,
    };
    let mut data = data::data(raw.data)?;
    data::tokens(&data, given.then_some(&tokenizer))?;
    let frozen = pictures::frozen(raw.train.frozen, &model, opens_eyes)?;
    let train = train(raw.train, frozen)?;
    let optimizer = optimizer(raw.optimizer)?;
    pictures::check(&model, &mut data, &train, &optimizer)?;
    let schedule = schedule(raw.schedule, train.steps, model.context_length as u64)?;
    let checkpoint = checkpoint(raw.checkpoint)?;
    let plan = raw.plan.map(plan).transpose()?;
    Ok(RunConfig {
        model,
        tokenizer,
        data,
        train,
        optimizer,
        schedule,
        checkpoint,
        plan,
    })
}

/// Resolves the tokenizer and the model from the configuration alone. If the run started from a checkpoint, the
/// configuration contains the vocabulary size too, and the tokenizer's file is not opened.
fn without_checkpoint(
    tokenizer: Option<RawTokenizer>,
    model: Option<ModelKeys>,
    from_checkpoint: bool,
) -> Checked<(TokenizerConfig, ModelConfig)> {
    let model = model.ok_or_else(|| Problem::missing("model"))?;
    let tokenizer = tokenizer.ok_or_else(|| Problem::missing("tokenizer"))?;
    let tokenizer = tokenizer::tokenizer(tokenizer)?;
    let key = "model.vocab_size";
    let vocab_size = match (model.vocab_size, from_checkpoint) {
        (Some(vocab_size), true) => vocab_size,
        (None, true) => return Err(Problem::missing(key)),
        (Some(_), false) => {
            return Err(without_effect(key, "without train.init")
                .hint("remove it; the tokenizer determines the number of ids"));
        }
        (None, false) => tokenizer::vocab_size(&tokenizer)?,
    };
    let model = ModelKeys {
        vocab_size: Some(vocab_size),
        ..model
    };
    Ok((tokenizer, model::model(&model)?))
}

fn train(raw: RawTrain, frozen: Option<Frozen>) -> Checked<TrainConfig> {
    between("train.steps", raw.steps, 1, MOST_STEPS)?;
    if raw.init.is_none() && raw.accept.is_some() {
        return Err(without_effect("train.accept", "without train.init")
            .hint("remove it; random weights have no config.json"));
    }
    if raw.init.is_some() && raw.zero_outputs == Some(true) {
        return Err(without_effect("train.zero_outputs", "with train.init")
            .hint("remove it, or set it to false; the weights are those of the checkpoint"));
    }
    let train = TrainConfig {
        init: raw.init,
        accept: raw.accept.unwrap_or_default(),
        frozen,
        steps: raw.steps,
        seed: raw.seed.unwrap_or(0),
        zero_outputs: raw.zero_outputs.unwrap_or(false),
        micro_batch: raw.micro_batch.unwrap_or(8),
        precision: raw.precision.unwrap_or_default(),
        log_every: raw.log_every.unwrap_or(10),
        validate_every: raw.validate_every.unwrap_or(100),
        validation_tokens: raw.validation_tokens.unwrap_or(100_000),
        sample: raw
            .sample
            .map(|sample| {
                let tokens = sample.tokens.unwrap_or(200);
                let temperature = sample.temperature.unwrap_or(0.8);
                if sample.prompt.is_empty() {
                    return Err(Problem::new("train.sample.prompt", "must not be empty"));
                }
                at_least("train.sample.tokens", tokens, 1)?;
                zero_or_above("train.sample.temperature", temperature)?;
                Ok(SampleConfig {
                    prompt: sample.prompt,
                    tokens,
                    temperature,
                })
            })
            .transpose()?,
    };
    between("train.micro_batch", train.micro_batch, 1, LARGEST_SIZE)?;
    at_least("train.log_every", train.log_every, 1)?;
    at_least("train.validate_every", train.validate_every, 1)?;
    at_least("train.validation_tokens", train.validation_tokens, 1)?;
    Ok(train)
}

/// The longest interval between two updates of an expert: beyond it, Muon's momentum has forgotten almost everything that it took in since.
const LONGEST_INTERVAL: usize = 100;

fn optimizer(raw: RawOptimizer) -> Checked<OptimizerConfig> {
    let muon = raw.muon.unwrap_or_default();
    if muon == Muon::None && raw.muon_momentum.is_some() {
        return Err(
            without_effect("optimizer.muon_momentum", "without optimizer.muon")
                .hint("remove it, or set muon = \"dense\" or \"all\""),
        );
    }
    if muon != Muon::All && raw.expert_interval.is_some_and(|interval| interval != 1) {
        return Err(
            without_effect("optimizer.expert_interval", "without Muon for the experts")
                .hint("set it to 1, or muon to \"all\""),
        );
    }
    let optimizer = OptimizerConfig {
        learning_rate: raw.learning_rate,
        beta1: raw.beta1.unwrap_or(0.9),
        beta2: raw.beta2.unwrap_or(0.95),
        epsilon: raw.epsilon.unwrap_or(1e-8),
        weight_decay: raw.weight_decay.unwrap_or(0.1),
        clip_norm: raw.clip_norm.unwrap_or(1.0),
        muon,
        muon_momentum: (muon != Muon::None).then(|| raw.muon_momentum.unwrap_or(0.95)),
        expert_interval: raw.expert_interval.unwrap_or(1),
        gate_rate: raw.gate_rate.unwrap_or(1.0),
    };
    between(
        "optimizer.expert_interval",
        optimizer.expert_interval,
        1,
        LONGEST_INTERVAL,
    )?;
    above_zero("optimizer.gate_rate", optimizer.gate_rate)?;
    above_zero("optimizer.learning_rate", optimizer.learning_rate)?;
    for (key, value) in [
        ("optimizer.beta1", Some(optimizer.beta1)),
        ("optimizer.beta2", Some(optimizer.beta2)),
        ("optimizer.muon_momentum", optimizer.muon_momentum),
    ] {
        if value.is_some_and(|value| !(0.0..1.0).contains(&value)) {
            return Err(Problem::new(key, "must be at least 0 and below 1"));
        }
    }
    above_zero("optimizer.epsilon", optimizer.epsilon)?;
    zero_or_above("optimizer.weight_decay", optimizer.weight_decay)?;
    zero_or_above("optimizer.clip_norm", optimizer.clip_norm)?;
    Ok(optimizer)
}

fn schedule(raw: RawSchedule, steps: u64, context: u64) -> Checked<ScheduleConfig> {
    let warmup_steps = raw.warmup_steps.unwrap_or(0);
    if warmup_steps >= steps {
        let rule = format!("must be below train.steps = {steps}");
        let hint = format!(
            "otherwise the learning rate never reaches its peak; {} is 10 % of the steps",
            steps / 10
        );
        return Err(Problem::new("schedule.warmup_steps", rule).hint(hint));
    }
    let final_ratio = raw.final_ratio.unwrap_or(0.1);
    if !(0.0..=1.0).contains(&final_ratio) {
        return Err(Problem::new(
            "schedule.final_ratio",
            "must be between 0 and 1",
        ));
    }
    let decay = raw.decay.unwrap_or(DecayKind::Cosine);
    let key = "schedule.cooldown_fraction";
    let cooldown_fraction = match (decay, raw.cooldown_fraction) {
        (DecayKind::Cosine, Some(_)) => {
            return Err(without_effect(key, "with schedule.decay = \"cosine\"")
                .hint("remove it, or set decay = \"wsd\""));
        }
        (DecayKind::Cosine, None) => None,
        (DecayKind::Wsd, fraction) => {
            let fraction = fraction.unwrap_or(0.2);
            if !(fraction > 0.0 && fraction <= 1.0) {
                return Err(Problem::new(key, "must be above 0 and at most 1")
                    .hint("0.2 decays the learning rate over the last fifth of the steps"));
            }
            if warmup_steps as f64 + fraction * steps as f64 > steps as f64 {
                let rule = format!(
                    "overlaps with the warm-up: schedule.warmup_steps = {warmup_steps} of train.steps = {steps}"
                );
                return Err(Problem::new(key, rule).value(fraction));
            }
            Some(fraction)
        }
    };
    let batch_tokens = batch(raw.batch_tokens, context)?;
    Ok(ScheduleConfig {
        warmup_steps,
        decay,
        final_ratio,
        cooldown_fraction,
        batch_tokens,
    })
}

fn batch(raw: RawBatch, context: u64) -> Checked<BatchRamp> {
    let at_least_a_sequence = |key: &str, tokens: u64| {
        let rule = format!("must be at least model.context_length = {context}, one sequence");
        if tokens < context {
            Err(Problem::new(key, rule))
        } else {
            Ok(())
        }
    };
    let ramp = match raw {
        RawBatch::Constant(tokens) => {
            at_least_a_sequence("schedule.batch_tokens", tokens)?;
            return Ok(BatchRamp {
                start: tokens,
                end: tokens,
                ramp_steps: 0,
            });
        }
        RawBatch::Ramp(ramp) => ramp,
    };
    at_least_a_sequence("schedule.batch_tokens.start", ramp.start)?;
    if ramp.end < ramp.start {
        let rule = format!(
            "must be at least start = {}, because the batch may only grow",
            ramp.start
        );
        return Err(Problem::new("schedule.batch_tokens.end", rule));
    }
    if ramp.start == ramp.end {
        let problem = without_effect("schedule.batch_tokens.ramp_steps", "when start equals end");
        return Err(problem.hint(format!("write batch_tokens = {}", ramp.end)));
    }
    if ramp.ramp_steps == 0 {
        let problem = without_effect("schedule.batch_tokens.start", "when ramp_steps is 0");
        return Err(problem.hint(format!("write batch_tokens = {}", ramp.end)));
    }
    Ok(BatchRamp {
        start: ramp.start,
        end: ramp.end,
        ramp_steps: ramp.ramp_steps,
    })
}

fn checkpoint(raw: RawCheckpoint) -> Checked<CheckpointConfig> {
    let every = raw.every.unwrap_or(200);
    let keep_last = raw.keep_last.unwrap_or(2);
    at_least("checkpoint.every", every, 1)?;
    at_least("checkpoint.keep_last", keep_last, 1)?;
    Ok(CheckpointConfig {
        every,
        keep_last,
        keep_best: raw.keep_best.unwrap_or(true),
    })
}

fn plan(raw: RawPlan) -> Checked<PlanConfig> {
    let RawPlan {
        accelerator,
        count,
        peak_flops,
        utilization,
        dollars_per_hour,
        note,
    } = raw;
    at_least("plan.count", count, 1)?;
    above_zero("plan.peak_flops", peak_flops)?;
    let [lowest, highest] = utilization;
    if !(lowest > 0.0 && lowest <= highest && highest <= 1.0) {
        let rule = "must be [lowest, highest], both above 0 and at most 1";
        return Err(
            Problem::new("plan.utilization", rule).hint("[0.32, 0.36] is 32 to 36 % of the peak")
        );
    }
    zero_or_above("plan.dollars_per_hour", dollars_per_hour)?;
    Ok(PlanConfig {
        accelerator,
        count,
        peak_flops,
        utilization,
        dollars_per_hour,
        note,
    })
}

fn without_effect(key: impl Into<String>, condition: &str) -> Problem {
    Problem::new(key, format!("has no effect {condition}"))
}

fn at_least<T: PartialOrd + Display>(key: &str, value: T, least: T) -> Checked<()> {
    if value >= least {
        Ok(())
    } else {
        Err(Problem::new(key, format!("must be at least {least}")))
    }
}

fn between<T: PartialOrd + Display>(key: &str, value: T, least: T, most: T) -> Checked<()> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(Problem::new(
        key,
        format!("must be between {least} and {most}"),
    ))
}

fn above_zero(key: impl Into<String>, value: f64) -> Checked<()> {
    // What runs computes in f32, whose range is smaller.
    let computed = value as f32;
    if computed.is_finite() && computed > 0.0 {
        Ok(())
    } else {
        Err(Problem::new(key, "must be above 0 and finite in f32"))
    }
}

fn zero_or_above(key: impl Into<String>, value: f64) -> Checked<()> {
    if (value as f32).is_finite() && value >= 0.0 {
        Ok(())
    } else {
        Err(Problem::new(key, "must be at least 0 and finite in f32"))
    }
}
