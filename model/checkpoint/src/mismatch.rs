//! Compares the tensors of a model with those of a checkpoint.

use std::path::Path;

use super::{CheckpointError, TensorInfo};

/// The differences between the tensors that a model needs and those of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mismatch {
    missing: Vec<String>,
    superfluous: Vec<String>,
    reshaped: Vec<String>,
}

/// Maximum number of names of each kind in an error.
const LISTED: usize = 6;

impl Mismatch {
    /// Compares a needed tensor with the one that was found under its name; returns whether they agree.
    pub fn expect(&mut self, name: &str, shape: &[usize], found: Option<&TensorInfo>) -> bool {
        match found {
            None => self.missing.push(format!("{name} {shape:?}")),
            Some(info) if info.shape != shape => self
                .reshaped
                .push(format!("{name} {:?}, expected {shape:?}", info.shape)),
            Some(_) => return true,
        }
        false
    }

    /// Records a tensor that the model does not need.
    pub fn superfluous(&mut self, name: &str, shape: &[usize]) {
        self.superfluous.push(format!("{name} {shape:?}"));
    }

    /// Checks that both sides agree.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Mismatch`] for `place` (a file or folder), with names and shapes.
    pub fn check(self, place: &Path) -> Result<(), CheckpointError> {
        if self == Self::default() {
            return Ok(());
        }
        let kinds = [
            ("missing", &self.missing),
            ("with another shape", &self.reshaped),
            ("not part of the model", &self.superfluous),
        ];
        let differences: Vec<String> = kinds
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(kind, names)| format!("{} {kind} ({})", names.len(), shortened(names)))
            .collect();
        Err(CheckpointError::Mismatch {
            place: place.to_owned(),
            differences: differences.join("; "),
        })
    }
}

fn shortened(names: &[String]) -> String {
    let listed = names[..names.len().min(LISTED)].join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}
