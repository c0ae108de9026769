//! `cargo infer compare`: the same tokens through a checkpoint on several devices, and what differs.
//!
//! The first device that works is the reference. Each device runs in a process of its own, where
//! `probe` writes down what it computes (`findings`); here two such files are compared (`difference`,
//! `flips`) and judged (`tolerance`). Every part of the network is computed twice: within the whole, where an
//! error grows from layer to layer, and alone, from what the reference computed before it, so that a fault is named
//! where it arises.

mod compared;
mod difference;
mod findings;
mod flips;
mod page;
mod probe;
mod summary;
mod tables;
#[cfg(test)]
mod tests;
mod text;
mod tokens;
mod tolerance;

use std::fmt;
use std::path::{Path, PathBuf};

use firebox_checkpoint::{checkpoint_folder, read_config};
use firebox_console::advice::Advise as _;
use firebox_console::durable::FileError;
use firebox_console::process::{self, COMPARE_DEVICE, hidden_command};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::parts::{self, Place};
use firebox_runtime::device;
use serde::Serialize;

pub use compared::{
    Differences, Gradient, Greedy, LayerDifference, PartDifference, Through, compare_findings,
};
pub use difference::Difference;
pub use findings::{Facts, Findings};
pub use firebox_console::process::Failure;
pub use flips::Flips;
pub use probe::{Probe, examine};
pub use tokens::Tokens;
pub use tolerance::{Fault, Tolerances};

use crate::InferError;
use crate::eval::Text;

/// How a device needs less memory.
const LESS_MEMORY: &str = "lower --tokens, or hold the weights in --dtype bf16";

/// A device, and what weights are held in there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// A name for `--device`.
    pub device: String,
    /// The type of the weights.
    pub dtype: WeightDtype,
}

impl fmt::Display for Candidate {
    /// The device alone where nothing is rounded: `flex`, `flex·bf16`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype {
            WeightDtype::F32 => formatter.write_str(&self.device),
            dtype => write!(formatter, "{}·{dtype}", self.device),
        }
    }
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Options {
    /// A checkpoint's folder, or a run's.
    pub checkpoint: PathBuf,
    /// The first that works is the reference.
    pub candidates: Vec<Candidate>,
    /// What to read; without, the text that ships inside.
    pub text: Option<Text>,
    /// Most tokens.
    pub tokens: usize,
    /// Also the gradient of the training loss for every parameter, of the candidates in f32.
    pub gradients: bool,
    /// In place of the tolerances of each candidate's dtype; see [`Tolerances::around`].
    pub tolerance: Option<f64>,
    /// Threads of the CPU backends.
    pub threads: Option<u16>,
}

/// What was found; the fields are those of `--json`. A number that is not finite is null there.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The checkpoint's folder.
    pub checkpoint: PathBuf,
    /// Layers of the network.
    pub layers: usize,
    /// Layers with experts.
    pub mixtures: usize,
    /// Whose text was read.
    pub text: String,
    /// Tokens that were read.
    pub tokens: usize,
    /// Sequences that they make.
    pub sequences: usize,
    /// The candidate that the others are compared with; none where all failed.
    pub reference: Option<String>,
    /// One a candidate, in the order in which they were named.
    pub rows: Vec<Row>,
}

/// A candidate's part in a [`Comparison`].
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Such as `flex` or `wgpu·bf16`.
    pub name: String,
    /// A name for `--device`.
    pub device: String,
    /// The type of the weights.
    pub dtype: String,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a candidate fared.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It computed.
    Measured(Box<Measured>),
    /// It did not.
    Failed(Failure),
}

/// What was measured of a candidate.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Speed and memory.
    #[serde(flatten)]
    pub facts: Facts,
    /// Mean cross-entropy of a token, in nats.
    pub nats_per_token: f64,
    /// Where it is known what bytes the tokens stand for.
    pub bits_per_byte: Option<f64>,
    /// From the reference; none for the reference itself.
    pub differences: Option<Differences>,
}

/// Compares candidates; `progress` is called with the candidate's name and what it is doing.
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
    let checkpoint = checkpoint_folder(&options.checkpoint)?;
    let model = read_config(&checkpoint)?.model;
    let tokens = Tokens::choose(&checkpoint, options.text.as_ref(), options.tokens)?;
    let folder = tempfile::tempdir().map_err(FileError::of("write", &std::env::temp_dir()))?;
    let given = folder.path().join("tokens.json");
    tokens.write(&given)?;

    let mut work = Work {
        options,
        checkpoint: &checkpoint,
        folder: folder.path(),
        given,
        places: parts::places(&model),
        tokens,
        reference: None,
    };
    let mut rows = Vec::with_capacity(options.candidates.len());
    for (number, candidate) in options.candidates.iter().enumerate() {
        let name = candidate.to_string();
        let outcome = work.outcome(number, candidate, |stage| progress(&name, stage))?;
        rows.push(Row {
            name,
            device: candidate.device.clone(),
            dtype: candidate.dtype.to_string(),
            outcome,
        });
    }
    let tokens = &work.tokens;
    Ok(Comparison {
        layers: model.layers,
        mixtures: (0..model.layers)
            .filter(|&layer| model.dense_d_ff(layer).is_none())
            .count(),
        text: tokens.source().to_owned(),
        tokens: tokens.count(),
        sequences: tokens.sequences().len(),
        reference: work.reference.map(|reference| reference.name),
        rows,
        checkpoint,
    })
}

/// A comparison at work.
struct Work<'a> {
    options: &'a Options,
    checkpoint: &'a Path,
    /// For the files between processes.
    folder: &'a Path,
    /// The file of `tokens`.
    given: PathBuf,
    tokens: Tokens,
    places: Vec<Place>,
    reference: Option<Reference>,
}

/// What the others are compared with.
struct Reference {
    name: String,
    path: PathBuf,
    findings: Findings,
}

impl Work<'_> {
    /// Runs a probe in a process; `stage` is called with what it is doing.
    fn measure(
        &self,
        probe: &Probe,
        mut stage: impl FnMut(&str),
    ) -> Result<Result<(), Failure>, InferError> {
        stage("starts");
        let mut command = hidden_command(COMPARE_DEVICE).map_err(InferError::Process)?;
        command
            .arg(&probe.checkpoint)
            .args(["--device", &probe.device])
            .args(["--dtype", &probe.dtype.to_string()])
            .arg("--tokens")
            .arg(&probe.tokens)
            .arg("--output")
            .arg(&probe.output);
        if let Some(reference) = &probe.reference {
            command.arg("--reference").arg(reference);
        }
        if probe.gradients {
            command.arg("--gradients");
        }
        if let Some(threads) = self.options.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        process::run(command, LESS_MEMORY, stage).map_err(InferError::Process)
    }

    /// Measures a candidate, and compares it with the reference or makes it that.
    fn outcome(
        &mut self,
        number: usize,
        candidate: &Candidate,
        mut stage: impl FnMut(&str),
    ) -> Result<Outcome, InferError> {
        let output = self.folder.join(format!("{number}.safetensors"));
        let probe = Probe {
            checkpoint: self.checkpoint.to_owned(),
            device: candidate.device.clone(),
            dtype: candidate.dtype,
            tokens: self.given.clone(),
            output: output.clone(),
            reference: self
                .reference
                .as_ref()
                .map(|reference| reference.path.clone()),
            gradients: self.options.gradients && candidate.dtype == WeightDtype::F32,
        };
        if let Err(failure) = self.measure(&probe, &mut stage)? {
            return Ok(Outcome::Failed(failure));
        }
        stage("is compared");
        let findings = Findings::open(&output)?;
        let nats = difference::nats(&findings.matrix(findings::LOGITS)?, self.tokens.targets());
        let mut measured = Measured {
            facts: findings.facts().clone(),
            nats_per_token: nats,
            bits_per_byte: self.tokens.bits_per_byte(nats),
            differences: None,
        };
        match &self.reference {
            Some(reference) => {
                let tolerances = match self.options.tolerance {
                    Some(part) => Tolerances::around(part),
                    None => Tolerances::of(candidate.dtype),
                };
                measured.differences = Some(compare_findings(
                    &reference.findings,
                    &findings,
                    &self.tokens,
                    &self.places,
                    &tolerances,
                )?);
                // As large as the model where there are gradients.
                drop(findings);
                remove(&output)?;
            }
            // A NaN loss cannot be the reference.
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
                    path: output,
                    findings,
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
    /// What was measured, where it did not fail.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed(_) => None,
        }
    }

    /// How it differs from the reference, where it is not the reference and did not fail.
    pub fn differences(&self) -> Option<&Differences> {
        self.measured()?.differences.as_ref()
    }
}

impl Comparison {
    /// That every candidate computed, and agrees with the reference.
    ///
    /// # Errors
    ///
    /// The first that did not, or does not.
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
