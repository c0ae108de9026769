//! One key of a configuration in several values: what a token costs as the model, the batch or the context grows.

use std::fmt;

use firebox_kernels::matrix_peak;
use firebox_model::accounting::Accounting;
use firebox_runtime::device;
use serde::Serialize;

use super::{Speed, measure};
use crate::config::RunConfig;
use crate::error::TrainError;
use firebox_console::numbers::{counted, flop, scaled};
use firebox_console::report::Table;

/// What was measured: as text through its `Display`, as JSON through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Variation {
    /// What computed.
    pub device: String,
    /// Threads of the CPU backends.
    pub threads: usize,
    /// The best of several large f32 products on this device, in FLOP/s.
    pub matrix_peak: f64,
    /// The key whose values the rows are.
    pub key: String,
    /// In the order of the values.
    pub rows: Vec<Row>,
}

/// One value of the key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// As it was given.
    pub value: String,
    /// Step time over tokens, in microseconds.
    pub microseconds_per_token: f64,
    /// Floating-point operations of training on one token, attention scores included.
    pub operations_per_token: f64,
    /// All else.
    #[serde(flatten)]
    pub speed: Speed,
}

/// Trains on random tokens with each of the configurations, and measures. The peak memory of a row is that of the
/// process up to there.
///
/// # Errors
///
/// When the device cannot be used.
pub fn vary(
    key: &str,
    configs: Vec<(String, RunConfig)>,
    device: &str,
    steps: usize,
) -> Result<Variation, TrainError> {
    let selected = device::select(device)?;
    let measured: Vec<_> = configs
        .iter()
        .map(|(value, config)| {
            let measured = measure(config, &config.model, steps, &selected);
            let speed = measured.tokens as f64 / measured.step_seconds;
            tracing::info!("{key} = {value}: {speed:.0} tokens/s");
            measured
        })
        .collect();
    let matrix_peak = matrix_peak(&selected);
    let rows = configs.into_iter().zip(measured);
    let rows = rows.map(|((value, config), measured)| {
        let speed = measured.beside(matrix_peak);
        let operations = Accounting::of(&config.model).operations;
        Row {
            value,
            microseconds_per_token: 1e6 / speed.tokens_per_second,
            operations_per_token: operations.training + 3.0 * operations.attention_scores,
            speed,
        }
    });
    Ok(Variation {
        device: device.to_owned(),
        threads: device::threads(),
        matrix_peak,
        key: key.to_owned(),
        rows: rows.collect(),
    })
}

impl fmt::Display for Variation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{} with {}; its f32 matrix product reaches {}/s\n",
            self.device,
            counted(self.threads as u128, "thread"),
            flop(self.matrix_peak)
        )?;
        let table = Table::new("").numbers([
            self.key.as_str(),
            "parameters",
            "active",
            "tokens per step",
            "FLOP/token",
            "µs/token",
            "of peak",
        ]);
        let table = self.rows.iter().fold(table, |table, row| {
            table.row([
                row.value.clone().into(),
                scaled(row.speed.parameters as f64).into(),
                scaled(row.speed.active as f64).into(),
                row.speed.tokens_per_step.to_string().into(),
                scaled(row.operations_per_token).into(),
                format!("{:.1}", row.microseconds_per_token).into(),
                format!("{:.2}", row.speed.share_of_peak).into(),
            ])
        });
        write!(formatter, "{table}")
    }
}
