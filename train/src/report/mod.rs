//! `cargo train report`: what runs have recorded, as a table and as a page to look at.
//!
//! Everything comes from the runs' folders: `metrics.jsonl`, and `config.toml` for what sets the runs apart. A run that is
//! still going can be reported, too.

mod events;
mod page;
mod ranks;
mod read;
#[cfg(test)]
mod tests;
mod text;

use std::path::PathBuf;

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use serde::Serialize;

use crate::check::RankPlan;
use crate::config::ConfigError;
use crate::metrics::{SampleRecord, SourceRecord, TrainRecord, ValidationRecord};

/// What some runs have recorded.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of the command line.
    pub runs: Vec<Recorded>,
}

/// What one run has recorded.
#[derive(Debug, Clone, Serialize)]
pub struct Recorded {
    /// The last part of the folder's path, or all of it where several runs end alike.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// Steps that the run shall have.
    pub steps: u64,
    /// Number of parameters.
    pub parameters: u64,
    /// Number of parameters that a token passes through.
    pub active_parameters: u64,
    /// Keys of the configuration that differ from those of the first run, as `key: there → here`.
    pub differences: Vec<String>,
    /// Text by source.
    pub sources: Vec<SourceRecord>,
    /// Steps that were logged.
    pub training: Vec<TrainRecord>,
    /// What the ranks of the last logged step hold and send, as `cargo train check` says; `None` for a single rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<RankPlan>,
    /// Validations.
    pub validations: Vec<ValidationRecord>,
    /// What the model wrote at each validation.
    pub samples: Vec<SampleRecord>,
    /// Warnings about the experts after the learning rate's warm-up, by step.
    pub warnings: Vec<(u64, String)>,
}

impl Recorded {
    /// The step that was logged last.
    pub fn last(&self) -> Option<&TrainRecord> {
        self.training.last()
    }

    /// The validation with the lowest loss; the one before the first step does not count.
    pub fn best(&self) -> Option<&ValidationRecord> {
        let trained = self.validations.iter().filter(|record| record.step > 0);
        trained.min_by(|a, b| {
            let loss = |record: &ValidationRecord| record.validation.whole.nats_per_token;
            loss(a).total_cmp(&loss(b))
        })
    }

    /// The validations that a chart shows: without the one before the first step, beside which all others look alike, where there
    /// are others.
    pub(crate) fn charted(&self) -> &[ValidationRecord] {
        match &self.validations[..] {
            [first, others @ ..] if first.step == 0 && others.len() > 1 => others,
            all => all,
        }
    }

    /// Tokens per second of training over the whole run, without validation.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let last = self.last()?;
        let seconds: f64 = self.spans().map(|(tokens, rate)| tokens / rate).sum();
        Some(last.tokens as f64 / seconds)
    }

    /// Between two logged steps each: tokens, and tokens per second.
    fn spans(&self) -> impl Iterator<Item = (f64, f64)> {
        let before = std::iter::once(0).chain(self.training.iter().map(|record| record.tokens));
        self.training.iter().zip(before).map(|(record, before)| {
            let tokens = record.tokens - before;
            (tokens as f64, record.tokens_per_second)
        })
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A path is no run.
    #[error("{} is not the folder of a run: it has no {missing}", folder.display())]
    NoRun {
        /// The path.
        folder: PathBuf,
        /// The file that a run has.
        missing: &'static str,
    },
    /// The run has not taken a step.
    #[error("{} is the folder of a run that has recorded nothing yet", .0.display())]
    NotBegun(PathBuf),
    /// A run is named twice.
    #[error("{} is named twice", .0.display())]
    Twice(PathBuf),
    /// A line is not what a run writes.
    #[error("{}, line {line}: not a record of a run: {what}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The first line does not say what is trained.
    #[error("{} does not begin with what is trained", .0.display())]
    Start(PathBuf),
    /// The saved configuration cannot be read.
    #[error("the configuration saved with the run is invalid: {0}")]
    Config(#[source] ConfigError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Advise for ReportError {
    fn advice(&self) -> Advice {
        match self {
            Self::NoRun { .. } => Advice::USAGE.hint(
                "name the folder that `cargo train run` writes, such as runs/quickstart, not one of its checkpoints",
            ),
            Self::NotBegun(_) => Advice::FAILURE.hint("it may still prepare its text; report it after its first step"),
            Self::Twice(_) => Advice::USAGE,
            Self::Line { .. } | Self::Start(_) => Advice::FAILURE
                .hint("another version of Firebox may have written it; train the run again to report it"),
            Self::Config(error) => error.advice().exit_code(1),
            Self::File(_) => Advice::FAILURE,
        }
    }
}
