//! A comparison in words and tables.

use std::fmt;

use firebox_console::numbers::{brief, grouped, magnitude};
use firebox_console::report::{Cell, Table, Verdict};
use firebox_model::moe::stats::LayerHealth;

use super::{Comparison, DeviceRun, Difference, StepRecord};
use firebox_console::numbers::bytes;

/// What to expect of devices that are all right.
pub(super) const NORMAL: &str = "What is normal: the first step starts from the same weights on the same data, and \
    differs by rounding alone, some 1e-7 of the loss. After it the curves part: the optimizer divides each gradient \
    by its own size, so that one which is rounding and little else still moves its weight, and a token whose experts \
    score alike may go to another. How fast depends on the run, most of all on its learning rate; the control shows \
    it. A device that stays near the control is all right, however far both have come; one that is off at step 1, or \
    leaps away from the control, is at fault.";

/// Most rows of a table by step; of more steps, some are left out.
const ROWS: usize = 16;

impl Comparison {
    pub(super) fn first(&self) -> &str {
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
                "{device} parts from {first} at step {}: the {} is {:.6} where {first} has {:.6}, {} of it, and \
                 rounding explains {}",
                parting.step,
                parting.what,
                parting.found,
                parting.expected,
                magnitude(parting.difference),
                magnitude(parting.limit)
            ),
            None => {
                let (largest, step) = difference.largest_loss();
                format!(
                    "{device} agrees with {first}: over {} steps its loss is off by at most {} of it (at step {step})",
                    difference.loss.len(),
                    magnitude(largest),
                )
            }
        }
    }

    /// What the control shows, where it ran.
    pub(super) fn control_sentence(&self) -> Option<String> {
        let (largest, step) = self.control.as_ref()?.difference.as_ref()?.largest_loss();
        Some(format!(
            "rounding alone explains {} of it (at step {step}): so far off is {} from itself when it starts from \
             weights that are changed by 1e-6 of themselves",
            magnitude(largest),
            self.first()
        ))
    }

    pub(super) fn judgement(&self, run: &DeviceRun) -> Verdict {
        match (run.failure.is_some(), run.parting().is_some()) {
            (false, false) => Verdict::Good,
            _ => Verdict::Bad,
        }
    }

    /// The devices, and the control as the last.
    pub(super) fn runs(&self) -> impl Iterator<Item = &DeviceRun> + Clone {
        self.devices.iter().chain(&self.control)
    }

    /// Loss, difference, speed and memory: a row for each device.
    pub(super) fn devices_table(&self) -> Table {
        let table = Table::new("Devices").texts(["device"]).numbers([
            "steps",
            "last loss",
            "furthest off",
            "first step",
            "tokens/s",
            "memory",
        ]);
        let rows = self.runs().map(|run| {
            let verdict = self.judgement(run);
            let furthest = match &run.difference {
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
                Cell::judged(furthest, verdict),
                run.first_step_seconds
                    .map_or_else(none, |seconds| format!("{} s", brief(seconds)))
                    .into(),
                speed.unwrap_or_else(none).into(),
                memory.unwrap_or_else(none).into(),
            ]
        });
        rows.fold(table, Table::row).note(
            "Furthest off: the training loss's largest difference, over the first device's loss. First step: from the \
             start of the process, with reading and the compiling of shaders. Tokens/s: after three steps. Memory: the \
             process's largest; what a GPU holds is not in it.",
        )
    }

    /// Loss, gradient norm and router load of each device at each step, side by side.
    pub(super) fn step_tables(&self) -> Vec<Table> {
        let mut tables = vec![
            self.by_step(
                "Training loss",
                |step| format!("{:.6}", step.loss),
                |off| &off.loss,
            )
            .note("Off: the difference over the first device's loss."),
            self.by_step(
                "Gradient norm",
                |step| format!("{:.4}", step.gradient_norm),
                |off| &off.gradient_norm,
            )
            .note("Before clipping. Off: the difference over the first device's norm."),
        ];
        if self.has_routers() {
            tables.push(
                self.by_step("Busiest expert", |step| format!("{:.3}", busiest(&step.layers)), |off| &off.load)
                    .note(
                        "Load over the mean, in the layer where it is largest. Off: the largest difference of any \
                         expert's share of the tokens, in any layer.",
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
        off: fn(&Difference) -> &[f64],
    ) -> Table {
        let runs = self.runs().filter(|run| !run.steps.is_empty());
        let others = runs.clone().filter(|run| run.difference.is_some());
        let table = Table::new(title)
            .numbers(["step"])
            .numbers(runs.clone().map(|run| run.device.as_str()))
            .numbers(others.clone().map(|run| format!("{} off", run.device)));
        let rows = shown(self.longest()).into_iter().map(|index| {
            let step = Cell::from((index + 1).to_string());
            let values = runs
                .clone()
                .map(|run| run.steps.get(index).map_or_else(none, value).into());
            let differences = others.clone().map(|run| {
                let difference = run
                    .difference
                    .as_ref()
                    .and_then(|difference| off(difference).get(index));
                let text = difference.copied().map_or_else(none, magnitude);
                match run.parting() {
                    Some(parting) if index as u64 + 1 >= parting.step => {
                        Cell::judged(text, Verdict::Bad)
                    }
                    _ => text.into(),
                }
            });
            std::iter::once(step)
                .chain(values)
                .chain(differences)
                .collect::<Vec<Cell>>()
        });
        rows.fold(table, Table::row)
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
        if let Some(control) = self.control_sentence() {
            writeln!(formatter, "{control}")?;
        }
        writeln!(formatter, "\n{}", self.devices_table())?;
        for table in self.step_tables().iter().filter(|table| !table.is_empty()) {
            writeln!(formatter, "{table}")?;
        }
        writeln!(formatter, "{NORMAL}")
    }
}
