//! `cargo train compare`: the same steps on several devices, side by side.
//!
//! Weights are drawn and data is ordered on the host, from the seed alone, so that every device computes the same
//! thing and nothing but rounding may differ. Each device is a process of its own (`process`, `record`): one that
//! fails is one row, memory is its own, and the time to the first step begins with nothing.
//!
//! How far rounding may carry a run is no constant: a high learning rate makes 1e-2 of it in thirty steps, a low one
//! 1e-6. So the first device runs once more, as a control, with its weights changed by a rounding, and a device is
//! at fault when it is much further off than that. What came out is judged here, and said in words, tables (`text`)
//! and a page (`page`).

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
    /// What a loss may be off in any case, over the loss of the first device.
    pub tolerance: f64,
    /// Threads of the CPU backends.
    pub threads: Option<u16>,
}

/// The tolerance where none is given. The same weights and data give losses 1e-7 apart by the order of additions
/// (f32 rounds by 6e-8); this leaves room for a long sum.
pub const TOLERANCE: f64 = 1e-5;

/// How many times further off than the control a device may be. Both differences are chance. Of eleven comparisons of
/// devices that are all right, ten were at most twice as far off as the control, and one, at a learning rate that sent
/// all tokens to one expert, thirty times.
const MARGIN: f64 = 100.0;

/// How many times further off than a loss the norm of a gradient may be: it is twice as many operations away, and
/// not a mean over the batch.
const NORM: f64 = 10.0;

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
    /// What a loss may be off in any case.
    pub tolerance: f64,
    /// One for each device, in the order in which they were named; the first is what the others are compared with.
    pub devices: Vec<DeviceRun>,
    /// The first device once more, from weights that are changed by a rounding: what rounding alone does to this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<DeviceRun>,
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
    #[error("cannot start a process for {device}")]
    Process {
        /// The device.
        device: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The page cannot be written.
    #[error(transparent)]
    Page(#[from] FileError),
    /// A device did not come to the end, or parted from the first.
    #[error("{}", .0.join("; "))]
    Differ(Vec<String>),
}

impl Advise for CompareError {
    fn advice(&self) -> Advice {
        match self {
            Self::Data(error) => error.advice(),
            Self::Device(error) => error.advice(),
            Self::One(_) => Advice::USAGE.hint("name another, such as --devices flex,ndarray"),
            Self::Twice(_) => Advice::USAGE.hint("name each device once"),
            Self::Steps { .. } => Advice::USAGE
                .hint("--set train.steps makes the run longer, and its learning rate another"),
            Self::Differ(_) => Advice::FAILURE.hint(
                "`cargo infer compare CHECKPOINT` finds the layer where two devices part; --tolerance allows more",
            ),
            Self::Process { .. } | Self::Page(_) => Advice::FAILURE,
        }
    }
}

impl Comparison {
    /// Compares every device with the first.
    fn judge(&mut self) {
        let Some((first, others)) = self.devices.split_first_mut() else {
            return;
        };
        let difference = |run: &DeviceRun| Difference::between(&run.steps, &first.steps);
        if let Some(control) = &mut self.control {
            control.difference = difference(control);
        }
        let limits = Limits::new(self.tolerance, self.control.as_ref());
        for other in others {
            other.difference = difference(other);
            if let Some(difference) = &mut other.difference {
                difference.parting = limits.parting(&other.steps, &first.steps, difference);
            }
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

/// How far off a device may be.
struct Limits<'a> {
    tolerance: f64,
    control: Option<&'a Difference>,
}

impl<'a> Limits<'a> {
    fn new(tolerance: f64, control: Option<&'a DeviceRun>) -> Self {
        Self {
            tolerance,
            control: control.and_then(|control| control.difference.as_ref()),
        }
    }

    /// Of the loss and of the gradient's norm at a step, from 0: the tolerance, or a multiple of the furthest that
    /// the control has been by then.
    fn at(&self, step: usize) -> (f64, f64) {
        let by_then = |of: fn(&Difference) -> &[f64]| {
            let control = self
                .control
                .iter()
                .flat_map(|control| of(control).iter().take(step + 1));
            MARGIN * control.copied().fold(0.0, f64::max)
        };
        (
            by_then(|control| &control.loss).max(self.tolerance),
            by_then(|control| &control.gradient_norm).max(NORM * self.tolerance),
        )
    }

    /// The first step that is further off.
    fn parting(
        &self,
        found: &[StepRecord],
        expected: &[StepRecord],
        difference: &Difference,
    ) -> Option<Parting> {
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
            // One that is no number is beyond any limit.
            let beyond = checks
                .into_iter()
                .find(|&(.., difference, limit)| difference.is_nan() || difference > limit);
            beyond.map(|(what, found, expected, difference, limit)| Parting {
                step: step as u64 + 1,
                what,
                expected,
                found,
                difference,
                limit,
            })
        })
    }
}

impl Difference {
    /// Over the steps that both have; `None` when there are none.
    fn between(found: &[StepRecord], expected: &[StepRecord]) -> Option<Self> {
        let steps: Vec<_> = found.iter().zip(expected).collect();
        let by_step = |of: fn(&StepRecord) -> f64| -> Vec<f64> {
            let pairs = steps
                .iter()
                .map(|(found, expected)| (of(found), of(expected)));
            pairs
                .map(|(found, expected)| relative(found, expected))
                .collect()
        };
        (!steps.is_empty()).then(|| Self {
            loss: by_step(|step| step.loss),
            gradient_norm: by_step(|step| step.gradient_norm),
            load: steps
                .iter()
                .map(|(found, expected)| load_difference(found, expected))
                .collect(),
            parting: None,
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
