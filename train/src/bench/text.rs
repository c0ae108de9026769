//! A measurement in words.

use std::fmt;

use super::{Bench, Speed};
use firebox_console::numbers::{bytes, counted, flop, scaled};
use firebox_console::report::{Cell, Table};

impl fmt::Display for Bench {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{} with {}; its f32 matrix product reaches {}/s\n",
            self.device,
            counted(self.threads as u128, "thread"),
            flop(self.matrix_peak)
        )?;
        let twin = self.dense_twin.as_ref();
        let table = Table::new("").texts([""]).numbers(["model"]);
        let table = match twin {
            Some(_) => table.numbers(["dense twin"]),
            None => table,
        };
        let rows: [(&str, fn(&Speed) -> String); 7] = [
            ("parameters", |speed| scaled(speed.parameters as f64)),
            ("active per token", |speed| scaled(speed.active as f64)),
            ("tokens per step", |speed| speed.tokens_per_step.to_string()),
            ("seconds per step", |speed| {
                format!("{:.4}", speed.step_seconds)
            }),
            ("tokens/s", |speed| {
                format!("{:.0}", speed.tokens_per_second)
            }),
            ("operations", |speed| flop(speed.flops_per_second) + "/s"),
            ("share of the product", |speed| {
                format!("{:.2}", speed.share_of_peak)
            }),
        ];
        let table = rows.into_iter().fold(table, |table, (label, value)| {
            let values = [Some(&self.model), twin].into_iter().flatten().map(value);
            table.row([label.into()].into_iter().chain(values.map(Cell::from)))
        });
        // Of the process: the twin's would hold the model's.
        let table = match self.model.peak_memory {
            Some(memory) => table.row(["peak memory".into(), bytes(memory.into()).into()]),
            None => table,
        };
        write!(formatter, "{table}")?;
        if let Some(tax) = self.tax {
            writeln!(
                formatter,
                "\nthe mixture's tax: {tax:.3} (step time over the twin's)"
            )?;
        }
        Ok(())
    }
}
