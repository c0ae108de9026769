//! `cargo infer eval`.

use std::path::{Path, PathBuf};

use clap::Args;
use firebox_console::numbers::grouped;
use firebox_console::progress::Progress;
use firebox_console::terminal::print;
use firebox_model::evaluate::ROWS;

use super::{DtypeArgs, LayoutArgs, ModelArgs, Process, TimelineArgs, at_least_one, print_json};
use crate::InferError;
use crate::engine::Engine;
use crate::eval::{Text, default_context, evaluate};
use crate::ranks::RankOptions;
use crate::tasks::{self, Item};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer eval runs/quickstart --data notes.txt\n  \
    cargo infer eval runs/quickstart --data held-out.jsonl --field content --json\n  \
    cargo infer eval runs/quickstart/checkpoints/step-0000100 --data a.txt b.txt --max-tokens 10000\n  \
    cargo infer eval runs/quickstart --data notes.txt --tensor 2 --pipeline 2\n  \
    cargo infer eval Qwen3-0.6B --tasks questions.jsonl\n\n\
    The loss equals the validation loss of `cargo train` on all held-out text of a source, unless --batch or \
    --context is given or the model's context exceeds 2048. Of several sources, each is validated by itself.\n\n\
    A file of tasks has an item per line:\n  \
    {\"question\": \"The capital of France is\", \"choices\": [\"Rome\", \"Paris\"], \"answer\": 1}\n  \
    {\"context\": \"Once upon a\", \"continuation\": \" time\"}\n\
    A choice follows its question after a space; the likeliest one is the model's answer. The answer is a number from 0, a \
    letter from A, or the choice itself.";

#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    weights: DtypeArgs,
    #[command(flatten)]
    ranks: LayoutArgs,
    /// Text files; each file is one document, a file of JSON lines (.jsonl, .ndjson, or .json whose first line is an
    /// object) has one document per line, a .parquet file one per row. Texts and JSON lines may be compressed (.gz, .zst).
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "tasks")]
    data: Vec<PathBuf>,
    /// File of questions with choices, or of texts with their ends, to measure accuracy on, an item per line (see below).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "field", "context", "max_tokens"])]
    tasks: Option<PathBuf>,
    /// Field of each JSON line, or column of a Parquet file, that contains the text [default: text].
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// Let text that spells a special token, such as <|im_start|>, become that token.
    #[arg(long)]
    special_tokens: bool,
    /// Sequence length in tokens [default: the model's context, at most 2048].
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    context: Option<usize>,
    /// Number of sequences per batch; fewer need less memory.
    #[arg(long, value_name = "ROWS", default_value_t = ROWS, value_parser = at_least_one)]
    batch: usize,
    /// Stop after this many predicted tokens.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: Option<u64>,
    #[command(flatten)]
    timeline: TimelineArgs,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

impl EvalArgs {
    pub(super) fn on_ranks(&self, process: &Process) -> RankOptions {
        self.model.on_ranks(self.weights, self.ranks, process)
    }

    pub(super) fn execute(self, process: &Process) -> Result<(), InferError> {
        if let Some(path) = self.tasks.clone() {
            self.timeline.check()?;
            let items = tasks::read(&path)?;
            let (model, weights, ranks) = (self.model.clone(), self.weights, self.ranks);
            return model.with_engine(weights, ranks, process, move |open| {
                self.score(open()?, &path, &items)
            });
        }
        let text = Text {
            files: self.data.clone(),
            field: self.field.clone(),
            max_tokens: self.max_tokens,
        };
        text.check()?;
        self.timeline.check()?;
        let (model, weights, ranks) = (self.model.clone(), self.weights, self.ranks);
        model.with_engine(weights, ranks, process, move |open| {
            self.evaluate(open()?, &text)
        })
    }

    fn score(
        &self,
        engine: Engine,
        path: &Path,
        items: &[(usize, Item)],
    ) -> Result<(), InferError> {
        let engine = engine
            .reading_special_tokens(self.special_tokens)
            .with_timeline(self.timeline.timeline.clone());
        let texts = items.iter().map(|(_, item)| item.count() as u64).sum();
        let progress = Progress::new(format!("scoring {} texts", grouped(texts)), texts);
        let network = &mut *engine.network();
        let report = tasks::score(&engine, network, (path, items), self.batch, |texts| {
            progress.set(texts)
        });
        drop(progress);
        let report = report?;
        match self.json {
            true => print_json(&report)?,
            false => print(&report.to_string()).map_err(InferError::Output)?,
        }
        engine.finish(network)
    }

    fn evaluate(&self, engine: Engine, text: &Text) -> Result<(), InferError> {
        let engine = engine
            .reading_special_tokens(self.special_tokens)
            .with_timeline(self.timeline.timeline.clone());
        let packed = text.pack(&engine)?;
        let context = self.context.unwrap_or_else(|| default_context(&engine));
        let tokens = packed.targets();
        let progress = Progress::new(format!("evaluating {} tokens", grouped(tokens)), tokens);
        let network = &mut *engine.network();
        let report = evaluate(&engine, network, &packed, context, self.batch, |tokens| {
            progress.set(tokens)
        });
        drop(progress);
        let report = report?;
        if let Some(warning) = report.warning() {
            tracing::warn!("{warning}");
        }
        match self.json {
            true => print_json(&report)?,
            false => print(&report.to_string()).map_err(InferError::Output)?,
        }
        engine.finish(network)
    }
}
