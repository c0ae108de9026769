//! `cargo infer compare`: runs the same tokens through a checkpoint on several devices and reports the differences.
//!
//! The first device that works is the reference. Each device runs in its own process, where `worker` writes its results
//! to a file (`trace_file`). This process compares two such files (`difference`, `flips`) and checks the differences
//! against tolerances (`tolerance`). Every part of the network is computed twice: within the whole network, where errors
//! accumulate from layer to layer, and alone, from the reference's inputs, so that a fault is reported where it
//! originates.

mod compared;
mod difference;
mod flips;
mod page;
mod summary;
mod tables;
#[cfg(test)]
mod tests;
mod text;
mod tokens;
mod tolerance;
mod trace_file;
mod worker;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use firebox_checkpoint::sharded::ShardedCheckpoint;
use firebox_checkpoint::{Accept, checkpoint_place, read_config};
use firebox_console::advice::Advise as _;
use firebox_console::durable::FileError;
use firebox_console::process::{self, COMPARE_DEVICE, hidden_command};
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_model::config::ModelConfig;
use firebox_model::parallel::RankLayout;
use firebox_runtime::device;
use serde::Serialize;

pub use compared::{
    Differences, Gradient, Greedy, LayerDifference, NetworkDifference, PartDifference,
    compare_traces,
};
pub use difference::Difference;
pub use firebox_console::process::Failure;
pub use flips::Flips;
pub use tokens::Tokens;
pub use tolerance::{Fault, Tolerances};
pub use trace_file::{Timings, TraceFile};
pub use worker::{Observed, Worker, trace_parts};

use crate::InferError;
use crate::engine::warn_of_accepted;
use crate::eval::Text;

/// How a device needs less memory.
const LESS_MEMORY: &str = "lower --tokens, or keep the weights in fewer bits (--dtype int8)";

/// A device, the type of its weights, and the layout of its ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// A name for `--device`.
    pub device: String,
    /// The type of the weights.
    pub dtype: WeightFormat,
    /// How ranks divide the model.
    pub layout: RankLayout,
}

impl fmt::Display for Candidate {
    /// `flex` for f32 weights on a single rank, `flex·bf16·2x4` for others: two pipeline stages of four tensor ranks, and
    /// `2x4x2` with two groups of experts.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.device)?;
        if self.dtype != WeightDtype::F32.into() {
            write!(formatter, "·{}", self.dtype)?;
        }
        match self.layout {
            RankLayout::ONE => Ok(()),
            layout => write!(formatter, "·{}", LayoutName(layout)),
        }
    }
}

/// A layout as `--layouts` has it, such as `2x4` or `2x4x2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayoutName(pub RankLayout);

impl fmt::Display for LayoutName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(RankLayout {
            pipeline,
            tensor,
            expert,
        }) = self;
        write!(formatter, "{pipeline}x{tensor}")?;
        match expert {
            1 => Ok(()),
            expert => write!(formatter, "x{expert}"),
        }
    }
}

impl FromStr for LayoutName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> =
            text.split('x').map(|number| number.parse().ok()).collect();
        let (pipeline, tensor, expert) = match numbers.as_deref() {
            Some(&[pipeline, tensor]) => (pipeline, tensor, 1),
            Some(&[pipeline, tensor, expert]) => (pipeline, tensor, expert),
            _ => {
                return Err(
                    "must be PIPELINExTENSOR or PIPELINExTENSORxEXPERT, such as 2x4".to_owned(),
                );
            }
        };
        Ok(Self(RankLayout {
            pipeline,
            tensor,
            expert,
        }))
    }
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Options {
    /// A checkpoint folder or a run folder.
    pub checkpoint: PathBuf,
    /// Fields of its config.json that are accepted although Firebox does not know them.
    pub accept: Vec<String>,
    /// The devices to compare; the first that works is the reference.
    pub candidates: Vec<Candidate>,
    /// The text to run; `None` for the built-in sample text.
    pub text: Option<Text>,
    /// Pictures that the text sees; none for text alone.
    pub images: Vec<PathBuf>,
    /// Whether text that spells a special token becomes that token.
    pub special_tokens: bool,
    /// Maximum number of tokens.
    pub tokens: usize,
    /// Also compare the gradient of the training loss for every parameter, for the candidates in f32 on a single rank.
    pub gradients: bool,
    /// Replaces the tolerances of each candidate's dtype; see [`Tolerances::around`].
    pub tolerance: Option<f64>,
    /// Number of threads of the CPU backends.
    pub threads: Option<usize>,
}

/// The result; the fields are those of `--json`, where a value that is not finite is null.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The checkpoint's folder.
    pub checkpoint: PathBuf,
    /// Number of layers.
    pub layers: usize,
    /// Number of MoE layers.
    pub moe_layers: usize,
    /// Where the text comes from.
    pub text: String,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of sequences.
    pub sequences: usize,
    /// Number of pictures that each of them sees.
    pub pictures: usize,
    /// The candidate that the others are compared with; `None` if all failed.
    pub reference: Option<String>,
    /// One per candidate, in the order in which they were named.
    pub rows: Vec<Row>,
}

/// A candidate's result in a [`Comparison`].
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Such as `flex`, `wgpu·bf16` or `flex·2x4`.
    pub name: String,
    /// A name for `--device`.
    pub device: String,
    /// The type of the weights.
    pub dtype: String,
    /// How ranks divide the model.
    pub layout: RankLayout,
    /// Its measurements, or why it failed.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The outcome of a candidate.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It completed.
    Measured(Box<Measured>),
    /// It failed.
    Failed(Failure),
}

/// The measurements of a candidate.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Speed and memory.
    #[serde(flatten)]
    pub timings: Timings,
    /// Mean cross-entropy in nats per token.
    pub nats_per_token: f64,
    /// `None` if the tokens do not come from text.
    pub bits_per_byte: Option<f64>,
    /// The differences from the reference; `None` for the reference itself.
    pub differences: Option<Differences>,
}

/// Compares candidates; `progress` is called with a candidate's name and its current stage.
///
/// # Errors
///
/// When the checkpoint or the text cannot be read, a device has a name that this build does not know, or a
/// temporary file cannot be written. A candidate that fails is a row, not an error.
pub fn compare(
    options: &Options,
    mut progress: impl FnMut(&str, &str),
) -> Result<Comparison, InferError> {
    for candidate in &options.candidates {
        device::check(&candidate.device)?;
    }
    let checkpoint = checkpoint_place(&options.checkpoint)?;
    let accept = Accept::Flag(&options.accept);
    let config = read_config(&checkpoint, accept)?;
    warn_of_accepted(&checkpoint, &config.notes);
    let tokens = Tokens::choose(&checkpoint, &config, options)?;
    let model = config.model;
    let divided = match ShardedCheckpoint::is_one(&checkpoint) {
        true => Some(ShardedCheckpoint::open(&checkpoint, accept)?.layout()),
        false => None,
    };
    for candidate in &options.candidates {
        if let Some(layout) = divided.filter(|layout| *layout != candidate.layout) {
            let folder = checkpoint;
            return Err(InferError::DividedComparison { folder, layout });
        }
        candidate.layout.check(&model)?;
    }
    let folder = tempfile::tempdir().map_err(FileError::of("write", &std::env::temp_dir()))?;
    let token_file = folder.path().join("tokens.json");
    tokens.write(&token_file)?;

    let mut runner = Runner {
        options,
        checkpoint: &checkpoint,
        folder: folder.path(),
        token_file,
        model: &model,
        tokens,
        reference: None,
    };
    let mut rows = Vec::with_capacity(options.candidates.len());
    for (index, candidate) in options.candidates.iter().enumerate() {
        let name = candidate.to_string();
        let outcome = runner.outcome(index, candidate, |stage| progress(&name, stage))?;
        rows.push(Row {
            name,
            device: candidate.device.clone(),
            dtype: candidate.dtype.to_string(),
            layout: candidate.layout,
            outcome,
        });
    }
    let tokens = &runner.tokens;
    Ok(Comparison {
        layers: model.layers.len(),
        moe_layers: model.moe_layers().count(),
        text: tokens.source().to_owned(),
        tokens: tokens.count(),
        sequences: tokens.sequences().len(),
        pictures: tokens.images().len(),
        reference: runner.reference.map(|reference| reference.name),
        rows,
        checkpoint,
    })
}

/// A running comparison.
struct Runner<'a> {
    options: &'a Options,
    checkpoint: &'a Path,
    /// Temporary folder for the files that processes exchange.
    folder: &'a Path,
    /// The file with `tokens`.
    token_file: PathBuf,
    tokens: Tokens,
    model: &'a ModelConfig,
    reference: Option<Reference>,
}

/// The candidate that the others are compared with.
struct Reference {
    name: String,
    dtype: WeightFormat,
    path: PathBuf,
    trace: TraceFile,
}

impl Runner<'_> {
    /// Runs a worker in its own process; `stage` is called with the name of each stage.
    fn measure(
        &self,
        worker: &Worker,
        mut stage: impl FnMut(&str),
    ) -> Result<Result<(), Failure>, InferError> {
        stage("starting");
        let mut command = hidden_command(COMPARE_DEVICE).map_err(InferError::Process)?;
        command
            .arg(&worker.checkpoint)
            .args(["--device", &worker.device])
            .args(["--dtype", &worker.dtype.to_string()])
            .args(["--layout", &LayoutName(worker.layout).to_string()])
            .arg("--tokens")
            .arg(&worker.tokens)
            .arg("--output")
            .arg(&worker.output);
        for field in &worker.accept {
            command.arg(format!("--accept={field}"));
        }
        if let Some(reference) = &worker.reference {
            command.arg("--reference").arg(reference);
        }
        if worker.gradients {
            command.arg("--gradients");
        }
        if let Some(threads) = self.options.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        process::run(command, LESS_MEMORY, stage).map_err(InferError::Process)
    }

    /// Measures a candidate, and compares it with the reference or makes it the reference.
    fn outcome(
        &mut self,
        index: usize,
        candidate: &Candidate,
        mut stage: impl FnMut(&str),
    ) -> Result<Outcome, InferError> {
        let output = self.folder.join(format!("{index}.safetensors"));
        let worker = Worker {
            checkpoint: self.checkpoint.to_owned(),
            accept: self.options.accept.clone(),
            device: candidate.device.clone(),
            dtype: candidate.dtype,
            layout: candidate.layout,
            tokens: self.token_file.clone(),
            output: output.clone(),
            reference: self
                .reference
                .as_ref()
                .map(|reference| reference.path.clone()),
            gradients: self.options.gradients
                && candidate.dtype == WeightDtype::F32.into()
                && candidate.layout == RankLayout::ONE,
            threads: self.options.threads,
        };
        if let Err(failure) = self.measure(&worker, &mut stage)? {
            return Ok(Outcome::Failed(failure));
        }
        stage("comparing");
        let trace = TraceFile::open(&output)?;
        let nats = difference::nats(&trace.matrix(trace_file::LOGITS)?, self.tokens.targets());
        let mut measured = Measured {
            timings: trace.timings().clone(),
            nats_per_token: nats,
            bits_per_byte: self.tokens.bits_per_byte(nats),
            differences: None,
        };
        match &self.reference {
            Some(reference) => {
                let tolerances = match self.options.tolerance {
                    Some(part) => Tolerances::around(part),
                    None => Tolerances::between(reference.dtype, candidate.dtype),
                };
                measured.differences = Some(compare_traces(
                    &reference.trace,
                    &trace,
                    &self.tokens,
                    self.model,
                    &tolerances,
                )?);
                // With gradients, the file is as large as the model.
                drop(trace);
                remove(&output)?;
            }
            // A device whose loss is NaN cannot be the reference.
            None if !nats.is_finite() => {
                let device = candidate.to_string();
                let error = InferError::NotFinite { device, nats };
                return Ok(Outcome::Failed(Failure {
                    reason: error.to_string(),
                    hint: error.hint(),
                    log: String::new(),
                }));
            }
            None => {
                self.reference = Some(Reference {
                    name: candidate.to_string(),
                    dtype: candidate.dtype,
                    path: output,
                    trace,
                });
            }
        }
        Ok(Outcome::Measured(Box::new(measured)))
    }
}

fn remove(path: &Path) -> Result<(), InferError> {
    Ok(std::fs::remove_file(path).map_err(FileError::of("remove", path))?)
}

impl Row {
    /// The measurements; `None` if the candidate failed.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed(_) => None,
        }
    }

    /// The differences from the reference; `None` for the reference and for a candidate that failed.
    pub fn differences(&self) -> Option<&Differences> {
        self.measured()?.differences.as_ref()
    }
}

impl Comparison {
    /// Checks that every candidate completed and agrees with the reference.
    ///
    /// # Errors
    ///
    /// The first candidate that failed, or else the first fault.
    pub fn verdict(&self) -> Result<(), InferError> {
        for row in &self.rows {
            if let Outcome::Failed(failure) = &row.outcome {
                return Err(InferError::DeviceFailed {
                    name: row.name.clone(),
                    reason: failure.reason.clone(),
                    hint: failure.hint.clone(),
                });
            }
        }
        let faulty = self
            .rows
            .iter()
            .filter_map(|row| Some((row, row.differences()?.faults.first()?)));
        let Some((row, fault)) = faulty.clone().next() else {
            return Ok(());
        };
        let more: usize = faulty
            .filter_map(|(row, _)| Some(row.differences()?.faults.len()))
            .sum();
        Err(InferError::Differs {
            name: row.name.clone(),
            reference: self.reference.clone().unwrap_or_default(),
            fault: fault.to_string(),
            more: more - 1,
        })
    }
}
