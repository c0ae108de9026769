//! The result as a table.

use std::fmt;

use firebox_console::report::Table;

use super::{Fraction, Report};

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = Vec::new();
        if let Some(choices) = &self.choices {
            rows.push(("questions", choices.count.to_string()));
            rows.push(("accuracy", choices.accuracy.to_string()));
            rows.push(("accuracy by length", choices.accuracy_by_length.to_string()));
            rows.push(("chance", format!("{:.4}", choices.chance)));
        }
        if let Some(texts) = &self.continuations {
            rows.push(("continuations", texts.count.to_string()));
            rows.push(("all tokens likeliest", texts.accuracy.to_string()));
            rows.push(("perplexity", format!("{:.4}", texts.perplexity)));
            rows.push(("nats per token", format!("{:.6}", texts.nats_per_token)));
        }
        if self.cut > 0 {
            rows.push(("texts cut in front", self.cut.to_string()));
        }
        let table = rows
            .into_iter()
            .fold(Table::new("").texts(["", ""]), |table, (name, value)| {
                table.row([name.into(), value.into()])
            });
        write!(formatter, "{table}")
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.4}", self.value)?;
        match self.standard_error {
            Some(error) => write!(formatter, " ± {error:.4}"),
            None => Ok(()),
        }
    }
}
