//! A comparison as text: sentences and tables.

use std::fmt;

use firebox_console::numbers::{brief, grouped, magnitude};
use firebox_console::report::{Cell, Table, Verdict};
use firebox_model::moe::stats::LayerHealth;

use super::{Comparison, DeviceRun, Difference, StepRecord};
use firebox_console::numbers::bytes;

/// What to expect of correct devices.
pub(super) const NORMAL: &str = "What is normal: the first step uses the same weights and data on every device, so \
    its loss differs by rounding only, by a relative error of about 1e-7. Later steps differ more: the optimizer \
    divides each gradient by its own magnitude, so a gradient that is mostly rounding error still changes its weight, \
    and a token whose experts have nearly equal scores may be routed to another expert. How fast the error grows \
    depends on the run, mainly on its learning rate; the perturbed run measures it. A device whose error stays near \
    that of the perturbed run is correct, however large both are. A device that already differs at step 1, or whose \
    error suddenly exceeds that of the perturbed run, is faulty.";

/// Maximum number of rows of a table by step; with more steps, some are omitted.
const ROWS: usize = 16;

impl Comparison {
    pub(super) fn first(&self) -> &str {
        self.devices.first().map_or("", |run| &run.device)
    }

    /// One sentence about a device's result.
    pub(super) fn sentence(&self, run: &DeviceRun) -> String {
        let (device, first) = (&run.device, self.first());
        let done = run.steps.len();
        if let Some(failure) = &run.failure {
            let device_named = failure.contains(device.as_str());
            let failure = if device_named {
                failure.clone()
            } else {
                format!("{device}: {failure}")
            };
            return format!("{failure} ({done} of {} steps completed)", self.steps);
        }
        let Some(difference) = &run.difference else {
            return if device == first {
                format!("{device} is the reference")
            } else {
                format!("{device} completed {done} steps, but {first} has no step to compare with")
            };
        };
        match &difference.divergence {
            Some(divergence) => format!(
                "{device} diverges from {first} at step {}: {} {:.6} vs {:.6} (relative error {}, allowed {})",
                divergence.step,
                divergence.what,
                divergence.found,
                divergence.expected,
                magnitude(divergence.relative_error),
                magnitude(divergence.limit)
            ),
            None => {
                let (largest, step) = difference.largest_loss();
                format!(
                    "{device} agrees with {first}: over {} steps, the largest relative error of the loss is {} \
                     (step {step})",
                    difference.loss.len(),
                    magnitude(largest),
                )
            }
        }
    }

    /// The result of the perturbed run, if there is one.
    pub(super) fn perturbed_sentence(&self) -> Option<String> {
        let (largest, step) = self.perturbed.as_ref()?.difference.as_ref()?.largest_loss();
        Some(format!(
            "rounding alone changes the loss of {} by up to {} (step {step}), measured with weights perturbed by a \
             relative 1e-6",
            self.first(),
            magnitude(largest)
        ))
    }

    pub(super) fn judgement(&self, run: &DeviceRun) -> Verdict {
        match (run.failure.is_some(), run.divergence().is_some()) {
            (false, false) => Verdict::Good,
            _ => Verdict::Bad,
        }
    }

    /// The devices, followed by the perturbed run.
    pub(super) fn runs(&self) -> impl Iterator<Item = &DeviceRun> + Clone {
        self.devices.iter().chain(&self.perturbed)
    }

    /// Loss, error, speed and memory, one row per device.
    pub(super) fn devices_table(&self) -> Table {
        let table = Table::new("Devices").texts(["device"]).numbers([
            "steps",
            "last loss",
            "max error",
            "first step",
            "tokens/s",
            "memory",
        ]);
        let rows = self.runs().map(|run| {
            let verdict = self.judgement(run);
            let max_error = match &run.difference {
                Some(difference) => {
                    let (largest, step) = difference.largest_loss();
                    format!("{} (step {step})", magnitude(largest))
                }
                None => none(),
            };
            let speed = run
                .tokens_per_second
                .map(|speed| grouped(speed.round() as u64));
            let memory = run.peak_memory.map(|memory| bytes(memory.into()));
            [
                Cell::judged(&run.device, verdict),
                Cell::from(format!("{}/{}", run.steps.len(), self.steps)),
                run.steps
                    .last()
                    .map_or_else(none, |step| format!("{:.6}", step.loss))
                    .into(),
                Cell::judged(max_error, verdict),
                run.first_step_seconds
                    .map_or_else(none, |seconds| format!("{} s", brief(seconds)))
                    .into(),
                speed.unwrap_or_else(none).into(),
                memory.unwrap_or_else(none).into(),
            ]
        });
        rows.fold(table, Table::row).note(
            "Max error: the largest relative error of the training loss. First step: time from the start of the \
             process, including reading and shader compilation. Tokens/s: after the first three steps. Memory: peak \
             resident memory of the process, without GPU memory.",
        )
    }

    /// Loss, gradient norm and expert load of every device per step.
    pub(super) fn step_tables(&self) -> Vec<Table> {
        let mut tables = vec![
            self.by_step(
                "Training loss",
                |step| format!("{:.6}", step.loss),
                |difference| &difference.loss,
            )
            .note("Error: relative to the first device."),
            self.by_step(
                "Gradient norm",
                |step| format!("{:.4}", step.gradient_norm),
                |difference| &difference.gradient_norm,
            )
            .note("Before clipping. Error: relative to the first device."),
        ];
        if self.has_routers() {
            tables.push(
                self.by_step(
                    "Expert load, max/mean",
                    |step| format!("{:.3}", largest_load(&step.layers)),
                    |difference| &difference.load,
                )
                .note(
                    "Of the layer with the largest value. Error: the largest absolute difference of an expert's \
                     fraction of the tokens, in any layer.",
                ),
            );
        }
        tables
    }

    pub(super) fn has_routers(&self) -> bool {
        self.runs()
            .flat_map(|run| &run.steps)
            .any(|step| !step.layers.is_empty())
    }

    fn by_step(
        &self,
        title: &str,
        value: fn(&StepRecord) -> String,
        errors: fn(&Difference) -> &[f64],
    ) -> Table {
        let runs = self.runs().filter(|run| !run.steps.is_empty());
        let others = runs.clone().filter(|run| run.difference.is_some());
        let table = Table::new(title)
            .numbers(["step"])
            .numbers(runs.clone().map(|run| run.device.as_str()))
            .numbers(others.clone().map(|run| format!("{} error", run.device)));
        let rows = shown(self.longest()).into_iter().map(|index| {
            let step = Cell::from((index + 1).to_string());
            let values = runs
                .clone()
                .map(|run| run.steps.get(index).map_or_else(none, value).into());
            let error_cells = others.clone().map(|run| {
                let error = run
                    .difference
                    .as_ref()
                    .and_then(|difference| errors(difference).get(index));
                let text = error.copied().map_or_else(none, magnitude);
                match run.divergence() {
                    Some(divergence) if index as u64 + 1 >= divergence.step => {
                        Cell::judged(text, Verdict::Bad)
                    }
                    _ => text.into(),
                }
            });
            std::iter::once(step)
                .chain(values)
                .chain(error_cells)
                .collect::<Vec<Cell>>()
        });
        rows.fold(table, Table::row)
    }

    /// The largest number of steps that a device completed.
    pub(super) fn longest(&self) -> usize {
        self.devices
            .iter()
            .map(|run| run.steps.len())
            .max()
            .unwrap_or(0)
    }
}

/// The cell of a missing number.
fn none() -> String {
    "–".to_owned()
}

/// The largest expert load over the mean, in any layer.
pub(super) fn largest_load(layers: &[LayerHealth]) -> f64 {
    layers
        .iter()
        .map(|layer| layer.max_over_mean)
        .fold(0.0, f64::max)
}

/// The indices of the steps that have a row: all, or the first, the last, and evenly spaced ones in between.
fn shown(steps: usize) -> Vec<usize> {
    if steps <= ROWS {
        return (0..steps).collect();
    }
    let mut shown: Vec<usize> = (0..ROWS)
        .map(|row| row * (steps - 1) / (ROWS - 1))
        .collect();
    shown.dedup();
    shown
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.devices {
            writeln!(formatter, "{}", self.sentence(run))?;
        }
        if let Some(sentence) = self.perturbed_sentence() {
            writeln!(formatter, "{sentence}")?;
        }
        writeln!(formatter, "\n{}", self.devices_table())?;
        for table in self.step_tables().iter().filter(|table| !table.is_empty()) {
            writeln!(formatter, "{table}")?;
        }
        writeln!(formatter, "{NORMAL}")
    }
}
