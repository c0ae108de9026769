//! A report as text.

use std::fmt::{self, Display, Formatter};

use firebox_console::numbers::{brief, grouped, percentage, scaled};
use firebox_console::report::{Cell, Table, Verdict};

use super::{Recorded, Report};
use crate::metrics::{TrainRecord, ValidationRecord};

/// Shares of the busiest expert, relative to the mean, from which on a table marks them.
const UNEVEN: f64 = 3.0;

impl Display for Report {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.runs_table())?;
        if self.runs.iter().any(Recorded::has_experts) {
            write!(formatter, "\n{}", self.experts_table())?;
        }
        if self.runs.iter().any(Recorded::has_ranks) {
            let (ranks, sent) = (self.ranks_table(), self.sent_table());
            write!(formatter, "\n{ranks}\n{sent}")?;
        }
        for run in &self.runs {
            if !run.differences.is_empty() {
                let first = &self.runs[0].name;
                writeln!(formatter, "\n{} differs from {first} in", run.name)?;
                run.differences
                    .iter()
                    .try_for_each(|difference| writeln!(formatter, "  {difference}"))?;
            }
            if let Some(sentence) = run.warned() {
                writeln!(formatter, "\n{}: {sentence}", run.name)?;
            }
            if let Some((_, sentence)) = run.pace() {
                writeln!(formatter, "\n{}: {sentence}", run.name)?;
            }
        }
        Ok(())
    }
}

impl Recorded {
    /// Whether the model has layers with experts.
    pub(super) fn has_experts(&self) -> bool {
        self.last().is_some_and(|record| !record.layers.is_empty())
    }

    /// How far the run is.
    pub(super) fn progress(&self) -> String {
        let done = self.last().map_or(0, |record| record.step);
        match done == self.steps {
            true => grouped(done),
            false => format!("{} of {}", grouped(done), grouped(self.steps)),
        }
    }

    /// What was warned of, if anything.
    pub(super) fn warned(&self) -> Option<String> {
        let (first, _) = self.warnings.first()?;
        let (last, text) = self.warnings.last()?;
        Some(format!(
            "warnings about experts at {} of {} logged steps, from step {first} to {last}: {text}",
            self.warnings.len(),
            self.training.len(),
        ))
    }
}

impl Report {
    /// The runs side by side.
    pub(super) fn runs_table(&self) -> Table {
        let table = Table::new("").texts(["run"]).numbers([
            "parameters",
            "active",
            "steps",
            "tokens",
            "minutes",
            "tokens/s",
            "training loss",
            "held-out loss",
            "bits/byte",
            "best at",
        ]);
        let table = self.runs.iter().fold(table, |table, run| {
            let last = |of: &dyn Fn(&TrainRecord) -> String| run.last().map(of).unwrap_or_default();
            let best =
                |of: &dyn Fn(&ValidationRecord) -> String| run.best().map(of).unwrap_or_default();
            let cells = [
                run.name.clone(),
                scaled(run.parameters as f64),
                scaled(run.active_parameters as f64),
                run.progress(),
                last(&|record| scaled(record.tokens as f64)),
                last(&|record| format!("{:.1}", record.seconds / 60.0)),
                run.tokens_per_second().map(brief).unwrap_or_default(),
                last(&|record| format!("{:.4}", record.loss)),
                best(&|record| format!("{:.4}", record.validation.whole.nats_per_token)),
                best(&|record| format!("{:.4}", record.validation.whole.bits_per_byte)),
                best(&|record| grouped(record.step)),
            ];
            table.row(cells.map(Cell::from))
        });
        table.note(
            "Losses are nats per token; the held-out one is the lowest of the run. Minutes are those of training.",
        )
    }

    /// Router health at the end of each run.
    pub(super) fn experts_table(&self) -> Table {
        let table = Table::new("experts at the last logged step")
            .texts(["run", "layer"])
            .numbers(["busiest/mean", "idlest/mean", "dead", "entropy/even"]);
        let layers = self.runs.iter().flat_map(|run| {
            let layers = run.last().into_iter().flat_map(|record| &record.layers);
            layers.map(move |layer| (run, layer))
        });
        layers.fold(table, |table, (run, layer)| {
            let experts = layer.load.len() as f64;
            let least = layer.load.iter().copied().fold(f64::INFINITY, f64::min);
            let judged = |text: String, is_bad: bool| match is_bad {
                true => Cell::judged(text, Verdict::Bad),
                false => text.into(),
            };
            table.row([
                run.name.clone().into(),
                layer.layer.to_string().into(),
                judged(
                    format!("{:.2}", layer.max_over_mean),
                    layer.max_over_mean > UNEVEN,
                ),
                format!("{:.2}", least * experts).into(),
                judged(layer.dead_experts.to_string(), layer.dead_experts > 0),
                percentage(layer.entropy / experts.ln().max(f64::EPSILON)).into(),
            ])
        })
    }
}
