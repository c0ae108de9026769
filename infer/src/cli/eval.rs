//! `cargo infer eval`.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use firebox_console::durable::check_writable;
use firebox_console::numbers::{counted, grouped};
use firebox_console::progress::Progress;
use firebox_console::report::page_path;
use firebox_console::terminal::print;
use firebox_model::evaluate::ROWS;
use firebox_model::looking::{self, Effort, TRIED};
use serde::Serialize;

use super::{DtypeArgs, LayoutArgs, ModelArgs, Process, TimelineArgs, at_least_one, print_json};
use crate::InferError;
use crate::engine::Engine;
use crate::eval::captions::{self, CaptionData};
use crate::eval::captions_page;
use crate::eval::{Text, default_context, evaluate};
use crate::ranks::RankOptions;
use crate::tasks::{self, Item};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer eval runs/quickstart --data notes.txt\n  \
    cargo infer eval runs/quickstart --data held-out.jsonl --field content --json\n  \
    cargo infer eval runs/quickstart/checkpoints/step-0000100 --data a.txt b.txt --max-tokens 10000\n  \
    cargo infer eval runs/quickstart --data notes.txt --tensor 2 --pipeline 2\n  \
    cargo infer eval runs/vision --data pairs.jsonl --image image --group kind --html eval.html\n  \
    cargo infer eval Qwen3-0.6B --tasks questions.jsonl\n\n\
    The loss equals the validation loss of `cargo train` on all held-out text of a source, unless --batch or \
    --context is given or the model's context exceeds 2048. Of several sources, each is validated by itself.\n\n\
    With --image, for a model that sees, --data has JSON lines such as {\"image\": \"photo.png\", \"caption\": \"a red boiler\"}. Each \
    caption is predicted behind its own picture, behind another one and behind none; while the three losses are equal, the \
    model does not look. For some pictures the right caption is looked for among 16. Of a run's own held-out \
    pictures, `cargo train prepare CONFIG` prints the folder, in which validation.jsonl lists them; with --field text --image image \
    --group held_out the numbers are those of the run's validation.\n\n\
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
    /// object) has one document per line, a .parquet file one per row. Texts and JSON lines may be compressed (.gz, .zst). With
    /// --image, JSON lines whatever the name.
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "tasks")]
    data: Vec<PathBuf>,
    /// File of questions with choices, or of texts with their ends, to measure accuracy on, an item per line (see below).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "field", "context", "max_tokens", "image"])]
    tasks: Option<PathBuf>,
    /// Field of each JSON line, or column of a Parquet file, that contains the text [default: text], or with --image the
    /// caption [default: caption].
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// Field of each JSON line that contains the path of a picture, a PNG, JPEG or WebP file, relative to the file of the lines:
    /// evaluates captions of pictures.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["context", "max_tokens", "timeline"])]
    image: Option<String>,
    /// Field of each JSON line by which pairs are told apart: each group has losses of its own, and other pictures and captions
    /// are of the same group.
    #[arg(long, value_name = "NAME", requires = "image", conflicts_with_all = ["tasks", "context", "max_tokens", "timeline"])]
    group: Option<String>,
    /// What becomes of pairs whose picture cannot be read or whose caption is beyond the context.
    #[arg(long, value_enum, requires = "image", conflicts_with_all = ["tasks", "context", "max_tokens", "timeline"], default_value_t = OnError::Fail)]
    on_error: OnError,
    /// Pictures of each group for which the right caption is looked for among 16.
    #[arg(long, value_name = "N", requires = "image", conflicts_with_all = ["tasks", "context", "max_tokens", "timeline"], default_value_t = TRIED)]
    tried: usize,
    /// Read this many pairs at most.
    #[arg(long, value_name = "N", requires = "image", conflicts_with_all = ["tasks", "context", "max_tokens", "timeline"], value_parser = at_least_one)]
    max_captions: Option<usize>,
    /// Let text that spells a special token, such as <|im_start|>, become that token.
    #[arg(long)]
    special_tokens: bool,
    /// Sequence length in tokens [default: the model's context, at most 2048].
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    context: Option<usize>,
    /// Number of sequences per batch; fewer need less memory [default: 16, or 48 captions].
    #[arg(long, value_name = "ROWS", value_parser = at_least_one)]
    batch: Option<usize>,
    /// Stop after this many predicted tokens.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: Option<u64>,
    /// Also write an HTML page with pictures, their captions, and where the model looks.
    #[arg(long, value_name = "FILE", requires = "image", conflicts_with_all = ["tasks", "context", "max_tokens", "timeline"], value_parser = page_path)]
    html: Option<PathBuf>,
    #[command(flatten)]
    timeline: TimelineArgs,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// What becomes of pairs that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// The first one is an error.
    Fail,
    /// They are left out and counted.
    Skip,
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
        match self.image {
            Some(_) => {
                text.check_files()?;
                if let Some(path) = &self.html {
                    check_writable(path).map_err(InferError::Place)?;
                }
            }
            None => text.check()?,
        }
        self.timeline.check()?;
        let (model, weights, ranks) = (self.model.clone(), self.weights, self.ranks);
        model.with_engine(weights, ranks, process, move |open| {
            let engine = open()?.reading_special_tokens(self.special_tokens);
            match &self.image {
                Some(image) => self.evaluate_captions(&engine, image),
                None => self.evaluate(engine, &text),
            }
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
        let report = tasks::score(
            &engine,
            network,
            (path, items),
            self.batch.unwrap_or(ROWS),
            |texts| progress.set(texts),
        );
        drop(progress);
        let report = report?;
        match self.json {
            true => print_json(&report)?,
            false => print(&report.to_string()).map_err(InferError::Output)?,
        }
        engine.finish(network)
    }

    fn evaluate(&self, engine: Engine, text: &Text) -> Result<(), InferError> {
        let engine = engine.with_timeline(self.timeline.timeline.clone());
        let packed = text.pack(&engine)?;
        let context = self.context.unwrap_or_else(|| default_context(&engine));
        let tokens = packed.targets();
        let progress = Progress::new(format!("evaluating {} tokens", grouped(tokens)), tokens);
        let network = &mut *engine.network();
        let rows = self.batch.unwrap_or(ROWS);
        let report = evaluate(&engine, network, &packed, context, rows, |tokens| {
            progress.set(tokens)
        });
        drop(progress);
        let report = report?;
        if let Some(warning) = report.routers.warning() {
            tracing::warn!("{warning}");
        }
        self.print(&report)?;
        engine.finish(network)
    }

    fn evaluate_captions(&self, engine: &Engine, image: &str) -> Result<(), InferError> {
        let data = CaptionData {
            files: self.data.clone(),
            image: image.to_owned(),
            caption: self.field.clone(),
            group: self.group.clone(),
            skips: self.on_error == OnError::Skip,
            most: self.max_captions,
        };
        let effort = Effort {
            tried: self.tried,
            rows: self.batch.unwrap_or(looking::ROWS),
        };
        let set = data.read(engine)?;
        if let Some(first) = &set.first_left_out {
            let pairs = counted(set.left_out.into(), "pair");
            tracing::warn!("left out {pairs} that cannot be used, the first: {first}");
        }
        let pairs = counted(set.pairs() as u128, "captioned picture");
        let progress = Progress::new(format!("evaluating {pairs}"), set.rows(effort));
        let network = &mut *engine.network();
        let evaluated = captions::evaluate(engine, network, &set, effort, |rows| {
            progress.set(rows);
        });
        drop(progress);
        let (report, looks) = evaluated?;
        for warning in report.warnings() {
            tracing::warn!("{warning}");
        }
        if let Some(path) = &self.html {
            let page = captions_page::page(engine, network, &set, &looks, &report, effort)?;
            page.write(path)?;
            tracing::info!("wrote the page to {}", path.display());
        }
        self.print(&report)
    }

    fn print(&self, report: &(impl Serialize + Display)) -> Result<(), InferError> {
        match self.json {
            true => print_json(report),
            false => print(&report.to_string()).map_err(InferError::Output),
        }
    }
}
