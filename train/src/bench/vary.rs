//! Training speed over several values of one configuration key, such as the number of experts or the context.

use std::fmt;

use firebox_kernels::{Precision, matrix_peak};
use firebox_model::accounting::Accounting;
use firebox_runtime::device;
use serde::Serialize;

use super::{Speed, measure};
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::start::select_device;
use firebox_console::numbers::{counted, flop, scaled};
use firebox_console::report::Table;

/// The results: text through `Display`, JSON through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Variation {
    /// The device's name.
    pub device: String,
    /// Number of threads for CPU backends.
    pub threads: usize,
    /// The fastest of several large f32 matrix products on this device, in FLOP/s.
    pub matmul_peak: f64,
    /// The configuration key.
    pub key: String,
    /// One row per value, in the order given.
    pub rows: Vec<Row>,
}

/// The speed with one value of the key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The value, as given.
    pub value: String,
    /// Step time over tokens, in microseconds.
    pub microseconds_per_token: f64,
    /// FLOPs of training per token, including attention scores.
    pub operations_per_token: f64,
    /// All other figures.
    #[serde(flatten)]
    pub speed: Speed,
}

/// Trains on random tokens with each configuration and measures the speed. The peak memory of a row is that of the
/// process up to the end of the row's measurement.
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
    for (_, config) in &configs {
        select_device(device, config)?;
    }
    let measured: Vec<_> = configs
        .iter()
        .map(|(value, config)| {
            let measured = measure(config, &config.model, steps, &selected);
            let speed = measured.tokens as f64 / measured.step_seconds;
            tracing::info!("{key} = {value}: {speed:.0} tokens/s");
            measured
        })
        .collect();
    let matmul_peak = matrix_peak(&selected, Precision::F32);
    let rows = configs.into_iter().zip(measured);
    let rows = rows.map(|((value, config), measured)| {
        let speed = measured.speed(matmul_peak);
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
        matmul_peak,
        key: key.to_owned(),
        rows: rows.collect(),
    })
}

impl fmt::Display for Variation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{} with {}; f32 matmul peak {}/s\n",
            self.device,
            counted(self.threads as u128, "thread"),
            flop(self.matmul_peak)
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
                format!("{:.2}", row.speed.fraction_of_matmul_peak).into(),
            ])
        });
        write!(formatter, "{table}")
    }
}
