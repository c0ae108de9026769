//! `cargo infer plan`.

use std::path::{Path, PathBuf};

use clap::Args;
use firebox_checkpoint::Accept;
use firebox_console::terminal::print;
use firebox_kernels::dtype::WeightDtype;

use super::{LayoutArgs, at_least_one, print_json};
use crate::InferError;
use crate::plan::{
    Bounds, ByBatch, Hardware, Plan, PlanError, Report, Workload, cheapest, fewest_stages,
    open_model, speculate,
};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer plan configs/gpt4.toml --hardware a100 --tensor 8 --pipeline 16 --batch 64\n  \
    cargo infer plan configs/gpt4.toml --hardware a100 --tensor 8 --pipeline 16 --batch 64 --beside configs/dense-175b.toml\n  \
    cargo infer plan configs/gpt4.toml --hardware h100 --batch 256 --search --latency 300\n  \
    cargo infer plan configs/gpt4.toml --hardware a100 --tensor 8 --pipeline 16 --draft-acceptance 0.8\n\n\
    How it estimates: a stage takes as long as its slowest rank reads its weights, the experts that its tokens visit and its\n\
    caches, or computes, whichever is longer, and as its sums take; a text waits for all stages and their hops. With even\n\
    routing, T tokens visit a share of 1 - (1 - k/E)^T of the experts. So a mixture costs most per token at middling\n\
    batches, where almost all experts are read for few tokens each: beside a dense model of 175 B parameters on 8 or more\n\
    A100, the described GPT-4 costs 3 times as much at about 800 texts at once, more below and less above. Numbers of hardware and assumed efficiencies are in\n\
    configs/hardware; --hardware takes a file of your own.";

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Configuration of a run, checkpoint folder, run folder, or sharded checkpoint. Weights are not read.
    model: PathBuf,
    /// a100, h100, laptop, or a file like those in configs/hardware.
    #[arg(long, value_name = "NAME|FILE", default_value = "a100")]
    hardware: String,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Texts that are generated at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    batch: usize,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = at_least_one)]
    prompt: usize,
    /// Tokens that are generated for a prompt.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    output: usize,
    /// Type of weights and caches: bf16, f16 or f32.
    #[arg(long, value_name = "TYPE", default_value_t = WeightDtype::Bf16)]
    dtype: WeightDtype,
    /// Another model, such as a dense one, to compare the cost with: on as few stages of as many tensor ranks as hold it.
    #[arg(long, value_name = "CONFIG|CHECKPOINT")]
    beside: Option<PathBuf>,
    /// Probability that a token of a draft is accepted: shows how long drafts should be.
    #[arg(long, value_name = "P", value_parser = probability)]
    draft_acceptance: Option<f64>,
    /// Time of drafting one token, as a share of a step of the model.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = probability, requires = "draft_acceptance")]
    draft_cost: f64,
    /// Find the layout that costs least per token instead of using --tensor, --pipeline and --expert.
    #[arg(long, conflicts_with_all = ["tensor", "pipeline", "expert"])]
    search: bool,
    /// Longest time from a token to the next one that --search may choose, in milliseconds.
    #[arg(long, value_name = "MS", requires = "search", value_parser = milliseconds)]
    latency: Option<f64>,
    /// Largest number of ranks that --search may choose.
    #[arg(long, value_name = "N", default_value_t = 256, requires = "search", value_parser = at_least_one)]
    max_ranks: usize,
    /// Unknown field of config.json to ignore; may be given several times.
    #[arg(long, value_name = "FIELD")]
    accept: Vec<String>,
    /// Print a JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    pub(super) fn execute(self) -> Result<(), InferError> {
        let report = self.report()?;
        match self.json {
            true => print_json(&report),
            false => print(&report.to_string()).map_err(InferError::Output),
        }
    }

    fn report(&self) -> Result<Report, PlanError> {
        let accept = Accept::Flag(&self.accept);
        let open = |path: &Path| {
            let config = open_model(path, accept)?;
            let (tokens, largest) = (self.prompt + self.output, config.context_length);
            if tokens > largest {
                return Err(PlanError::Context {
                    tokens,
                    largest,
                    model: path.to_owned(),
                });
            }
            Ok(config)
        };
        let config = open(&self.model)?;
        let beside = self.beside.as_deref().map(open).transpose()?;
        let hardware = Hardware::open(&self.hardware)?;
        let workload = Workload {
            batch: self.batch,
            prompt: self.prompt,
            output: self.output,
            width: self.dtype.bytes(),
        };
        let plan = match self.search {
            true => {
                let bounds = Bounds {
                    ranks: self.max_ranks,
                    latency: self.latency.map(|milliseconds| milliseconds / 1e3),
                };
                cheapest(&config, &hardware, workload, bounds)?
            }
            false => Plan::of(&config, self.layout.layout(), &hardware, workload)?,
        };
        let layout = plan.layout;
        let mut report = Report::new(&config, hardware, workload, plan);
        let row = |batch| {
            let workload = Workload { batch, ..workload };
            let plan = Plan::of(&config, layout, &report.hardware, workload)?;
            let beside = beside
                .as_ref()
                .map(|other| fewest_stages(other, layout.tensor, &report.hardware, workload));
            let beside = match beside {
                Some(Err(PlanError::NothingFits { .. })) | None => None,
                Some(plan) => Some(plan?),
            };
            Ok::<_, PlanError>(ByBatch::new(batch, plan, beside))
        };
        let rows: Vec<ByBatch> = batches(self.batch)
            .into_iter()
            .map(row)
            .collect::<Result<_, _>>()?;
        report.three_times_at = three_times_at(&rows, row)?;
        report.by_batch = rows;
        if let Some(acceptance) = self.draft_acceptance {
            let (hardware, cost) = (&report.hardware, self.draft_cost);
            report.speculation = speculate(&config, layout, hardware, workload, acceptance, cost)?;
        }
        Ok(report)
    }
}

/// The largest number of texts at which the cost is still three times that of the other model, by halving between two rows
/// of which the first is above that and the second below.
fn three_times_at(
    rows: &[ByBatch],
    row: impl Fn(usize) -> Result<ByBatch, PlanError>,
) -> Result<Option<usize>, PlanError> {
    let above = |row: &ByBatch| {
        let beside = row.beside.as_ref();
        beside.map(|beside| row.dollars_per_million >= 3.0 * beside.dollars_per_million)
    };
    let pair = rows
        .windows(2)
        .rfind(|pair| above(&pair[0]) == Some(true) && above(&pair[1]) == Some(false));
    let Some([first, last]) = pair else {
        return Ok(None);
    };
    let (mut first, mut last) = (first.batch, last.batch);
    while last - first > 1 {
        let middle = first + (last - first) / 2;
        match above(&row(middle)?) {
            Some(true) => first = middle,
            _ => last = middle,
        }
    }
    Ok(Some(first))
}

/// Powers of four up to 4,096, and the number of texts.
fn batches(asked: usize) -> Vec<usize> {
    let mut batches: Vec<usize> = (0..7).map(|power| 4usize.pow(power)).collect();
    batches.push(asked);
    batches.sort_unstable();
    batches.dedup();
    batches
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(time) if time > 0.0 && f64::is_finite(time) => Ok(time),
        _ => Err("must be a number of milliseconds above 0".to_owned()),
    }
}
