//! What was predicted and measured: text through `Display`, JSON through serde.

use std::fmt::{self, Display, Formatter};

use firebox_console::numbers::{brief, counted, flop, percentage, text_bytes};
use firebox_console::report::Table;
use firebox_model::parallel::RankLayout;
use serde::Serialize;

use crate::plan::Hardware;

/// Times on this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// This machine.
    pub hardware: Hardware,
    /// The type of the weights.
    pub dtype: String,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens that were generated for it.
    pub output: usize,
    /// For each layout the time to the first token, and between tokens for each number of texts at once.
    pub rows: Vec<Row>,
}

/// A time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    /// How ranks divide the model.
    pub layout: RankLayout,
    /// What takes this time.
    pub phase: Phase,
    /// Texts at once.
    pub batch: usize,
    /// The plan's time.
    pub predicted_seconds: f64,
    /// The best of several.
    pub measured_seconds: f64,
}

/// A part of generating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From a prompt to its first token.
    FirstToken,
    /// From a token of a text to its next one.
    Token,
}

impl Row {
    /// The predicted time over the measured one.
    pub fn ratio(&self) -> f64 {
        self.predicted_seconds / self.measured_seconds
    }

    /// Whether the prediction is off by no more than a fifth.
    pub fn is_near(&self) -> bool {
        (self.ratio() - 1.0).abs() <= 0.2
    }
}

impl Display for Measured {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}\n{}", self.machine(), self.times())
    }
}

impl Measured {
    fn machine(&self) -> Table {
        let hardware = &self.hardware;
        let read = |bytes: f64| format!("{}/s", text_bytes(bytes as u64));
        let computed = |operations| format!("{}/s", flop(operations));
        let mut rows = vec![
            (
                "memory bandwidth",
                read(hardware.memory_bandwidth),
                format!("of one core; weights in {}", self.dtype),
            ),
            (
                "products",
                computed(hardware.peak_flops),
                "of one core".to_owned(),
            ),
        ];
        if let Some(shared) = hardware.shared {
            let cores = || format!("of {}", counted(shared.cores as u128, "core"));
            rows.extend([
                ("", read(shared.memory_bandwidth), cores()),
                ("", computed(shared.peak_flops), cores()),
            ]);
        }
        let microseconds = |seconds: f64| format!("{} µs", brief(seconds * 1e6));
        rows.extend([
            (
                "overlap",
                percentage(hardware.overlap),
                "of the shorter of reading and computing is hidden".to_owned(),
            ),
            (
                "a layer",
                microseconds(hardware.layer_latency),
                "however little it computes".to_owned(),
            ),
            (
                "messages",
                microseconds(hardware.link.latency),
                format!("and {}", read(hardware.link.bandwidth)),
            ),
        ]);
        Table::figures(format!("measured: {}", hardware.name), rows)
    }

    fn times(&self) -> Table {
        let title = format!(
            "prompts of {}, {} generated",
            counted(self.prompt as u128, "token"),
            self.output
        );
        let table = Table::new(title).texts(["layout", "time"]).numbers([
            "texts at once",
            "predicted ms",
            "measured ms",
            "predicted ÷ measured",
        ]);
        let near = self.rows.iter().filter(|row| row.is_near()).count();
        let table = table.note(format!(
            "{near} of {} predictions are within 20 % of the measured time",
            self.rows.len()
        ));
        self.rows.iter().fold(table, |table, row| {
            let phase = match row.phase {
                Phase::FirstToken => "to first token",
                Phase::Token => "per output token",
            };
            table.row([
                row.layout.to_string().into(),
                phase.into(),
                row.batch.to_string().into(),
                brief(row.predicted_seconds * 1e3).into(),
                brief(row.measured_seconds * 1e3).into(),
                format!("{:.2}", row.ratio()).into(),
            ])
        })
    }
}
