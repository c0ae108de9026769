//! A benchmark's result as text.

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
            "{} with {threads}; f32 matmul peak {}/s\n",
            self.device,
            flop(self.matmul_peak)
        )?;
        let baseline = self.dense_baseline.as_ref();
        let row = |formatter: &mut fmt::Formatter<'_>, name: &str, value: fn(&Speed) -> String| {
            let second = baseline.map(value).unwrap_or_default();
            let line = format!("{name:<22}{:>14}{second:>16}", value(&self.model));
            writeln!(formatter, "{}", line.trim_end())
        };
        let heading = if baseline.is_some() {
            "dense baseline"
        } else {
            ""
        };
        let line = format!("{:<22}{:>14}{heading:>16}", "", "model");
        writeln!(formatter, "{}", line.trim_end())?;
        row(formatter, "parameters", |speed| {
            scaled(speed.parameters as f64)
        })?;
        row(formatter, "active per token", |speed| {
            scaled(speed.active as f64)
        })?;
        row(formatter, "tokens per step", |speed| {
            speed.tokens_per_step.to_string()
        })?;
        row(formatter, "seconds per step", |speed| {
            format!("{:.4}", speed.step_seconds)
        })?;
        row(formatter, "tokens/s", |speed| {
            format!("{:.0}", speed.tokens_per_second)
        })?;
        row(formatter, "FLOP/s", |speed| {
            flop(speed.flops_per_second) + "/s"
        })?;
        row(formatter, "of matmul peak", |speed| {
            format!("{:.2}", speed.fraction_of_matmul_peak)
        })?;
        if self.model.peak_memory.is_some() {
            // The baseline has no value here: the peak of the process would include the model's memory.
            let line = format!(
                "{:<22}{:>14}",
                "peak memory",
                bytes(u128::from(self.model.peak_memory.unwrap_or_default()))
            );
            writeln!(formatter, "{line}")?;
        }
        if let Some(overhead) = self.moe_overhead {
            writeln!(
                formatter,
                "\nMoE overhead: {overhead:.3} (step time over that of the dense baseline)"
            )?;
        }
        Ok(())
    }
}
