//! A measurement in words.

use std::fmt;

use super::{Bench, Speed};
use firebox_console::numbers::{bytes, flop, scaled};

impl fmt::Display for Bench {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = match self.threads {
            1 => "1 thread".to_owned(),
            several => format!("{several} threads"),
        };
        writeln!(
            formatter,
            "{} with {threads}; its f32 matrix product reaches {}/s\n",
            self.device,
            flop(self.matrix_peak)
        )?;
        let twin = self.dense_twin.as_ref();
        let row = |formatter: &mut fmt::Formatter<'_>, name: &str, value: fn(&Speed) -> String| {
            let second = twin.map(value).unwrap_or_default();
            let line = format!("{name:<22}{:>14}{second:>14}", value(&self.model));
            writeln!(formatter, "{}", line.trim_end())
        };
        let heading = if twin.is_some() { "dense twin" } else { "" };
        let line = format!("{:<22}{:>14}{heading:>14}", "", "model");
        writeln!(formatter, "{}", line.trim_end())?;
        row(formatter, "parameters", |speed| {
            scaled(speed.parameters as f64)
        })?;
        row(formatter, "active for a token", |speed| {
            scaled(speed.active as f64)
        })?;
        row(formatter, "tokens a step", |speed| {
            speed.tokens_per_step.to_string()
        })?;
        row(formatter, "seconds a step", |speed| {
            format!("{:.4}", speed.step_seconds)
        })?;
        row(formatter, "tokens/s", |speed| {
            format!("{:.0}", speed.tokens_per_second)
        })?;
        row(formatter, "operations", |speed| {
            flop(speed.flops_per_second) + "/s"
        })?;
        row(formatter, "share of the product", |speed| {
            format!("{:.2}", speed.share_of_peak)
        })?;
        if self.model.peak_memory.is_some() {
            // Of the process: the twin's would hold the model's.
            let line = format!(
                "{:<22}{:>14}",
                "peak memory",
                bytes(u128::from(self.model.peak_memory.unwrap_or_default()))
            );
            writeln!(formatter, "{line}")?;
        }
        if let Some(tax) = self.tax {
            writeln!(
                formatter,
                "\nthe mixture's tax: {tax:.3} (step time over the twin's)"
            )?;
        }
        Ok(())
    }
}
