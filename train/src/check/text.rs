//! The report as tables.

use std::fmt::{self, Display, Formatter};

use firebox_console::report::Table;
use firebox_model::config::{
    AttentionBias, AttentionKind, BalanceKind, ExpertActivation, ModelConfig, MoeConfig,
    Multipliers, QkNorm, RopeScaling, RouterConfig, Scores,
};

use super::{RankPlan, Report, TrainingTotals, gradients_at_once, sequences};
use crate::config::{
    DecayKind, Frozen, Muon, RunConfig, Share, SourceConfig, SourceKind, SplitKind,
    TokenizerConfig, TrainingSource,
};
use firebox_console::numbers::{
    bytes, counted, flop, grouped, percent, percent_of, scaled, text_bytes,
};

impl Display for Report {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let tables = [
            Some(configuration(&self.config)),
            Some(parameters(self)),
            Some(memory(self)),
            self.ranks.as_ref().map(|plan| ranks(plan, &self.config)),
            Some(operations(self)),
            pictures(self),
            Some(training(self)),
            plan(self),
            before(self),
        ];
        let tables: Vec<String> = tables.iter().flatten().map(Table::to_string).collect();
        formatter.write_str(&tables.join("\n"))
    }
}

fn configuration(config: &RunConfig) -> Table {
    let (model, train) = (&config.model, &config.train);
    let mut rows = vec![
        ("model", model_summary(model)),
        ("feed-forward", feed_forward_summary(model)),
    ];
    if let Some(attention) = attention_summary(model) {
        rows.insert(1, ("attention", attention));
    }
    if let Some(moe) = &model.moe {
        rows.push(("balance", balance_summary(&moe.router)));
    }
    if let Some(init) = &train.init {
        let init = init.display();
        let from = match (train.first_run(), train.origin()) {
            (Some(_), Some(folder)) => format!(
                "the run of {init}, in {}, which `cargo train run` does first, unless it is finished",
                folder.display()
            ),
            _ => init.to_string(),
        };
        rows.push(("starts from", from));
    }
    if let Some(frozen) = train.frozen {
        let what = match frozen {
            Frozen::Nothing => "all of the model",
            Frozen::Text => {
                "what reads pictures: the tower, the layers that attend to pictures, the image token; the text is frozen"
            }
        };
        rows.push(("trains", what.to_owned()));
    }
    rows.push(("tokenizer", tokenizer_summary(config)));
    for TrainingSource { text, share } in &config.data.source {
        let share = match share {
            Share::Epochs(epochs) => counted((*epochs).into(), "epoch"),
            Share::Weight(weight) => format!("weight {weight}"),
        };
        rows.push(("source", source_summary(text, &share)));
    }
    let split = config.data.validation.split;
    let chosen = match split.by {
        Some(SplitKind::Hash) => Some("of the documents, by hash"),
        Some(SplitKind::Tail) => Some("of every document, at its end"),
        None => None,
    };
    let held_out = chosen.map(|chosen| format!("{} {chosen}", percent(split.fraction)));
    rows.extend(held_out.map(|text| ("validation", text)));
    let sources = config.data.validation.source.iter();
    rows.extend(sources.map(|text| ("validation", source_summary(text, "for validation only"))));
    let best = if config.checkpoint.keep_best {
        " and the best"
    } else {
        ""
    };
    rows.extend([
        ("optimizer", optimizer_summary(config)),
        ("schedule", schedule_summary(config)),
        (
            "steps",
            format!(
                "{}, micro-batches of {}, products in {}, seed {}",
                grouped(train.steps),
                counted(train.micro_batch as u128, "sequence"),
                train.precision,
                train.seed
            ),
        ),
        (
            "checkpoints",
            format!(
                "every {} steps, keeping the newest {}{best}",
                grouped(config.checkpoint.every),
                config.checkpoint.keep_last
            ),
        ),
    ]);
    let table = Table::new("configuration").texts(["", ""]);
    rows.into_iter().fold(table, |table, (label, text)| {
        table.row([label.into(), text.into()])
    })
}

fn optimizer_summary(config: &RunConfig) -> String {
    let optimizer = &config.optimizer;
    let muon = match (optimizer.muon, optimizer.expert_interval) {
        (Muon::None, _) => String::new(),
        (Muon::Dense, _) => "Muon for attention and dense layers, else ".to_owned(),
        (Muon::All, 1) => "Muon for attention, dense layers and experts, else ".to_owned(),
        (Muon::All, steps) => format!(
            "Muon for attention, dense layers and experts, each of these once in {steps} steps, else "
        ),
    };
    format!(
        "{muon}AdamW, learning rate {}, betas {} and {}, weight decay {}, clip norm {}",
        optimizer.learning_rate,
        optimizer.beta1,
        optimizer.beta2,
        optimizer.weight_decay,
        optimizer.clip_norm
    )
}

fn schedule_summary(config: &RunConfig) -> String {
    let schedule = &config.schedule;
    let decay = match (schedule.decay, schedule.cooldown_fraction) {
        (DecayKind::Cosine, _) => "cosine decay".to_owned(),
        (DecayKind::Wsd, fraction) => format!(
            "constant, linear decay over the last {}",
            percent(fraction.unwrap_or(0.0))
        ),
    };
    format!(
        "{} warm-up steps, {decay} to {} of the peak",
        grouped(schedule.warmup_steps),
        percent(schedule.final_ratio)
    )
}

fn model_summary(model: &ModelConfig) -> String {
    let qk_norm = match model.qk_norm {
        QkNorm::None => "",
        QkNorm::Projection => ", QK norm over all heads",
        QkNorm::Head => ", per-head QK norm",
    };
    let rope = match &model.rope_scaling {
        None => String::new(),
        Some(RopeScaling::Linear { factor }) => format!(", rotary frequencies / {factor}"),
        Some(RopeScaling::Llama3 { factor, .. }) => format!(", Llama 3 rotary scaling by {factor}"),
        Some(RopeScaling::Yarn { factor, .. }) => format!(", YaRN by {factor}"),
    };
    let biases = match model.attention_bias {
        AttentionBias::None => "",
        AttentionBias::Qkv => ", biases of queries, keys and values",
        AttentionBias::All => ", biases of attention",
    };
    let sinks = if model.sinks { ", attention sinks" } else { "" };
    let partial = match model.rotary_dim == model.head_dim {
        true => String::new(),
        false => format!(", {} values of a head rotated", model.rotary_dim),
    };
    let latent = match &model.latent {
        None => String::new(),
        Some(latent) => format!(
            ", keys and values of {} made of {} values{}",
            latent.value_dim,
            grouped(latent.rank as u128),
            match latent.query_rank {
                None => String::new(),
                Some(rank) => format!(", queries of {}", grouped(rank as u128)),
            }
        ),
    };
    let multipliers = match model.multipliers == Multipliers::NONE {
        true => String::new(),
        false => multipliers(&model.multipliers),
    };
    let tower = match &model.vision {
        None => String::new(),
        Some(vision) => format!(
            ", a vision tower of {} + {} layers of {}",
            vision.layers,
            vision.global_layers,
            grouped(vision.width as u128)
        ),
    };
    format!(
        "{}, d_model {}, {} of {}, {}{qk_norm}{biases}{sinks}{partial}{latent}{rope}{multipliers}, context {}{tower}",
        counted(model.layers.len() as u128, "layer"),
        grouped(model.d_model as u128),
        counted(model.heads as u128, "head"),
        model.head_dim,
        counted(model.kv_heads as u128, "key/value head"),
        grouped(model.context_length as u128)
    )
}

/// The factors that are in use.
fn multipliers(factors: &Multipliers) -> String {
    let absent = Multipliers::NONE;
    let all = [
        (", embeddings × ", factors.embedding, absent.embedding),
        (", residual branches × ", factors.residual, absent.residual),
        (", logits ÷ ", factors.logits_divisor, absent.logits_divisor),
    ];
    let used = all
        .into_iter()
        .filter(|(_, factor, absent)| factor != absent);
    let scores = factors
        .attention
        .map(|factor| format!(", scores × {factor}"));
    let used = used.map(|(what, factor, _)| format!("{what}{factor}"));
    used.chain(scores).collect()
}

/// How many layers attend to what, where it is not the whole context in all of them.
fn attention_summary(model: &ModelConfig) -> Option<String> {
    let count = |counts: fn(AttentionKind) -> bool| {
        let layers = model.layers.iter().filter(|layer| counts(layer.attention));
        layers.count()
    };
    let mut windows = model
        .layers
        .iter()
        .filter_map(|layer| layer.attention.window());
    let kinds = [
        (
            count(|kind| kind == AttentionKind::Full),
            "the whole context".to_owned(),
        ),
        (
            count(|kind| kind.window().is_some()),
            format!(
                "a window of {}",
                grouped(windows.next().unwrap_or(0) as u128)
            ),
        ),
        (
            count(|kind| kind == AttentionKind::Nope),
            "the whole context, without rotary positions".to_owned(),
        ),
        (
            count(|kind| kind == AttentionKind::Cross),
            "pictures".to_owned(),
        ),
    ];
    if kinds[0].0 == model.layers.len() {
        return None;
    }
    let parts = kinds.into_iter().filter(|(layers, _)| *layers > 0);
    let parts =
        parts.map(|(layers, sees)| format!("{} over {sees}", counted(layers as u128, "layer")));
    Some(parts.collect::<Vec<String>>().join("; "))
}

fn feed_forward_summary(model: &ModelConfig) -> String {
    let Some(MoeConfig { experts, .. }) = &model.moe else {
        let mut widths: Vec<usize> = model.dense_layers().map(|(_, d_ff)| d_ff).collect();
        widths.dedup();
        let widths = widths.iter().map(|d_ff| grouped(*d_ff as u128));
        return format!("dense, d_ff {}", widths.collect::<Vec<String>>().join(", "));
    };
    format!(
        "{} of d_ff {}{}{}, {} per token{}{}",
        counted(experts.count as u128, "expert"),
        grouped(experts.d_ff as u128),
        match experts.activation {
            ExpertActivation::Swiglu => String::new(),
            ExpertActivation::ClampedSwiglu { limit, .. } => format!(" clamped at {limit}"),
        },
        if experts.biases { " with biases" } else { "" },
        experts.top_k,
        match experts.shared_d_ff {
            0 => String::new(),
            shared => {
                let gate = if experts.shared_gate { "gated " } else { "" };
                format!(", {gate}shared experts of d_ff {}", grouped(shared as u128))
            }
        },
        dense_summary(model)
    )
}

fn dense_summary(model: &ModelConfig) -> String {
    let (layers, widths): (Vec<usize>, Vec<usize>) = model.dense_layers().unzip();
    let Some(d_ff) = widths.first() else {
        return String::new();
    };
    let noun = if layers.len() == 1 { "layer" } else { "layers" };
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    let d_ff = grouped(*d_ff as u128);
    format!("; {noun} {} dense with d_ff {d_ff}", layers.join(", "))
}

fn balance_summary(router: &RouterConfig) -> String {
    let scores = match router.scores {
        Scores::Softmax => "",
        Scores::Sigmoid => "sigmoid scores, ",
    };
    let logits = match router.logit_bias {
        true => "biased logits, ",
        false => "",
    };
    let groups = match router.groups {
        1 => String::new(),
        groups => format!("experts of {} of {groups} groups, ", router.top_groups),
    };
    let loss = format!("balance loss × {}", router.balance_coefficient);
    let balance = match (router.balance, router.bias_update_rate) {
        (BalanceKind::Quantile, _) => "quantile balancing".to_owned(),
        (_, 0.0) => format!("{loss}, no selection bias"),
        (_, rate) => format!("{loss}, selection bias with update rate {rate}"),
    };
    let scaling = match router.scaling {
        1.0 => String::new(),
        scaling => format!("weights × {scaling}, "),
    };
    format!(
        "{scores}{logits}{groups}{scaling}{balance}, router z-loss × {}",
        router.z_coefficient
    )
}

fn tokenizer_summary(config: &RunConfig) -> String {
    let ids = grouped(config.model.vocab_size as u128);
    match &config.tokenizer {
        TokenizerConfig::Bytes => format!("bytes, {ids} ids"),
        TokenizerConfig::Bpe { .. } => {
            format!("byte-pair encoding trained on this run's text, {ids} ids")
        }
        TokenizerConfig::File { path, .. } => format!("{}, {ids} ids", path.display()),
    }
}

fn source_summary(source: &SourceConfig, share: &str) -> String {
    let from = match &source.kind {
        SourceKind::Files { files } => format!("files {}", files.join(", ")),
        SourceKind::Cargo { cargo } => {
            format!("*.{} of the packages in Cargo.lock", cargo.join(", *."))
        }
        SourceKind::Emoji { cargo } => format!("pictures and names of {cargo}"),
        SourceKind::Pairs {
            jsonl,
            image,
            field,
            ..
        } => {
            format!(
                "pictures `{image}` and captions `{field}` of {}",
                jsonl.join(", ")
            )
        }
        SourceKind::Jsonl { jsonl, field } => format!("field `{field}` of {}", jsonl.join(", ")),
        SourceKind::Parquet { parquet, field } => {
            format!("column `{field}` of {}", parquet.join(", "))
        }
        SourceKind::Tokens { tokens } => format!("tokens of {}", tokens.join(", ")),
        SourceKind::Url { url, .. } => url.clone(),
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

fn parameters(report: &Report) -> Table {
    let (model, parts) = (&report.model, &report.model.parameters);
    let config = &report.config.model;
    let moe = config.moe.as_ref().map(|moe| moe.experts);
    let (experts, shared) = moe.map_or((0, 0), |experts| {
        let of_layer = 3 * config.d_model as u128 * experts.shared_d_ff as u128;
        (
            experts.count as u128 * model.expert_parameters_all_layers,
            config.moe_layers().count() as u128 * of_layer,
        )
    });
    let dense = moe.is_none();
    let feed_forward = if dense {
        "feed-forward"
    } else {
        "dense layers"
    };
    let rows = [
        ("embedding", parts.embedding),
        ("attention, shared", parts.attention),
        ("router", parts.router),
        ("experts", experts),
        ("shared experts", shared),
        (feed_forward, parts.feed_forward - experts - shared),
        ("norms", parts.norms),
        ("biases and sinks", parts.biases),
        ("head", parts.head),
        ("layers that attend to pictures", parts.cross_attention),
        ("vision tower", parts.tower),
        ("vision projector", parts.projector),
    ];
    let row = |table: Table, label: &str, count: u128, share: Option<String>| {
        table.row([
            label.into(),
            scaled(count as f64).into(),
            grouped(count).into(),
            share.unwrap_or_default().into(),
        ])
    };
    let share = |count| Some(percent_of(count, model.total));
    let table = Table::new("parameters").texts([""]).numbers(["", "", ""]);
    let parts = rows.into_iter().filter(|(_, count)| *count > 0);
    let table = parts.fold(table, |table, (label, count)| {
        row(table, label, count, share(count))
    });
    let table = row(table, "total", model.total, None);
    let table = row(table, "active per token", model.active, share(model.active));
    if dense {
        table
    } else {
        row(
            table,
            "one expert, all layers",
            model.expert_parameters_all_layers,
            None,
        )
    }
}

fn memory(report: &Report) -> Table {
    let memory = &report.model.memory;
    let [_, sequences] = sequences(&report.config);
    let figure = |label, value| (label, bytes(value), String::new());
    Table::figures(
        "memory (f32, one device, without activations)",
        [
            figure("weights", memory.weights),
            gradients(memory.gradients, &report.config, sequences),
            figure("optimizer", memory.moments),
            figure("total", memory.total()),
        ],
    )
}

/// Those of a device that computes so many sequences in a step.
fn gradients(held: u128, config: &RunConfig, sequences: u64) -> (&'static str, String, String) {
    let remark = match gradients_at_once(config, sequences) {
        1 => "",
        _ => "of a micro-batch, and the sum of those before",
    };
    ("gradients", bytes(held), remark.to_owned())
}

fn ranks(plan: &RankPlan, config: &RunConfig) -> Table {
    let figure = |label, value| (label, bytes(value), String::new());
    let [first, last] = plan.sequences;
    let batch = match first == last {
        true => String::new(),
        false => format!("{first} in the first step"),
    };
    let ranks = plan.layout.ranks() as u128;
    let mut rows = vec![
        figure("weights", plan.weights),
        gradients(plan.gradients, config, last),
        (
            "optimizer",
            bytes(plan.moments),
            "each rank updates a share of the weights".to_owned(),
        ),
        figure("total", plan.total()),
        ("sequences of a batch", grouped(u128::from(last)), batch),
        (
            "messages of a step",
            bytes(plan.bytes_per_step / ranks),
            "gradients, and weights that it has updated".to_owned(),
        ),
    ];
    rows.extend(plan.bytes_per_token.map(|tokens| {
        (
            "messages of a token",
            bytes(tokens as u128),
            "to its experts and back, both passes; as if every expert were as likely".to_owned(),
        )
    }));
    rows.extend(plan.sum_bytes_per_token.map(|tokens| {
        (
            "sums of a token",
            bytes(tokens),
            "of all tensor ranks of its share, both passes".to_owned(),
        )
    }));
    Table::figures(
        format!(
            "each of {ranks} ranks ({}; f32, without activations)",
            plan.layout
        ),
        rows,
    )
}

fn operations(report: &Report) -> Table {
    let operations = &report.model.operations;
    let context = grouped(report.config.model.context_length as u128);
    let remark = "2 × active weights; the embedding is a lookup".to_owned();
    let forward = ("forward", flop(operations.forward), remark);
    let remark = format!("causal, {context} tokens; not included in the other rows");
    let scores = (
        "attention scores",
        flop(operations.attention_scores),
        remark,
    );
    let training = (
        "training",
        flop(operations.training),
        "3 × forward".to_owned(),
    );
    let title = "FLOPs per token";
    if report.config.model.moe.is_none() {
        return Table::figures(title, [forward, scores, training]);
    }
    let every = flop(operations.forward_every_expert);
    let every = ("  with all experts", every, String::new());
    let table = Table::figures(title, [forward, every, scores, training]);
    let plan = report.config.plan.as_ref();
    match plan.and_then(|plan| plan.note.as_ref()) {
        Some(note) => table.note(note),
        None => table,
    }
}

fn pictures(report: &Report) -> Option<Table> {
    let vision = report.config.model.vision.as_ref()?;
    let operations = report.model.pictures?;
    let [tiles, positions, filled] = [
        vision.max_tiles,
        vision.positions(),
        vision.filled_positions(),
    ]
    .map(|count| grouped(count as u128));
    let encoder = (
        "tower and projector",
        flop(operations.encoder),
        format!("a picture, {tiles} × {filled} positions, attention scores included"),
    );
    let keys = (
        "keys and values",
        flop(operations.keys),
        format!("a picture, {tiles} × {positions} of them in each layer that attends to pictures"),
    );
    let token = (
        "cross-attention",
        flop(operations.token),
        "a token that sees one picture".to_owned(),
    );
    let title = "FLOPs of pictures, forward";
    Some(Table::figures(title, [encoder, keys, token]))
}

fn training(report: &Report) -> Table {
    let training = &report.training;
    let change = |[first, last]: [f64; 2]| {
        if first == last {
            String::new()
        } else {
            format!("from {} in the first step", scaled(first))
        }
    };
    let steps = counted(report.config.train.steps.into(), "step");
    let tokens = (
        "tokens",
        scaled(training.tokens as f64),
        format!("{}, in {steps}", grouped(training.tokens)),
    );
    let [first, last] = training.tokens_per_step.map(|tokens| tokens as f64);
    let per_step = ("tokens per step", scaled(last), change([first, last]));
    let operations = (
        "training FLOPs",
        flop(training.operations),
        format!("{:.2e}", training.operations),
    );
    let mut rows = vec![tokens, per_step];
    rows.extend(training.tokens_per_expert_per_step.map(|per_expert| {
        (
            "tokens per expert per step",
            scaled(per_expert[1]),
            change(per_expert),
        )
    }));
    rows.push(operations);
    rows.extend(training.of_pictures.map(|of_pictures| {
        (
            "of them for pictures",
            flop(of_pictures),
            "a picture of most tiles for each sequence".to_owned(),
        )
    }));
    Table::figures("whole run", rows)
}

/// The runs that this one starts from, the nearest first, and all together.
fn before(report: &Report) -> Option<Table> {
    report.first.as_ref()?;
    let mut all = report.training.operations;
    let mut rows = Vec::new();
    let mut later = report;
    while let (Some(first), Some(file)) = (&later.first, &later.config.train.init) {
        let TrainingTotals {
            tokens, operations, ..
        } = first.training;
        all += operations;
        let steps = counted(first.config.train.steps.into(), "step");
        rows.push((
            file.display().to_string(),
            flop(operations),
            format!("{} tokens, in {steps}", scaled(tokens as f64)),
        ));
        later = first;
    }
    rows.push(("with this run".to_owned(), flop(all), format!("{all:.2e}")));
    Some(Table::figures("training FLOPs of the runs before", rows))
}

fn plan(report: &Report) -> Option<Table> {
    let (plan, cost) = (report.config.plan.as_ref()?, report.plan.as_ref()?);
    let [lowest, highest] = plan.utilization;
    let [fewest, most] = cost.days;
    let [cheapest, dearest] = cost.dollars;
    Some(Table::figures(
        format!("on {} × {}", grouped(plan.count), plan.accelerator),
        [
            (
                "utilization",
                format!("{}–{}", percent(lowest), percent(highest)),
                format!("of {}/s per accelerator", flop(plan.peak_flops)),
            ),
            ("days", format!("{fewest:.1}–{most:.1}"), String::new()),
            (
                "dollars",
                format!("{}–{}", scaled(cheapest), scaled(dearest)),
                format!("at ${} per accelerator-hour", plan.dollars_per_hour),
            ),
        ],
    ))
}
