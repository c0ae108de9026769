//! Resolves `[model]`.

use firebox_model::config::{ConfigError, ModelConfig, ModelKeys};

use super::Checked;
use crate::config::error::Problem;

/// The model that the keys describe.
pub(super) fn model(keys: &ModelKeys) -> Checked<ModelConfig> {
    keys.resolve().map_err(problem)
}

fn problem(error: ConfigError) -> Problem {
    let key = format!("model.{}", error.key);
    let Some(hint) = error.hint else {
        return Problem::missing(key);
    };
    let problem = Problem::new(key, error.rule).hint(hint);
    match error.value {
        Some(value) => problem.value(value),
        None => problem,
    }
}
