//! A benchmark's result as text.

use std::fmt;

use super::{Bench, Speed};
use firebox_console::numbers::{bytes, counted, flop, scaled};
use firebox_console::report::{Cell, Table};

/// How a table shows one figure.
type Format = fn(&Speed) -> String;

impl fmt::Display for Bench {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{} with {}; products in {}{}, matmul peak {}/s\n",
            self.device,
            counted(self.threads as u128, "thread"),
            self.precision,
            self.bf16_unit
                .map_or_else(String::new, |unit| format!(" ({unit})")),
            flop(self.matmul_peak)
        )?;
        let baseline = self.dense_baseline.as_ref();
        let table = Table::new("").texts([""]).numbers(["model"]);
        let table = match baseline {
            Some(_) => table.numbers(["dense baseline"]),
            None => table,
        };
        let rows: [(&str, Format); 7] = [
            ("parameters", |speed| scaled(speed.parameters as f64)),
            ("active per token", |speed| scaled(speed.active as f64)),
            ("tokens per step", |speed| speed.tokens_per_step.to_string()),
            ("seconds per step", |speed| {
                format!("{:.4}", speed.step_seconds)
            }),
            ("tokens/s", |speed| {
                format!("{:.0}", speed.tokens_per_second)
            }),
            ("FLOP/s", |speed| flop(speed.flops_per_second) + "/s"),
            ("of matmul peak", |speed| {
                format!("{:.2}", speed.fraction_of_matmul_peak)
            }),
        ];
        let table = rows.into_iter().fold(table, |table, (label, value)| {
            let values = [Some(&self.model), baseline]
                .into_iter()
                .flatten()
                .map(value);
            table.row([label.into()].into_iter().chain(values.map(Cell::from)))
        });
        // The baseline has no value here: the peak of the process would include the model's memory.
        let table = match self.model.peak_memory {
            Some(memory) => table.row(["peak memory".into(), bytes(memory.into()).into()]),
            None => table,
        };
        write!(formatter, "{table}")?;
        if let Some(overhead) = self.moe_overhead {
            writeln!(
                formatter,
                "\nMoE overhead: {overhead:.3} (step time over that of the dense baseline)"
            )?;
        }
        Ok(())
    }
}
