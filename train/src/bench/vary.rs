//! Training speed over several values of one configuration key, such as the number of experts or the context.

use std::fmt;

use firebox_kernels::{Precision, matrix_peak};
use firebox_model::accounting::Accounting;
use firebox_runtime::device;
use serde::Serialize;

use super::{Speed, first_batch, measure};
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
    /// Precision of the products.
    pub precision: Precision,
    /// The fastest of several large matrix products of this precision on this device, in FLOP/s.
    pub matmul_peak: f64,
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
            let first = first_batch(config);
            let measured = measure(config, &config.model, first, steps, &selected);
            let speed = measured.tokens as f64 / measured.step_seconds;
            tracing::info!("{key} = {value}: {speed:.0} tokens/s");
            measured
        })
        .collect();
    let of_any = |precision| {
        let mut precisions = configs.iter().map(|(_, config)| config.train.precision);
        precisions.any(|of| of == precision)
    };
    let used = Precision::ALL
        .into_iter()
        .filter(|precision| of_any(*precision));
    let peaks: Vec<(Precision, f64)> = used
        .map(|precision| (precision, matrix_peak(&selected, precision)))
        .collect();
    let rows = configs.into_iter().zip(measured);
    let rows = rows.map(|((value, config), measured)| {
        let precision = config.train.precision;
        let peak = peaks.iter().find(|(of, _)| *of == precision);
        let (_, matmul_peak) = *peak.expect("the peak of each precision that is used");
        let speed = measured.speed(matmul_peak);
        let operations = Accounting::of(&config.model).operations;
        Row {
            value,
            precision,
            matmul_peak,
            microseconds_per_token: 1e6 / speed.tokens_per_second,
            operations_per_token: operations.training + 3.0 * operations.attention_scores,
            speed,
        }
    });
    Ok(Variation {
        device: device.to_owned(),
        threads: device::threads(),
        key: key.to_owned(),
        rows: rows.collect(),
    })
}

impl fmt::Display for Variation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = counted(self.threads as u128, "thread");
        write!(formatter, "{} with {threads}", self.device)?;
        for precision in Precision::ALL {
            let row = self.rows.iter().find(|row| row.precision == precision);
            if let Some(row) = row {
                write!(
                    formatter,
                    "; {precision} matmul peak {}/s",
                    flop(row.matmul_peak)
                )?;
            }
        }
        formatter.write_str("\n\n")?;
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
