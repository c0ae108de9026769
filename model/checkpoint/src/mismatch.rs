//! Names and shapes on both sides: what a model has and what a file has.

use std::path::Path;

use super::{CheckpointError, TensorInfo};

/// Every difference between the tensors that a model needs and those that are there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mismatch {
    missing: Vec<String>,
    superfluous: Vec<String>,
    reshaped: Vec<String>,
}

/// Names of a kind that an error lists.
const LISTED: usize = 6;

impl Mismatch {
    /// Compares a tensor that is needed with what was found under its name; says whether they agree.
    pub fn expect(&mut self, name: &str, shape: &[usize], found: Option<&TensorInfo>) -> bool {
        match found {
            None => self.missing.push(format!("{name} {shape:?}")),
            Some(info) if info.shape != shape => self
                .reshaped
                .push(format!("{name} {:?} where {shape:?} is needed", info.shape)),
            Some(_) => return true,
        }
        false
    }

    /// Notes a tensor that nothing needs.
    pub fn superfluous(&mut self, name: &str, shape: &[usize]) {
        self.superfluous.push(format!("{name} {shape:?}"));
    }

    /// An error, unless both sides agree.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Mismatch`], naming `place` (a file or folder), with names and shapes.
    pub fn check(self, place: &Path) -> Result<(), CheckpointError> {
        if self == Self::default() {
            return Ok(());
        }
        let kinds = [
            ("missing", &self.missing),
            ("of another shape", &self.reshaped),
            ("without a place in the model", &self.superfluous),
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
