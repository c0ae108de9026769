//! `cargo infer plan`.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::Args;
use firebox_checkpoint::Accept;
use firebox_console::durable;
use firebox_console::progress::Progress;
use firebox_console::terminal::print;
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_model::accounting::Accounting;
use serde::Serialize;

use super::values::{positive, share};
use super::{LayoutArgs, at_least_one, print_json};
use crate::InferError;
use crate::compare::LayoutName;
use crate::plan::measure::{self, Measured, measure};
use crate::plan::{
    Beside, Bounds, Comparison, Drafting, Hardware, Plan, PlanError, Report, Widths, Workload,
    cheapest, open_model, speculate,
};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer plan configs/gpt4.toml --hardware a100 --tensor 8 --pipeline 16 --batch 64\n  \
    cargo infer plan configs/gpt4.toml --hardware a100 --tensor 8 --pipeline 16 --batch 64 --beside configs/dense-175b.toml\n  \
    cargo infer plan configs/gpt4.toml --hardware h100 --batch 256 --search --latency 300\n  \
    cargo infer plan configs/gpt4.toml --hardware a100 --tensor 8 --pipeline 16 --draft-acceptance 0.8\n  \
    cargo infer plan runs/quickstart --measure --hardware-out here.toml\n\n\
    Stage time = max(memory traffic, FLOPs) on its slowest rank, plus its all-reduces. A rank reads its weights, the experts \
    that its tokens visit, and its KV cache; with even routing, T tokens visit a share of 1 - (1 - k/E)^T of the experts. A \
    text passes through all stages and the sends between them. Before a prompt is read, each rank with layers that attend to \
    pictures computes the whole vision tower. Numbers of hardware and assumed efficiencies are in\n\
    configs/hardware; --hardware takes a file of your own. --measure makes one of this machine, and shows predicted and \
    measured times of a checkpoint side by side.";

/// The longest prompt and output where none are given, in tokens: of a plan, and of one that is measured.
const PLANNED: [usize; 2] = [2048, 512];
const MEASURED: [usize; 2] = [128, 32];

/// Options of a plan that is not measured.
const UNMEASURED: [&str; 10] = [
    "hardware",
    "tensor",
    "pipeline",
    "expert",
    "batch",
    "pictures",
    "message_dtype",
    "beside",
    "draft_acceptance",
    "search",
];

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Configuration of a run, checkpoint folder, run folder, or sharded checkpoint. Weights are read with --measure only.
    model: PathBuf,
    /// a100, h100, laptop, or a file like those in configs/hardware.
    #[arg(long, value_name = "NAME|FILE", default_value = "a100")]
    hardware: String,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Texts that are generated at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    batch: usize,
    /// Tokens of a prompt [default: 2048, with --measure 128, or what the context leaves beside the output].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    prompt: Option<usize>,
    /// Tokens that are generated for a prompt [default: 512, with --measure 32, or a quarter of the context if that is less].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    output: Option<usize>,
    /// Pictures that each text sees from its beginning on [default: 1 if the model sees pictures].
    #[arg(long, value_name = "N")]
    pictures: Option<usize>,
    /// Type of weights and KV cache: bf16, f16, f32 or int8, with which the KV cache is in bf16 [default: bf16, with --measure
    /// f32, which the KV cache then is in any case].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightFormat>,
    /// Type of the activations that ranks send: bf16, f16 or f32 [default: that of --dtype, with int8 bf16].
    ///
    /// The ranks of `cargo infer` itself send f32.
    #[arg(long, value_name = "TYPE")]
    message_dtype: Option<WeightDtype>,
    /// Another model, such as a dense one, to compare the cost with: with the same --tensor and the fewest stages that fit.
    #[arg(long, value_name = "CONFIG|CHECKPOINT")]
    beside: Option<PathBuf>,
    /// Probability that a token of a draft is accepted: adds a table of speed-up by draft length.
    #[arg(long, value_name = "P", value_parser = share)]
    draft_acceptance: Option<f64>,
    /// Time of drafting one token, as a share of a step of the model.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = share, requires = "draft_acceptance")]
    draft_cost: f64,
    /// Find the layout that costs least per token instead of using --tensor, --pipeline and --expert.
    #[arg(long, conflicts_with_all = ["tensor", "pipeline", "expert"])]
    search: bool,
    /// Longest time from a token to the next one that --search may choose, in milliseconds.
    #[arg(long, value_name = "MS", requires = "search", value_parser = positive)]
    latency: Option<f64>,
    /// Largest number of ranks that --search may choose.
    #[arg(long, value_name = "N", default_value_t = 256, requires = "search", value_parser = at_least_one)]
    max_ranks: usize,
    /// Measure this machine and generate with the checkpoint on ranks that are threads of it, to compare times with their
    /// prediction.
    #[arg(long, conflicts_with_all = UNMEASURED)]
    measure: bool,
    /// Layouts to measure: pipeline stages × tensor ranks, and `x` groups of experts if there are several.
    #[arg(
        long,
        value_name = "LAYOUTS",
        value_delimiter = ',',
        default_value = "1x1,1x2,2x1,1x4",
        requires = "measure"
    )]
    layouts: Vec<LayoutName>,
    /// Numbers of texts at once to measure.
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        default_value = "1,4,16",
        requires = "measure",
        value_parser = at_least_one
    )]
    batches: Vec<usize>,
    /// File to write what --measure finds of this machine to, for --hardware.
    #[arg(long, value_name = "FILE", requires = "measure")]
    hardware_out: Option<PathBuf>,
    /// Unknown field of config.json to ignore; may be given several times.
    #[arg(long, value_name = "FIELD")]
    accept: Vec<String>,
    /// Print a JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    pub(super) fn execute(self) -> Result<(), InferError> {
        match self.measure {
            true => self.measure(),
            false => show(&self.report()?, self.json),
        }
    }

    fn measure(&self) -> Result<(), InferError> {
        if let Some(path) = &self.hardware_out {
            durable::check_writable(path).map_err(InferError::Place)?;
        }
        let measured = self.measured()?;
        show(&measured, self.json)?;
        let Some(path) = &self.hardware_out else {
            return Ok(());
        };
        let comment = format!(
            "Measured by `cargo infer plan CHECKPOINT --measure --dtype {}`: this machine's cores, which ranks share\n\
             that are threads of it. `network` and `price` are assumptions.",
            measured.dtype
        );
        measured.hardware.write(path, &comment)?;
        tracing::info!("wrote {}", path.display());
        Ok(())
    }

    fn measured(&self) -> Result<Measured, InferError> {
        let config = open_model(&self.model, Accept::Flag(&self.accept))?.config;
        let contexts = [(config.context_length, self.model.as_path())];
        let (prompt, output) = self.lengths(&contexts, MEASURED)?;
        let options = measure::Options {
            checkpoint: self.model.clone(),
            accept: self.accept.clone(),
            dtype: self.dtype.unwrap_or_default(),
            layouts: self.layouts.iter().map(|layout| layout.0).collect(),
            batches: self.batches.clone(),
            prompt,
            output,
        };
        let progress = Progress::new("measuring", 0);
        let measured = measure(&options, &config, |stage| progress.tell(stage.to_owned()));
        drop(progress);
        measured
    }

    fn report(&self) -> Result<Report, PlanError> {
        let open = |path: &Path| open_model(path, Accept::Flag(&self.accept));
        let model = open(&self.model)?;
        let beside = match &self.beside {
            Some(path) => Some(Beside {
                path: path.clone(),
                config: open(path)?.config,
            }),
            None => None,
        };
        let hardware = Hardware::open(&self.hardware)?;
        let mut contexts = vec![(model.config.context_length, self.model.as_path())];
        contexts.extend(
            beside
                .iter()
                .map(|beside| (beside.config.context_length, beside.path.as_path())),
        );
        let config = &model.config;
        let mut workload = self.workload(&contexts)?;
        workload.pictures = self.pictures(config.vision.is_some(), workload.prompt)?;
        let plan = match self.search {
            true => {
                let bounds = Bounds {
                    ranks: self.max_ranks,
                    latency: self.latency.map(|milliseconds| milliseconds / 1e3),
                };
                cheapest(config, &hardware, workload, bounds)?
            }
            false => Plan::of(config, self.layout.layout(), &hardware, workload)?,
        };
        let layout = plan.layout;
        let comparison = Comparison::new(config, layout, &hardware, workload, beside.as_ref())?;
        let by_batch = comparison.rows(self.batch);
        let speculation = match self.draft_acceptance {
            Some(acceptance) => {
                let cost = self.draft_cost;
                let drafting = Drafting { acceptance, cost };
                speculate(config, layout, &hardware, workload, drafting)?
            }
            None => Vec::new(),
        };
        Ok(Report {
            model: Accounting::of(config),
            note: model.note,
            workload,
            plan,
            three_times_at: comparison.three_times_at(&by_batch),
            by_batch,
            speculation,
            hardware,
            beside: self.beside.clone(),
        })
    }

    /// The workload of models with these contexts.
    fn workload(&self, contexts: &[(usize, &Path)]) -> Result<Workload, PlanError> {
        let (prompt, output) = self.lengths(contexts, PLANNED)?;
        let widths = Widths::of(self.dtype.unwrap_or(WeightDtype::Bf16.into()));
        Ok(Workload {
            batch: self.batch,
            prompt,
            output,
            pictures: 0,
            widths: Widths {
                message: self
                    .message_dtype
                    .map_or(widths.message, WeightDtype::bytes),
                ..widths
            },
        })
    }

    /// The pictures of a text, for a model that sees some or none.
    fn pictures(&self, sees: bool, prompt: usize) -> Result<usize, PlanError> {
        match self.pictures.unwrap_or(usize::from(sees)) {
            pictures @ 1.. if !sees => Err(PlanError::Blind {
                pictures,
                model: self.model.clone(),
            }),
            pictures if pictures > prompt => Err(PlanError::Pictures { pictures, prompt }),
            pictures => Ok(pictures),
        }
    }

    /// The tokens of a prompt and of what is generated for it, with models of these contexts. What is not given is as long
    /// as the shortest context allows, and no longer than `most`.
    fn lengths(
        &self,
        contexts: &[(usize, &Path)],
        most: [usize; 2],
    ) -> Result<(usize, usize), PlanError> {
        let &(largest, model) = contexts
            .iter()
            .min_by_key(|(context, _)| *context)
            .expect("there is a model");
        let left = |given: usize| largest.saturating_sub(given).max(1);
        let output = self.output.unwrap_or_else(|| {
            let output = most[1].min((largest / 4).max(1));
            self.prompt
                .map_or(output, |prompt| output.min(left(prompt)))
        });
        let prompt = self.prompt.unwrap_or_else(|| most[0].min(left(output)));
        match prompt.saturating_add(output) > largest {
            false => Ok((prompt, output)),
            true => Err(PlanError::Context {
                prompt,
                output,
                largest,
                model: model.to_owned(),
            }),
        }
    }
}

fn show(report: &(impl Display + Serialize), json: bool) -> Result<(), InferError> {
    match json {
        true => print_json(report),
        false => print(&report.to_string()).map_err(InferError::Output),
    }
}
