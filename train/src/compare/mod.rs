//! `cargo train compare`: the same steps on several devices, side by side.
//!
//! Weights are drawn and data is ordered on the host, from the seed alone, so that every device computes the same
//! thing and nothing but rounding may differ. Each device is a process of its own (`process`, `record`): one that
//! fails is one row, memory is its own, and the time to the first step begins with nothing. What came out is judged
//! here, and said in words, tables (`text`) and a page (`page`).

mod page;
mod process;
mod record;
#[cfg(test)]
mod tests;
mod text;

use std::path::PathBuf;

use firebox_model::device::DeviceError;
use serde::Serialize;

use crate::data::DataError;

pub use self::process::{COMMAND as COMPARE_DEVICE, compare};
pub use self::record::{StepRecord, print_line, record};

/// What to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct CompareOptions {
    /// The run's TOML file.
    pub config: PathBuf,
    /// Values set over the file's.
    pub set: Vec<String>,
    /// Names of the devices; the others are compared with the first.
    pub devices: Vec<String>,
    /// Steps to take, of those of the run.
    pub steps: u64,
    /// The most that a loss may be off, over the loss of the first device.
    pub tolerance: f64,
    /// Threads of the CPU backends.
    pub threads: Option<u16>,
}

/// The tolerance where none is given. Twenty steps of the quickstart model part by 1e-5 from rounding alone; a loss
/// that is 1e-3 off is another curve.
pub const TOLERANCE: f64 = 1e-3;

/// The most that the first step's loss may be off, whatever the tolerance: the weights are the same yet, and only
/// the order of additions differs (see `tests/golden.rs` for where this comes from).
const FIRST_LOSS: f64 = 1e-5;

/// The same for the norm of the first step's gradient.
const FIRST_NORM: f64 = 1e-4;

/// What several devices came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The configuration's file.
    pub config: PathBuf,
    /// Steps that were asked for.
    pub steps: u64,
    /// Steps of the whole run, which its learning rate follows.
    pub run_steps: u64,
    /// Seed of weights and data.
    pub seed: u64,
    /// The most that a loss may be off.
    pub tolerance: f64,
    /// One for each device, in the order in which they were named; the first is what the others are compared with.
    pub devices: Vec<DeviceRun>,
}

/// What one device came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceRun {
    /// Its name.
    pub device: String,
    /// Its steps, as far as it came.
    pub steps: Vec<StepRecord>,
    /// Why it came no further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// From the start of its process to the end of the first step, in seconds: reading, and compiling of shaders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_step_seconds: Option<f64>,
    /// Tokens per second of the steps after the first three, or after the first where there are no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// The largest memory of its process, in bytes; what a GPU holds is not in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// How far it is from the first device; `None` for the first itself and where no step can be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

/// How far a device is from the first one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Of the loss by step, over the loss of the first device.
    pub loss: Vec<f64>,
    /// Of the gradient's norm by step, over that of the first device.
    pub gradient_norm: Vec<f64>,
    /// Largest difference of an expert's share of the load by step, over all layers; 0 for a dense model.
    pub load: Vec<f64>,
    /// The first step that is further off than it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parting: Option<Parting>,
}

/// Where a device parts from the first one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parting {
    /// The step, from 1.
    pub step: u64,
    /// `loss` or `gradient norm`.
    pub what: &'static str,
    /// On the first device.
    pub expected: f64,
    /// On this one.
    pub found: f64,
    /// The difference over `expected`.
    pub difference: f64,
    /// The most that it may be.
    pub limit: f64,
}

/// Why devices cannot be compared, or that they differ.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The text cannot be prepared.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A name that no build knows.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Nothing to compare.
    #[error("--devices names {0} alone, and a comparison takes two")]
    One(String),
    /// A device twice.
    #[error("--devices names {0} twice")]
    Twice(String),
    /// More steps than the run has.
    #[error("--steps {steps} is more than the {of} of train.steps")]
    Steps {
        /// What was asked for.
        steps: u64,
        /// What the run has.
        of: u64,
    },
    /// This program cannot start itself.
    #[error("{device} cannot be given a process of its own")]
    Process {
        /// The device.
        device: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The page cannot be written.
    #[error("cannot write {}", path.display())]
    Page {
        /// Where.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A device did not come to the end, or parted from the first.
    #[error("{}", .0.join("; "))]
    Differ(Vec<String>),
}

impl CompareError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Data(error) => return error.hint(),
            Self::Device(error) => return Some(error.hint()),
            Self::One(_) => "name another, such as --devices flex,ndarray",
            Self::Twice(_) => "name each device once",
            Self::Steps { .. } => {
                "--set train.steps makes the run longer, and its learning rate another"
            }
            Self::Differ(_) => {
                "`cargo infer compare CHECKPOINT` finds the layer where two devices part; --tolerance allows more"
            }
            Self::Process { .. } | Self::Page { .. } => return None,
        };
        Some(hint.to_owned())
    }

    /// The process's exit code: 2 for wrong usage, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Data(error) if error.is_usage() => 2,
            Self::Device(_) | Self::One(_) | Self::Twice(_) | Self::Steps { .. } => 2,
            Self::Data(_) | Self::Process { .. } | Self::Page { .. } | Self::Differ(_) => 1,
        }
    }
}

impl Comparison {
    /// Compares every device with the first.
    fn judge(&mut self) {
        let Some((first, others)) = self.devices.split_first_mut() else {
            return;
        };
        for other in others {
            other.difference = Difference::between(&other.steps, &first.steps, self.tolerance);
        }
    }

    /// An error when a device did not come to the end or parted from the first one: one sentence about each.
    ///
    /// # Errors
    ///
    /// See above.
    pub fn verdict(&self) -> Result<(), CompareError> {
        let faults: Vec<String> = self
            .devices
            .iter()
            .filter(|run| run.is_at_fault())
            .map(|run| self.sentence(run))
            .collect();
        match faults.is_empty() {
            true => Ok(()),
            false => Err(CompareError::Differ(faults)),
        }
    }
}

impl DeviceRun {
    /// A device and what it did.
    fn new(device: &str, steps: Vec<StepRecord>, failure: Option<String>) -> Self {
        let warm = match steps.len() {
            0 | 1 => &[],
            2..=3 => &steps[1..],
            _ => &steps[3..],
        };
        let [tokens, seconds] = [
            warm.iter().map(|step| step.tokens as f64).sum::<f64>(),
            warm.iter().map(|step| step.seconds).sum(),
        ];
        Self {
            device: device.to_owned(),
            failure,
            first_step_seconds: None,
            tokens_per_second: (!warm.is_empty()).then(|| tokens / seconds),
            peak_memory: steps.iter().filter_map(|step| step.peak_memory).max(),
            difference: None,
            steps,
        }
    }

    fn parting(&self) -> Option<&Parting> {
        self.difference.as_ref()?.parting.as_ref()
    }

    fn is_at_fault(&self) -> bool {
        self.failure.is_some() || self.parting().is_some()
    }
}

impl Difference {
    /// Over the steps that both have; `None` when there are none.
    fn between(found: &[StepRecord], expected: &[StepRecord], tolerance: f64) -> Option<Self> {
        let steps: Vec<_> = found.iter().zip(expected).collect();
        if steps.is_empty() {
            return None;
        }
        let relative = |of: fn(&StepRecord) -> f64| -> Vec<f64> {
            let pairs = steps
                .iter()
                .map(|(found, expected)| (of(found), of(expected)));
            pairs
                .map(|(found, expected)| relative(found, expected))
                .collect()
        };
        let (loss, gradient_norm) = (
            relative(|step| step.loss),
            relative(|step| step.gradient_norm),
        );
        let limits = |step: usize| match step {
            0 => (tolerance.min(FIRST_LOSS), tolerance.min(FIRST_NORM)),
            _ => (tolerance, f64::INFINITY),
        };
        let parting = steps
            .iter()
            .enumerate()
            .find_map(|(step, (found, expected))| {
                let (loss_limit, norm_limit) = limits(step);
                let check = |what, difference: f64, limit, found, expected| {
                    // Also when it is no number.
                    (!(difference <= limit)).then_some(Parting {
                        step: step as u64 + 1,
                        what,
                        expected,
                        found,
                        difference,
                        limit,
                    })
                };
                check("loss", loss[step], loss_limit, found.loss, expected.loss).or_else(|| {
                    let norms = (found.gradient_norm, expected.gradient_norm);
                    check(
                        "gradient norm",
                        gradient_norm[step],
                        norm_limit,
                        norms.0,
                        norms.1,
                    )
                })
            });
        Some(Self {
            load: steps
                .iter()
                .map(|(found, expected)| load_difference(found, expected))
                .collect(),
            loss,
            gradient_norm,
            parting,
        })
    }

    /// The largest difference of a loss, and its step, from 1.
    fn largest_loss(&self) -> (f64, u64) {
        let steps = self.loss.iter().zip(1..);
        steps.fold((0.0, 1), |largest, (&difference, step)| {
            match difference > largest.0 {
                true => (difference, step),
                false => largest,
            }
        })
    }
}

/// `|found − expected| / |expected|`, 0 where both are equal.
fn relative(found: f64, expected: f64) -> f64 {
    match found == expected {
        true => 0.0,
        false => (found - expected).abs() / expected.abs(),
    }
}

fn load_difference(found: &StepRecord, expected: &StepRecord) -> f64 {
    let layers = found.layers.iter().zip(&expected.layers);
    let experts = layers.flat_map(|(found, expected)| found.load.iter().zip(&expected.load));
    experts
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, f64::max)
}
