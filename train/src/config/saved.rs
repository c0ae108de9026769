//! What a run writes down of its configuration, and reads back when it is resumed.

use std::path::Path;

use toml::{Table, Value};

use super::load::{find, parse, read_text};
use super::{ConfigError, RunConfig};

/// Reads the configuration that a run has written down ([`RunConfig::to_toml`]). It is whole: the checkpoint that
/// the run started from is not looked for, and may be gone.
///
/// # Errors
///
/// Those of [`load`](super::load).
pub fn load_saved(saved: &Path) -> Result<RunConfig, ConfigError> {
    load_resumed(saved, &[], saved)
}

/// Reads a run's file for a resume, when the run has written down its configuration in the file `saved`. What the
/// run took from a checkpoint (`train.init`), it is not asked for again: where neither the file nor an argument
/// says otherwise, it is as saved. Without such a file, the same as [`load`](super::load).
///
/// # Errors
///
/// Those of [`load`](super::load).
pub fn load_resumed(
    path: &Path,
    overrides: &[String],
    saved: &Path,
) -> Result<RunConfig, ConfigError> {
    let text = read_text(path)?;
    // A saved file that cannot be read is reported by whoever compares the two.
    let saved = std::fs::read_to_string(saved)
        .ok()
        .and_then(|text| text.parse::<Table>().ok());
    parse(path, &text, overrides, saved.as_ref())
}

/// Fills what `table` leaves out of `[model]` and `[tokenizer]` from `saved`, where both start from a checkpoint;
/// tells whether they do.
pub(super) fn complete(table: &mut Table, saved: &Table) -> bool {
    let starts_from_checkpoint = |table: &Table| find(table, "train.init").is_some();
    if !starts_from_checkpoint(table) || !starts_from_checkpoint(saved) {
        return false;
    }
    for (key, value) in saved {
        match key.as_str() {
            "model" => lay_under(table.entry("model").or_insert(Table::new().into()), value),
            // Its keys depend on its kind.
            "tokenizer" => _ = table.entry("tokenizer").or_insert(value.clone()),
            _ => {}
        }
    }
    true
}

/// Adds what a value has and another of the same place has not, table by table.
fn lay_under(upper: &mut Value, lower: &Value) {
    if let (Value::Table(upper), Value::Table(lower)) = (upper, lower) {
        for (key, value) in lower {
            match upper.get_mut(key) {
                Some(upper) => lay_under(upper, value),
                None => _ = upper.insert(key.clone(), value.clone()),
            }
        }
    }
}

impl RunConfig {
    /// The file that [`load`](super::load) reads back to this configuration.
    ///
    /// It leaves out `model.vocabulary` where that is the tokenizer's, and no key of the file.
    ///
    /// # Errors
    ///
    /// A value that TOML cannot hold: a number above `i64::MAX`, or a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut table = Table::try_from(self)?;
        if let (None, Some(Value::Table(model))) = (&self.train.init, table.get_mut("model")) {
            model.remove("vocabulary");
        }
        toml::to_string(&table)
    }
}
