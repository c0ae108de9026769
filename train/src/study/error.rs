//! Why a study fails.

use std::path::PathBuf;

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;

use super::Equal;
use crate::config::ConfigError;
use crate::error::TrainError;
use crate::report::ReportError;

/// Why a study fails.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// The file is no study.
    #[error("{}: {what}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The configuration of a variant is invalid.
    #[error("variant {variant:?}: {source}")]
    Variant {
        /// Its name.
        variant: String,
        /// What is wrong.
        source: Box<ConfigError>,
    },
    /// The variant trains for less than a step.
    #[error("variant {variant:?}: {what} are too few for a step")]
    TooLittle {
        /// Its name.
        variant: String,
        /// What all variants have.
        what: Equal,
    },
    /// The variant trains for more steps than a run may have.
    #[error(
        "variant {variant:?}: {what} are more than {} steps of training",
        u32::MAX
    )]
    TooMuch {
        /// Its name.
        variant: String,
        /// What all variants have.
        what: Equal,
    },
    /// A variant sees pictures.
    #[error("a study compares models of text; [model.vision] makes one that sees pictures")]
    Pictures,
    /// The folder has another study.
    #[error("{} has a study that was begun with other values of {}", folder.display(), keys.join(", "))]
    Another {
        /// The folder.
        folder: PathBuf,
        /// The keys that differ.
        keys: Vec<&'static str>,
    },
    /// The folder is that of a run.
    #[error("{} is the folder of a run; a study has a folder of its own, in which each of its runs has one", .0.display())]
    OfARun(PathBuf),
    /// A run of the study fails.
    #[error("variant {variant:?}, seed {seed}: {source}")]
    Run {
        /// The variant's name.
        variant: String,
        /// The seed.
        seed: u64,
        /// Why.
        source: Box<TrainError>,
    },
    /// The speed of a variant cannot be measured.
    #[error(transparent)]
    Speed(Box<TrainError>),
    /// The runs cannot be reported.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A file of the study cannot be read or written.
    #[error(transparent)]
    Folder(#[from] FileError),
}

impl Advise for StudyError {
    fn advice(&self) -> Advice {
        match self {
            Self::File { hint, .. } => Advice {
                hint: hint.clone(),
                ..Advice::USAGE
            },
            Self::Variant { source, .. } => source.advice(),
            Self::TooLittle { .. } => {
                Advice::USAGE.hint("give the study more, or lower schedule.batch_tokens")
            }
            Self::TooMuch { .. } => Advice::USAGE.hint("give the study less"),
            Self::Pictures => Advice::USAGE.hint(
                "compare such runs of equal steps by `cargo train report`, which shows their losses on held-out captions",
            ),
            Self::Another { .. } => Advice::USAGE.hint(
                "use --out DIR to begin another study, or the old values to continue this one",
            ),
            Self::OfARun(_) => Advice::USAGE.hint("name another folder with --out DIR"),
            Self::Run { source, .. } if matches!(**source, TrainError::Interrupted { .. }) => {
                Advice::FAILURE
                    .exit_code(130)
                    .hint("run the same command to continue the study")
            }
            Self::Run { source, .. } | Self::Speed(source) => source.advice(),
            Self::Report(error) => error.advice(),
            Self::Folder(_) => Advice::FAILURE,
        }
    }
}
