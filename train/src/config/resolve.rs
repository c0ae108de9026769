//! From what is written to what is run: defaults, and the rules across keys.

mod data;

use std::fmt::Display;

use firebox_model::config::{
    BalanceKind, FeedForwardKind, LARGEST_SIZE, ModelConfig, QkNorm, RouterConfig,
};
use firebox_model::tokenizer::Tokenizer;

use super::error::Problem;
use super::raw::{
    RawBatch, RawCheckpoint, RawConfig, RawModel, RawOptimizer, RawPlan, RawSchedule, RawTokenizer,
    RawTrain, TokenizerKind,
};
use super::{
    BYTES_VOCABULARY, BatchRamp, CheckpointConfig, DecayKind, OptimizerConfig, PlanConfig,
    RunConfig, SampleConfig, ScheduleConfig, TokenizerConfig, TrainConfig,
};

/// Most steps of a run: the sum over a batch ramp of this length still takes under a second.
const MOST_STEPS: u64 = 100_000_000;

type Checked<T> = Result<T, Problem>;

pub(super) fn resolve(raw: RawConfig) -> Checked<RunConfig> {
    let (tokenizer, vocabulary) = tokenizer(raw.tokenizer)?;
    let model = model(raw.model, vocabulary)?;
    let data = data::data(raw.data)?;
    let train = train(raw.train)?;
    let optimizer = optimizer(raw.optimizer)?;
    let schedule = schedule(raw.schedule, train.steps, model.context as u64)?;
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

/// The tokenizer and the number of its ids.
fn tokenizer(raw: RawTokenizer) -> Checked<(TokenizerConfig, usize)> {
    let RawTokenizer {
        kind,
        vocabulary,
        path,
        end_of_text,
    } = raw;
    let unused = |given: bool, key: &str, wanted: &str| {
        let hint = format!("remove it, or set tokenizer.kind = \"{wanted}\"");
        if given {
            Err(without_effect(key, &format!("unless tokenizer.kind is \"{wanted}\"")).hint(hint))
        } else {
            Ok(())
        }
    };
    if !matches!(kind, TokenizerKind::Bpe) {
        unused(vocabulary.is_some(), "tokenizer.vocabulary", "bpe")?;
    }
    if !matches!(kind, TokenizerKind::File) {
        unused(path.is_some(), "tokenizer.path", "file")?;
        unused(end_of_text.is_some(), "tokenizer.end_of_text", "file")?;
    }
    let needed = |key: &str, kind: &str| {
        Problem::new(
            key,
            format!("is missing, and tokenizer.kind = \"{kind}\" needs it"),
        )
    };
    match kind {
        TokenizerKind::Bytes => Ok((TokenizerConfig::Bytes, BYTES_VOCABULARY)),
        TokenizerKind::Bpe => {
            let key = "tokenizer.vocabulary";
            let vocabulary =
                vocabulary.ok_or_else(|| needed(key, "bpe").hint("2048 suits a small model"))?;
            between(key, vocabulary, BYTES_VOCABULARY, LARGEST_SIZE)
                .map_err(|problem| problem.hint("256 bytes and end of text are always ids"))?;
            Ok((TokenizerConfig::Bpe { vocabulary }, vocabulary))
        }
        TokenizerKind::File => {
            let path = path.ok_or_else(|| {
                needed("tokenizer.path", "file").hint("path = \"tokenizer.json\"")
            })?;
            let hint = "such as \"<|endoftext|>\" or \"</s>\": the token that ends a document";
            let end_of_text =
                end_of_text.ok_or_else(|| needed("tokenizer.end_of_text", "file").hint(hint))?;
            let opened = Tokenizer::from_file(&path, &end_of_text).map_err(|error| {
                let hint = error.hint();
                let problem = Problem::new("tokenizer.path", "cannot be used");
                Problem {
                    hint,
                    source: Some(Box::new(error)),
                    ..problem
                }
            })?;
            Ok((
                TokenizerConfig::File { path, end_of_text },
                opened.vocabulary(),
            ))
        }
    }
}

fn model(raw: RawModel, vocabulary: usize) -> Checked<ModelConfig> {
    between("model.heads", raw.heads, 1, LARGEST_SIZE)?;
    let head_dim = match raw.head_dim {
        Some(head_dim) => head_dim,
        None if raw.d_model.is_multiple_of(raw.heads) => raw.d_model / raw.heads,
        None => {
            let rule = format!(
                "must divide model.d_model = {}, since model.head_dim is not given",
                raw.d_model
            );
            return Err(Problem::new("model.heads", rule)
                .hint("give model.head_dim, or change one of the two"));
        }
    };
    let router = raw.router;
    let model = ModelConfig {
        vocabulary,
        layers: raw.layers,
        d_model: raw.d_model,
        heads: raw.heads,
        kv_heads: raw.kv_heads.unwrap_or(1),
        head_dim,
        context: raw.context,
        rope_theta: raw.rope_theta.unwrap_or(10_000.0),
        norm_epsilon: raw.norm_epsilon.unwrap_or(1e-5),
        tied_embeddings: raw.tied_embeddings.unwrap_or(false),
        initializer_range: raw.initializer_range.unwrap_or(0.02),
        qk_norm: QkNorm::None,
        feed_forward: raw.feed_forward.unwrap_or(FeedForwardKind::Moe),
        dense: None,
        experts: raw.experts,
        router: RouterConfig {
            normalize: router.normalize.unwrap_or(true),
            balance: router.balance.unwrap_or(BalanceKind::PerLayer),
            balance_coefficient: router.balance_coefficient.unwrap_or(0.01),
            z_coefficient: router.z_coefficient.unwrap_or(0.001),
            bias_update_rate: router.bias_update_rate.unwrap_or(0.0),
        },
    };
    model.validate().map_err(|error| {
        Problem::new(format!("model.{}", error.key), error.rule)
            .value(error.value)
            .hint(error.hint)
    })?;
    Ok(model)
}

fn train(raw: RawTrain) -> Checked<TrainConfig> {
    between("train.steps", raw.steps, 1, MOST_STEPS)?;
    let train = TrainConfig {
        steps: raw.steps,
        seed: raw.seed.unwrap_or(0),
        micro_batch: raw.micro_batch.unwrap_or(8),
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

fn optimizer(raw: RawOptimizer) -> Checked<OptimizerConfig> {
    let optimizer = OptimizerConfig {
        learning_rate: raw.learning_rate,
        beta1: raw.beta1.unwrap_or(0.9),
        beta2: raw.beta2.unwrap_or(0.95),
        epsilon: raw.epsilon.unwrap_or(1e-8),
        weight_decay: raw.weight_decay.unwrap_or(0.1),
        clip_norm: raw.clip_norm.unwrap_or(1.0),
    };
    above_zero("optimizer.learning_rate", optimizer.learning_rate)?;
    for (key, value) in [
        ("optimizer.beta1", optimizer.beta1),
        ("optimizer.beta2", optimizer.beta2),
    ] {
        if !(0.0..1.0).contains(&value) {
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
            "the learning rate would never reach its height; {} is 10 % of the steps",
            steps / 10
        );
        return Err(Problem::new("schedule.warmup_steps", rule).hint(hint));
    }
    let final_ratio = raw.final_ratio.unwrap_or(0.1);
    if !(0.0..=1.0).contains(&final_ratio) {
        return Err(Problem::new(
            "schedule.final_ratio",
            "must lie between 0 and 1",
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
                return Err(Problem::new(key, "must lie above 0, up to 1")
                    .hint("0.2 cools down over the last fifth"));
            }
            if warmup_steps as f64 + fraction * steps as f64 > steps as f64 {
                let rule = format!(
                    "must leave room for schedule.warmup_steps = {warmup_steps} of train.steps = {steps}"
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
    let holds_a_sequence = |key: &str, tokens: u64| {
        let rule = format!("must be at least model.context = {context}, one sequence");
        if tokens < context {
            Err(Problem::new(key, rule))
        } else {
            Ok(())
        }
    };
    let ramp = match raw {
        RawBatch::Constant(tokens) => {
            holds_a_sequence("schedule.batch_tokens", tokens)?;
            return Ok(BatchRamp {
                start: tokens,
                end: tokens,
                ramp_steps: 0,
            });
        }
        RawBatch::Ramp(ramp) => ramp,
    };
    holds_a_sequence("schedule.batch_tokens.start", ramp.start)?;
    if ramp.end < ramp.start {
        let rule = format!(
            "must be at least start = {}, since a batch grows",
            ramp.start
        );
        return Err(Problem::new("schedule.batch_tokens.end", rule));
    }
    if ramp.start == ramp.end {
        let problem = without_effect("schedule.batch_tokens.ramp_steps", "where start equals end");
        return Err(problem.hint(format!("write batch_tokens = {}", ramp.end)));
    }
    if ramp.ramp_steps == 0 {
        let problem = without_effect("schedule.batch_tokens.start", "where ramp_steps is 0");
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
    } = raw;
    at_least("plan.count", count, 1)?;
    above_zero("plan.peak_flops", peak_flops)?;
    let [lowest, highest] = utilization;
    if !(lowest > 0.0 && lowest <= highest && highest <= 1.0) {
        let rule = "must be [lowest, highest], both above 0 and up to 1";
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
        format!("must lie between {least} and {most}"),
    ))
}

fn above_zero(key: impl Into<String>, value: f64) -> Checked<()> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(Problem::new(key, "must be above 0 and finite"))
    }
}

fn zero_or_above(key: impl Into<String>, value: f64) -> Checked<()> {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        Err(Problem::new(key, "must be 0 or above, and finite"))
    }
}
