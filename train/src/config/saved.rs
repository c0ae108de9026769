//! The configuration that a run saves, and how a resume reads it.

use std::path::Path;

use toml::{Table, Value};

use super::load::{find, parse, read_text};
use super::{ConfigError, RunConfig};

/// Reads the configuration that a run has saved ([`RunConfig::to_toml`]). It is complete: the checkpoint that the run
/// started from is not opened and need not exist any more.
///
/// # Errors
///
/// When the file cannot be read, is not TOML, or breaks a rule, as for [`load`](super::load).
pub fn load_saved(saved: &Path) -> Result<RunConfig, ConfigError> {
    load_resumed(saved, &[], saved)
}

/// Reads a configuration file for a resume of the run whose saved configuration is the file `saved`. Values that the
/// run took from the checkpoint `train.init` are taken from `saved`, unless the file or an override sets them. If
/// `saved` does not exist, this is the same as [`load`](super::load).
///
/// # Errors
///
/// The first fault of the configuration file or of an override, as for [`load`](super::load).
pub fn load_resumed(
    path: &Path,
    overrides: &[String],
    saved: &Path,
) -> Result<RunConfig, ConfigError> {
    let text = read_text(path)?;
    // The caller compares the two configurations, and reports a saved file that cannot be read.
    let saved = std::fs::read_to_string(saved)
        .ok()
        .and_then(|text| text.parse::<Table>().ok());
    parse(path, &text, overrides, saved.as_ref())
}

/// Adds the keys of `[model]` and `[tokenizer]`, and `train.frozen`, that `table` omits from `saved`, if both start from a
/// checkpoint. Returns whether they do.
pub(super) fn complete(table: &mut Table, saved: &Table) -> bool {
    let starts_from_checkpoint = |table: &Table| find(table, "train.init").is_some();
    if !starts_from_checkpoint(table) || !starts_from_checkpoint(saved) {
        return false;
    }
    for (key, value) in saved {
        match key.as_str() {
            "model" => add_missing(table.entry("model").or_insert(Table::new().into()), value),
            // Taken as a whole, because its keys depend on its kind.
            "tokenizer" => _ = table.entry("tokenizer").or_insert(value.clone()),
            // Its default depends on the checkpoint.
            "train" => {
                if let (Some(frozen), Some(Value::Table(train))) =
                    (value.get("frozen"), table.get_mut("train"))
                {
                    train.entry("frozen").or_insert(frozen.clone());
                }
            }
            _ => {}
        }
    }
    true
}

/// Adds the keys of `defaults` that `target` does not have, recursively.
fn add_missing(target: &mut Value, defaults: &Value) {
    if let (Value::Table(target), Value::Table(defaults)) = (target, defaults) {
        for (key, value) in defaults {
            match target.get_mut(key) {
                Some(target) => add_missing(target, value),
                None => _ = target.insert(key.clone(), value.clone()),
            }
        }
    }
}

impl RunConfig {
    /// The text of a file that [`load`](super::load) resolves to this configuration. It contains every key, except
    /// for `model.vocab_size` if that is the tokenizer's.
    ///
    /// # Errors
    ///
    /// When TOML cannot represent a value: a number above `i64::MAX`, or a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut table = Table::try_from(self)?;
        if let (None, Some(Value::Table(model))) = (&self.train.init, table.get_mut("model")) {
            model.remove("vocab_size");
        }
        toml::to_string(&table)
    }
}
