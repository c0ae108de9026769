//! `cargo train study`: variants of a run, each with several seeds, all for the same time, tokens or operations.
//!
//! One run proves little: at the sizes that a laptop trains, another seed changes the loss by as much as most ideas do. So a
//! study trains every variant with the same seeds, compares the runs of a seed with each other, and says how sure the difference
//! is. `file` reads what is to be compared, `run` trains it, run by run, and continues where it was interrupted; `result`
//! computes, `text` and `page` show.

mod error;
mod file;
mod page;
mod result;
mod run;
#[cfg(test)]
mod tests;
mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::report::Report;

pub use self::error::StudyError;
pub use self::file::load;
pub use self::result::Compared;
pub use self::run::run;

/// What is the same for all variants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Equal {
    /// Seconds of training, without validation: the steps of each variant follow from its measured speed.
    Seconds(f64),
    /// Tokens of training.
    Tokens(u64),
    /// Operations of training, by [`Accounting`](firebox_model::accounting::Accounting).
    Flops(f64),
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// The configuration that the variants change.
    pub config: PathBuf,
    /// `key=value` overrides of all variants.
    pub set: Vec<String>,
    /// The values of `train.seed`.
    pub seeds: Vec<u64>,
    /// What is the same for all variants.
    pub equal: Equal,
    /// The variants; the others are compared with the first.
    pub variants: Vec<Variant>,
}

/// One of the things that are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Its name, which its runs' folders have, too.
    pub name: String,
    /// `key=value` overrides of the configuration.
    #[serde(default)]
    pub set: Vec<String>,
}

/// In what losses are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Where all runs have the same held-out tokens.
    NatsPerToken,
    /// Where they have other tokenizers, or other held-out texts.
    BitsPerByte,
}

/// Where a study is kept, and on what it computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyOptions {
    /// The folder of the study, with a run folder for every variant and seed.
    pub out: PathBuf,
    /// The device's name.
    pub device: String,
}

/// The result of a study.
#[derive(Debug, Clone, Serialize)]
pub struct StudyResult {
    /// What was compared.
    pub study: Study,
    /// In what losses are compared.
    pub unit: Unit,
    /// Whether all runs have the same held-out text, as far as its length tells.
    pub is_same_text: bool,
    /// Each variant, compared with the first.
    pub compared: Vec<Compared>,
    /// The runs, variant by variant, and of each one seed by seed.
    #[serde(skip)]
    pub report: Report,
}
