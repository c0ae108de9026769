//! The report as aligned text.

use std::fmt::{self, Display, Formatter};

use firebox_model::config::{FeedForwardKind, ModelConfig, QkNorm};

use super::Report;
use crate::config::{
    DecayKind, RunConfig, Share, SourceConfig, SourceKind, SplitKind, TokenizerConfig,
};
use firebox_console::numbers::{
    bytes, counted, flop, grouped, percent, percent_of, scaled, text_bytes,
};

impl Display for Report {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let mut table = Table(formatter);
        configuration(&mut table, &self.config)?;
        parameters(&mut table, self)?;
        operations(&mut table, self)?;
        training(&mut table, self)?;
        plan(&mut table, self)
    }
}

/// Rows of label, value and remark below headings.
struct Table<'a, 'b>(&'a mut Formatter<'b>);

impl Table<'_, '_> {
    fn heading(&mut self, text: &str) -> fmt::Result {
        writeln!(self.0, "\n{text}")
    }

    fn text(&mut self, label: &str, text: impl Display) -> fmt::Result {
        writeln!(self.0, "  {label:<16}{text}")
    }

    fn number(&mut self, label: &str, value: impl AsRef<str>, remark: impl Display) -> fmt::Result {
        let line = format!("  {label:<28}{:>14}  {remark}", value.as_ref());
        writeln!(self.0, "{}", line.trim_end())
    }
}

fn configuration(table: &mut Table, config: &RunConfig) -> fmt::Result {
    let (model, train, optimizer, schedule) = (
        &config.model,
        &config.train,
        &config.optimizer,
        &config.schedule,
    );
    writeln!(table.0, "configuration")?;
    table.text("model", model_summary(model))?;
    table.text("feed-forward", feed_forward_summary(model))?;
    if model.feed_forward == FeedForwardKind::Moe {
        table.text("balance", balance_summary(model))?;
    }
    if let Some(init) = &train.init {
        table.text("starts from", init.display())?;
    }
    table.text("tokenizer", tokenizer_summary(config))?;
    for source in &config.data.source {
        table.text("source", source_summary(source))?;
    }
    let validation = &config.data.validation;
    let chosen = match validation.by {
        SplitKind::Hash => "of the documents, by hash",
        SplitKind::Tail => "of every document, at its end",
    };
    table.text(
        "validation",
        format!("{} {chosen}", percent(validation.fraction)),
    )?;
    table.text(
        "optimizer",
        format!(
            "AdamW, learning rate {}, betas {} and {}, weight decay {}, clip norm {}",
            optimizer.learning_rate,
            optimizer.beta1,
            optimizer.beta2,
            optimizer.weight_decay,
            optimizer.clip_norm
        ),
    )?;
    let decay = match (schedule.decay, schedule.cooldown_fraction) {
        (DecayKind::Cosine, _) => "cosine decay".to_owned(),
        (DecayKind::Wsd, fraction) => format!(
            "constant, linear decay over the last {}",
            percent(fraction.unwrap_or(0.0))
        ),
    };
    table.text(
        "schedule",
        format!(
            "{} warm-up steps, {decay} to {} of the peak",
            grouped(schedule.warmup_steps),
            percent(schedule.final_ratio)
        ),
    )?;
    table.text(
        "steps",
        format!(
            "{}, micro-batches of {}, seed {}",
            grouped(train.steps),
            counted(train.micro_batch as u128, "sequence"),
            train.seed
        ),
    )?;
    let best = if config.checkpoint.keep_best {
        " and the best"
    } else {
        ""
    };
    let every = grouped(config.checkpoint.every);
    table.text(
        "checkpoints",
        format!(
            "every {every} steps, keeping the newest {}{best}",
            config.checkpoint.keep_last
        ),
    )
}

fn model_summary(model: &ModelConfig) -> String {
    let qk_norm = match model.qk_norm {
        QkNorm::None => "",
        QkNorm::Projection => ", QK norm over all heads",
        QkNorm::Head => ", per-head QK norm",
    };
    format!(
        "{}, d_model {}, {} of {}, {}{qk_norm}, context {}",
        counted(model.layers as u128, "layer"),
        grouped(model.d_model as u128),
        counted(model.heads as u128, "head"),
        model.head_dim,
        counted(model.kv_heads as u128, "key/value head"),
        grouped(model.context as u128)
    )
}

fn feed_forward_summary(model: &ModelConfig) -> String {
    let experts = &model.experts;
    let d_ff = grouped(experts.d_ff as u128);
    match model.feed_forward {
        FeedForwardKind::Moe => format!(
            "{} of d_ff {d_ff}, {} per token{}",
            counted(experts.count as u128, "expert"),
            experts.per_token,
            dense_summary(model)
        ),
        FeedForwardKind::Dense if experts.per_token == 1 => format!("dense, d_ff {d_ff}"),
        FeedForwardKind::Dense => format!(
            "dense, d_ff {} = {} × {d_ff} (iso-FLOP baseline of the MoE model)",
            grouped(model.active_d_ff() as u128),
            experts.per_token
        ),
    }
}

fn dense_summary(model: &ModelConfig) -> String {
    let Some(dense) = &model.dense else {
        return String::new();
    };
    let layers: Vec<String> = dense.layers.iter().map(usize::to_string).collect();
    let noun = if layers.len() == 1 { "layer" } else { "layers" };
    let d_ff = grouped(dense.d_ff as u128);
    format!("; {noun} {} dense with d_ff {d_ff}", layers.join(", "))
}

fn balance_summary(model: &ModelConfig) -> String {
    let router = &model.router;
    let bias = match router.bias_update_rate {
        0.0 => "no selection bias".to_owned(),
        rate => format!("selection bias with update rate {rate}"),
    };
    format!(
        "balance loss × {}, router z-loss × {}, {bias}",
        router.balance_coefficient, router.z_coefficient
    )
}

fn tokenizer_summary(config: &RunConfig) -> String {
    let ids = grouped(config.model.vocabulary as u128);
    match &config.tokenizer {
        TokenizerConfig::Bytes => format!("bytes, {ids} ids"),
        TokenizerConfig::Bpe { .. } => {
            format!("byte-pair encoding trained on this run's text, {ids} ids")
        }
        TokenizerConfig::File { path, .. } => format!("{}, {ids} ids", path.display()),
    }
}

fn source_summary(source: &SourceConfig) -> String {
    let from = match &source.kind {
        SourceKind::Files { files } => format!("files {}", files.join(", ")),
        SourceKind::Cargo { cargo } => {
            format!("*.{} of the packages in Cargo.lock", cargo.join(", *."))
        }
        SourceKind::Jsonl { jsonl, field } => format!("field `{field}` of {}", jsonl.join(", ")),
        SourceKind::Url { url, .. } => url.clone(),
    };
    let share = match source.share {
        Share::Epochs(epochs) => counted(epochs.into(), "epoch"),
        Share::Weight(weight) => format!("weight {weight}"),
    };
    let limit = source
        .max_bytes
        .map(|bytes| format!(", at most {} of text", text_bytes(bytes)));
    format!(
        "{}: {from}, {share}{}",
        source.name,
        limit.unwrap_or_default()
    )
}

fn parameters(table: &mut Table, report: &Report) -> fmt::Result {
    let (model, parts) = (&report.model, &report.model.parameters);
    let dense = report.config.model.feed_forward == FeedForwardKind::Dense;
    let experts = if dense {
        0
    } else {
        report.config.model.experts.count as u128 * model.expert_parameters_all_layers
    };
    let rows = [
        ("embedding", parts.embedding),
        ("attention, shared", parts.attention),
        ("router", parts.router),
        ("experts", experts),
        (
            if dense {
                "feed-forward"
            } else {
                "dense layers"
            },
            parts.feed_forward - experts,
        ),
        ("norms", parts.norms),
        ("head", parts.head),
    ];
    table.heading("parameters")?;
    for (label, count) in rows.into_iter().filter(|(_, count)| *count > 0) {
        let share = percent_of(count, model.total);
        table.number(
            label,
            scaled(count as f64),
            format!("{:>24}  {share:>6}", grouped(count)),
        )?;
    }
    table.number(
        "total",
        scaled(model.total as f64),
        format!("{:>24}", grouped(model.total)),
    )?;
    let share = percent_of(model.active, model.total);
    table.number(
        "active per token",
        scaled(model.active as f64),
        format!("{:>24}  {share:>6}", grouped(model.active)),
    )?;
    if !dense {
        let expert = format!("{:>24}", grouped(model.expert_parameters_all_layers));
        table.number(
            "one expert, all layers",
            scaled(model.expert_parameters_all_layers as f64),
            expert,
        )?;
    }
    table.heading("memory (f32, one device, without activations)")?;
    table.number("weights", bytes(model.memory.weights), "")?;
    table.number("gradients", bytes(model.memory.gradients), "")?;
    table.number("AdamW moments", bytes(model.memory.moments), "")?;
    table.number("total", bytes(model.memory.total()), "")
}

fn operations(table: &mut Table, report: &Report) -> fmt::Result {
    let operations = &report.model.operations;
    table.heading("FLOPs per token")?;
    table.number(
        "forward",
        flop(operations.forward),
        "2 × active weights; the embedding is a lookup",
    )?;
    if report.config.model.feed_forward == FeedForwardKind::Moe {
        table.number(
            "  with all experts",
            flop(operations.forward_every_expert),
            "",
        )?;
    }
    let remark = format!(
        "causal, {} tokens; not included in the other rows",
        grouped(report.config.model.context as u128)
    );
    table.number(
        "attention scores",
        flop(operations.attention_scores),
        remark,
    )?;
    table.number("training", flop(operations.training), "3 × forward")
}

fn training(table: &mut Table, report: &Report) -> fmt::Result {
    let training = &report.training;
    let [first, last] = training.tokens_per_step;
    let change = |[first, last]: [f64; 2]| {
        if first == last {
            String::new()
        } else {
            format!("from {} in the first step", scaled(first))
        }
    };
    let steps = counted(report.config.train.steps.into(), "step");
    table.heading("whole run")?;
    table.number(
        "tokens",
        scaled(training.tokens as f64),
        format!("{}, in {steps}", grouped(training.tokens)),
    )?;
    table.number(
        "tokens per step",
        scaled(last as f64),
        change([first as f64, last as f64]),
    )?;
    if let Some(tokens) = training.tokens_per_expert_per_step {
        table.number(
            "tokens per expert per step",
            scaled(tokens[1]),
            change(tokens),
        )?;
    }
    table.number(
        "training FLOPs",
        flop(training.operations),
        format!("{:.2e}", training.operations),
    )
}

fn plan(table: &mut Table, report: &Report) -> fmt::Result {
    let (Some(plan), Some(cost)) = (&report.config.plan, &report.plan) else {
        return Ok(());
    };
    let [lowest, highest] = plan.utilization;
    let [fewest, most] = cost.days;
    let [cheapest, dearest] = cost.dollars;
    table.heading(&format!(
        "on {} × {}",
        grouped(plan.count),
        plan.accelerator
    ))?;
    let peak = format!("of {}/s per accelerator", flop(plan.peak_flops));
    table.number(
        "utilization",
        format!("{}–{}", percent(lowest), percent(highest)),
        peak,
    )?;
    table.number("days", format!("{fewest:.1}–{most:.1}"), "")?;
    let rate = format!("at ${} per accelerator-hour", plan.dollars_per_hour);
    table.number(
        "dollars",
        format!("{}–{}", scaled(cheapest), scaled(dearest)),
        rate,
    )
}
