//! A comparison in words and tables.

use std::fmt;

use firebox_model::moe::stats::LayerHealth;
use firebox_model::report::{Cell, Table, Verdict, brief, grouped, magnitude};

use super::{Comparison, DeviceRun, StepRecord};
use crate::check::numbers::bytes;

/// What to expect of devices that are all right.
pub(super) const NORMAL: &str = "What is normal: the first step starts from the same weights on the same data, and \
    differs by rounding alone, some 1e-7 of the loss. After it the curves part slowly: the optimizer divides each \
    gradient by its own size, so that one which is rounding and little else still moves its weight, and a token whose \
    two best experts score alike may go to another. A difference that grows tenfold in ten steps is nothing to worry \
    about; one that is there at step 1, or that leaps from one step to the next, is a fault.";

/// Most steps in the table by step; of more, some are left out.
const ROWS: usize = 20;

impl Comparison {
    fn first(&self) -> &str {
        self.devices.first().map_or("", |run| &run.device)
    }

    /// One sentence about a device.
    pub(super) fn sentence(&self, run: &DeviceRun) -> String {
        let (device, first) = (&run.device, self.first());
        let done = run.steps.len();
        if let Some(failure) = &run.failure {
            let device_named = failure.contains(device.as_str());
            let failure = match device_named {
                true => failure.clone(),
                false => format!("{device}: {failure}"),
            };
            return match done {
                0 => format!("{failure} (no step was done)"),
                _ => format!("{failure} ({done} of {} steps were done)", self.steps),
            };
        }
        let Some(difference) = &run.difference else {
            return match device == first {
                true => format!("{device} is what the others are compared with"),
                false => format!(
                    "{device} did all {done} steps, and there is nothing to compare them with"
                ),
            };
        };
        match &difference.parting {
            Some(parting) => format!(
                "{device} parts from {first} at step {}: the {} is {} where {first} has {}, {} of it, and {} is allowed",
                parting.step,
                parting.what,
                parting.found,
                parting.expected,
                magnitude(parting.difference),
                magnitude(parting.limit)
            ),
            None => {
                let (largest, step) = difference.largest_loss();
                let (at_first, steps) = (difference.loss[0], difference.loss.len());
                format!(
                    "{device} agrees with {first}: over {steps} steps its loss is off by at most {} of it (at step \
                     {step}), at step 1 by {}",
                    magnitude(largest),
                    magnitude(at_first)
                )
            }
        }
    }

    pub(super) fn judgement(&self, run: &DeviceRun) -> Verdict {
        match (run.failure.is_some(), run.parting().is_some()) {
            (false, false) => Verdict::Good,
            _ => Verdict::Bad,
        }
    }

    /// Loss, difference, speed and memory: a row for each device.
    pub(super) fn devices_table(&self) -> Table {
        let table = Table::new("Devices").texts(["device"]).numbers([
            "steps",
            "first loss",
            "last loss",
            "largest difference",
            "at step",
            "seconds to first step",
            "tokens/s, warm",
            "peak memory",
        ]);
        let rows = self.devices.iter().map(|run| {
            let loss = |step: Option<&StepRecord>| {
                step.map_or_else(none, |step| format!("{:.6}", step.loss))
            };
            let (difference, at) = match &run.difference {
                Some(difference) => {
                    let (largest, step) = difference.largest_loss();
                    (magnitude(largest), step.to_string())
                }
                None => (none(), none()),
            };
            let verdict = self.judgement(run);
            let steps = format!("{}/{}", run.steps.len(), self.steps);
            [
                Cell::judged(&run.device, verdict),
                Cell::from(steps),
                loss(run.steps.first()).into(),
                loss(run.steps.last()).into(),
                Cell::judged(difference, verdict),
                at.into(),
                run.first_step_seconds.map_or_else(none, brief).into(),
                run.tokens_per_second
                    .map_or_else(none, |speed| grouped(speed.round() as u64))
                    .into(),
                run.peak_memory
                    .map_or_else(none, |memory| bytes(memory.into()))
                    .into(),
            ]
        });
        rows.fold(table, Table::row).note(
            "Differences are of the training loss, over that of the first device. Warm is after three steps. Memory \
             is the process's; what a GPU holds is not in it.",
        )
    }

    /// What each device had at each step, side by side.
    pub(super) fn steps_table(&self) -> Table {
        let names = |of: &str| -> Vec<String> {
            let names = self.devices.iter().map(|run| &run.device);
            names.map(|device| format!("{of} {device}")).collect()
        };
        let others = self.devices.iter().skip(1);
        let moe = self
            .devices
            .iter()
            .flat_map(|run| &run.steps)
            .any(|step| !step.layers.is_empty());
        let mut table = Table::new("Steps")
            .numbers(["step"])
            .numbers(names("loss"))
            .numbers(others.clone().map(|run| format!("off {}", run.device)))
            .numbers(names("norm"));
        if moe {
            table = table
                .numbers(names("max/mean"))
                .numbers(others.clone().map(|run| format!("load off {}", run.device)));
        }
        for index in shown(self.longest()) {
            let by_device = |value: fn(&StepRecord) -> String| {
                let steps = self.devices.iter().map(move |run| run.steps.get(index));
                steps.map(move |step| Cell::from(step.map_or_else(none, value)))
            };
            let differences = others.clone().map(|run| {
                let difference = run
                    .difference
                    .as_ref()
                    .and_then(|difference| difference.loss.get(index));
                let text = difference.copied().map_or_else(none, magnitude);
                match run.parting() {
                    Some(parting) if index as u64 + 1 == parting.step => {
                        Cell::judged(text, Verdict::Bad)
                    }
                    _ => Cell::from(text),
                }
            });
            let mut cells = vec![Cell::from((index + 1).to_string())];
            cells.extend(by_device(|step| format!("{:.6}", step.loss)));
            cells.extend(differences);
            cells.extend(by_device(|step| format!("{:.4}", step.gradient_norm)));
            if moe {
                cells.extend(by_device(|step| format!("{:.3}", busiest(&step.layers))));
                cells.extend(others.clone().map(|run| {
                    let load = run
                        .difference
                        .as_ref()
                        .and_then(|difference| difference.load.get(index));
                    Cell::from(load.copied().map_or_else(none, magnitude))
                }));
            }
            table = table.row(cells);
        }
        table.note(
            "off: the loss's difference over the first device's loss. norm: the gradient's, before clipping. \
             max/mean: the busiest expert's load over the mean, in the layer where it is largest. load off: the \
             largest difference of an expert's share of the tokens.",
        )
    }

    /// The most steps that a device did.
    pub(super) fn longest(&self) -> usize {
        self.devices
            .iter()
            .map(|run| run.steps.len())
            .max()
            .unwrap_or(0)
    }
}

/// In place of a number that there is not.
fn none() -> String {
    "–".to_owned()
}

/// The largest load over the mean, of all layers.
pub(super) fn busiest(layers: &[LayerHealth]) -> f64 {
    layers
        .iter()
        .map(|layer| layer.max_over_mean)
        .fold(0.0, f64::max)
}

/// Which of so many steps have a row: all, or the first, the last and some between.
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
        writeln!(
            formatter,
            "\n{}\n{}",
            self.devices_table(),
            self.steps_table()
        )?;
        write!(formatter, "{NORMAL}\n")
    }
}
