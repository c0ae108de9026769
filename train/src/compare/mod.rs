//! `cargo train compare`: trains the same steps on several devices and compares the results.
//!
//! The host draws the initial weights and orders the data, from the seed alone, so the devices' results may differ by
//! rounding only. Each device runs in its own process (`process`, `record`): a failure affects one device only, peak
//! memory is measured per device, and the time to the first step includes all initialisation.
//!
//! The error that rounding may cause depends on the run: after thirty steps it is 1e-2 with a high learning rate, and
//! 1e-6 with a low one. So the first device runs a second time from perturbed weights, and a device diverges if its
//! relative error is much larger than that of this perturbed run. This file decides; `text` renders sentences and
//! tables, `page` an HTML page.

mod page;
mod process;
mod record;
#[cfg(test)]
mod tests;
mod text;

use std::path::PathBuf;

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_runtime::device::DeviceError;
use serde::Serialize;

use crate::data::DataError;

pub use self::process::compare;
pub use self::record::{StepRecord, print_line, record};

/// Options of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct CompareOptions {
    /// Configuration file of the run (TOML).
    pub config: PathBuf,
    /// `--set` overrides of the configuration.
    pub set: Vec<String>,
    /// Names of the devices; the first is the reference.
    pub devices: Vec<String>,
    /// Number of steps to train, at most those of the run.
    pub steps: u64,
    /// Relative error of the loss that is always allowed.
    pub tolerance: f64,
    /// Number of threads for CPU backends.
    pub threads: Option<u16>,
}

/// The default tolerance. With the same weights and data, the order of additions changes a loss by a relative 1e-7
/// (f32 rounds by 6e-8); the tolerance leaves a margin for long sums.
pub const TOLERANCE: f64 = 1e-5;

/// Allowed ratio of a device's relative error to that of the perturbed run; both are random. In eleven comparisons of
/// correct devices, the ratio was at most 2 in ten, and 30 in one, whose learning rate sent all tokens to one expert.
const MARGIN: f64 = 100.0;

/// Allowed ratio of the gradient norm's relative error to that of the loss: the norm depends on twice as many
/// operations, and it is not a mean over the batch.
const NORM_FACTOR: f64 = 10.0;

/// The results of several devices.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The configuration file.
    pub config: PathBuf,
    /// Number of requested steps.
    pub steps: u64,
    /// Number of steps of the whole run, which determine the learning rates.
    pub run_steps: u64,
    /// Seed of the initial weights and the order of the data.
    pub seed: u64,
    /// Relative error of the loss that is always allowed.
    pub tolerance: f64,
    /// One entry per device, in the order given; the first is the reference.
    pub devices: Vec<DeviceRun>,
    /// A second run of the first device, from perturbed weights: it measures how much rounding alone changes this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perturbed: Option<DeviceRun>,
}

/// The results of one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceRun {
    /// The device's name.
    pub device: String,
    /// The completed steps.
    pub steps: Vec<StepRecord>,
    /// Why it did not complete all steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Seconds from the start of its process to the end of the first step, including reading and shader compilation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_step_seconds: Option<f64>,
    /// Tokens per second after the first three steps, or after the first if there are at most three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Peak resident memory of its process, in bytes, without GPU memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Its errors relative to the first device; `None` for the first, and if there is no step to compare.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

/// The errors of a device relative to the first one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Relative error of the loss per step.
    pub loss: Vec<f64>,
    /// Relative error of the gradient norm per step.
    pub gradient_norm: Vec<f64>,
    /// Per step, the largest absolute difference of an expert's load fraction over all layers; 0 for a dense model.
    pub load: Vec<f64>,
    /// The first step with a larger error than allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
}

/// The first step at which a device diverges from the first one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// The step, from 1.
    pub step: u64,
    /// `loss` or `gradient norm`.
    pub what: &'static str,
    /// The value on the first device.
    pub expected: f64,
    /// The value on this device.
    pub found: f64,
    /// `|found − expected| / |expected|`.
    pub relative_error: f64,
    /// The largest relative error allowed.
    pub limit: f64,
}

/// Why devices cannot be compared, or that they diverge.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The text cannot be prepared.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An unknown device name.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Only one device.
    #[error("--devices lists only {0}; a comparison needs at least two devices")]
    One(String),
    /// A device twice.
    #[error("--devices lists {0} twice")]
    Twice(String),
    /// More steps than the run has.
    #[error("--steps {steps} exceeds train.steps = {of}")]
    Steps {
        /// The requested number of steps.
        steps: u64,
        /// The run's number of steps.
        of: u64,
    },
    /// The process of a device cannot be started.
    #[error("cannot start a process for {device}")]
    Process {
        /// The device.
        device: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The page cannot be written.
    #[error(transparent)]
    Page(#[from] FileError),
    /// One sentence per device that failed or diverged from the first.
    #[error("{}", .0.join("; "))]
    Differ(Vec<String>),
}

impl Advise for CompareError {
    fn advice(&self) -> Advice {
        match self {
            Self::Data(error) => error.advice(),
            Self::Device(error) => error.advice(),
            Self::One(_) => Advice::USAGE.hint("add another, such as --devices flex,ndarray"),
            Self::Twice(_) => Advice::USAGE.hint("list each device once"),
            Self::Steps { .. } => Advice::USAGE
                .hint("lower --steps, or raise train.steps, which also stretches the learning-rate schedule"),
            Self::Differ(_) => Advice::FAILURE.hint(
                "`cargo infer compare CHECKPOINT` finds the layer that diverges; --tolerance allows larger errors",
            ),
            Self::Process { .. } | Self::Page(_) => Advice::FAILURE,
        }
    }
}

impl Comparison {
    /// Compares every device with the first, and finds where each diverges.
    fn judge(&mut self) {
        let Some((first, others)) = self.devices.split_first_mut() else {
            return;
        };
        let difference = |run: &DeviceRun| Difference::between(&run.steps, &first.steps);
        if let Some(perturbed) = &mut self.perturbed {
            perturbed.difference = difference(perturbed);
        }
        let limits = Limits::new(self.tolerance, self.perturbed.as_ref());
        for other in others {
            other.difference = difference(other);
            if let Some(difference) = &mut other.difference {
                difference.divergence = limits.divergence(&other.steps, &first.steps, difference);
            }
        }
    }

    /// Whether all devices completed their steps and agree with the first.
    ///
    /// # Errors
    ///
    /// [`CompareError::Differ`], with one sentence per device that failed or diverged.
    pub fn verdict(&self) -> Result<(), CompareError> {
        let faults: Vec<String> = self
            .devices
            .iter()
            .filter(|run| run.is_at_fault())
            .map(|run| self.sentence(run))
            .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(CompareError::Differ(faults))
        }
    }
}

impl DeviceRun {
    /// The results of a device, from its step records.
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

    fn divergence(&self) -> Option<&Divergence> {
        self.difference.as_ref()?.divergence.as_ref()
    }

    fn is_at_fault(&self) -> bool {
        self.failure.is_some() || self.divergence().is_some()
    }
}

/// The largest relative errors allowed.
struct Limits<'a> {
    tolerance: f64,
    perturbed: Option<&'a Difference>,
}

impl<'a> Limits<'a> {
    fn new(tolerance: f64, perturbed: Option<&'a DeviceRun>) -> Self {
        Self {
            tolerance,
            perturbed: perturbed.and_then(|run| run.difference.as_ref()),
        }
    }

    /// The limits of the loss and of the gradient norm at a step, from 0: the tolerance, or a multiple of the largest
    /// error of the perturbed run up to that step.
    fn at(&self, step: usize) -> (f64, f64) {
        let so_far = |of: fn(&Difference) -> &[f64]| {
            let errors = self
                .perturbed
                .iter()
                .flat_map(|perturbed| of(perturbed).iter().take(step + 1));
            MARGIN * errors.copied().fold(0.0, f64::max)
        };
        (
            so_far(|perturbed| &perturbed.loss).max(self.tolerance),
            so_far(|perturbed| &perturbed.gradient_norm).max(NORM_FACTOR * self.tolerance),
        )
    }

    /// The first step with a larger error than allowed.
    fn divergence(
        &self,
        found: &[StepRecord],
        expected: &[StepRecord],
        difference: &Difference,
    ) -> Option<Divergence> {
        (0..difference.loss.len()).find_map(|step| {
            let (found, expected) = (&found[step], &expected[step]);
            let (loss, norm) = self.at(step);
            let checks = [
                (
                    "loss",
                    found.loss,
                    expected.loss,
                    difference.loss[step],
                    loss,
                ),
                (
                    "gradient norm",
                    found.gradient_norm,
                    expected.gradient_norm,
                    difference.gradient_norm[step],
                    norm,
                ),
            ];
            // A NaN exceeds any limit.
            let beyond = checks
                .into_iter()
                .find(|&(.., error, limit)| error.is_nan() || error > limit);
            beyond.map(
                |(what, found, expected, relative_error, limit)| Divergence {
                    step: step as u64 + 1,
                    what,
                    expected,
                    found,
                    relative_error,
                    limit,
                },
            )
        })
    }
}

impl Difference {
    /// The errors over the steps that both have; `None` if there are none.
    fn between(found: &[StepRecord], expected: &[StepRecord]) -> Option<Self> {
        let steps: Vec<_> = found.iter().zip(expected).collect();
        let by_step = |of: fn(&StepRecord) -> f64| -> Vec<f64> {
            let pairs = steps
                .iter()
                .map(|(found, expected)| (of(found), of(expected)));
            pairs
                .map(|(found, expected)| relative_error(found, expected))
                .collect()
        };
        (!steps.is_empty()).then(|| Self {
            loss: by_step(|step| step.loss),
            gradient_norm: by_step(|step| step.gradient_norm),
            load: steps
                .iter()
                .map(|(found, expected)| load_difference(found, expected))
                .collect(),
            divergence: None,
        })
    }

    /// The largest relative error of the loss, and its step, from 1.
    fn largest_loss(&self) -> (f64, u64) {
        let steps = self.loss.iter().zip(1..);
        steps.fold((0.0, 1), |largest, (&error, step)| {
            if error > largest.0 {
                (error, step)
            } else {
                largest
            }
        })
    }
}

/// `|found − expected| / |expected|`, or 0 if both are equal.
fn relative_error(found: f64, expected: f64) -> f64 {
    if found == expected {
        0.0
    } else {
        (found - expected).abs() / expected.abs()
    }
}

fn load_difference(found: &StepRecord, expected: &StepRecord) -> f64 {
    let layers = found.layers.iter().zip(&expected.layers);
    let experts = layers.flat_map(|(found, expected)| found.load.iter().zip(&expected.load));
    experts
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, f64::max)
}
