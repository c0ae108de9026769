//! A comparison as text for the terminal.

use std::fmt;

use firebox_console::numbers::{counted, grouped};

use super::Comparison;
use super::tables::{LAYERS, gradient_table, layer_table};

impl Comparison {
    /// What was compared, in one line.
    pub(super) fn about(&self) -> String {
        let experts = match self.moe_layers {
            0 => "all dense".to_owned(),
            moe_layers => format!("{moe_layers} with experts"),
        };
        let pictures = match self.pictures {
            0 => String::new(),
            pictures => format!(", which see {}", counted(pictures as u128, "picture")),
        };
        format!(
            "{}: {} layers, {experts}; {} tokens in {} sequences from {}{pictures}",
            self.checkpoint.display(),
            self.layers,
            grouped(self.tokens as u64),
            self.sequences,
            self.text
        )
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}\n", self.about())?;
        for (verdict, sentence) in self.summary() {
            writeln!(formatter, "{} {sentence}", verdict.mark())?;
        }
        write!(formatter, "\n{}", self.speed_table())?;
        if self.compared().next().is_some() {
            write!(formatter, "\n{}", self.agreement_table())?;
        }
        let mut compared = self.compared().peekable();
        if compared.peek().is_some() {
            writeln!(formatter, "\n{LAYERS}")?;
        }
        for (row, differences) in compared {
            write!(formatter, "\n{}", layer_table(&row.name, differences))?;
            if let Some(table) = gradient_table(&row.name, differences) {
                write!(formatter, "\n{table}")?;
            }
        }
        Ok(())
    }
}
