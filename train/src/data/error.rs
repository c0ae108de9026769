//! What can be wrong with a run's data.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_image::PictureError;
use firebox_text::TokenizerError;
use firebox_text::documents::TextError;

use super::source::DownloadError;

/// Why a run's data cannot be prepared or read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A pattern is not a glob.
    #[error("source {source_name:?}: pattern {pattern:?} is not a glob: {message}")]
    Pattern {
        /// The source's name.
        source_name: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// A pattern matches no file.
    #[error("source {source_name:?}: pattern {pattern:?} matches no file")]
    NoMatch {
        /// The source's name.
        source_name: String,
        /// The pattern.
        pattern: String,
    },
    /// A source has no text.
    #[error("source {source_name:?} is empty: it has no document with any text")]
    EmptySource {
        /// The source's name.
        source_name: String,
    },
    /// The split leaves one side without text.
    #[error("{}", one_sided(source_name, *documents, *fraction))]
    OneSided {
        /// The source without training text; `None` when there is no validation text in any.
        source_name: Option<String>,
        /// Documents that were split.
        documents: u64,
        /// `data.validation.fraction`
        fraction: f64,
    },
    /// Cargo.lock is not what Cargo writes.
    #[error("{} is not a Cargo.lock: {message}", path.display())]
    CargoLock {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// No package of Cargo.lock is on this machine.
    #[error(
        "source {source_name:?}: none of the {packages} packages of {} is in {}",
        lock.display(),
        registry.display()
    )]
    NoPackages {
        /// The source's name.
        source_name: String,
        /// Packages that come from a registry.
        packages: usize,
        /// The Cargo.lock.
        lock: PathBuf,
        /// Where Cargo keeps sources.
        registry: PathBuf,
    },
    /// A package is not on this machine.
    #[error(
        "source {source_name:?}: the package {package} of Firebox's Cargo.lock is not in {}",
        registry.display()
    )]
    NoPackage {
        /// The source's name.
        source_name: String,
        /// The package.
        package: String,
        /// Where Cargo keeps sources.
        registry: PathBuf,
    },
    /// A document cannot be read.
    #[error("source {source_name:?}: {error}")]
    Text {
        /// The source's name.
        source_name: String,
        /// What is wrong with the document.
        error: TextError,
    },
    /// A picture cannot be read.
    #[error("source {source_name:?}: {error}")]
    Picture {
        /// The source's name.
        source_name: String,
        /// What is wrong with it.
        error: Box<PictureError>,
    },
    /// A download failed.
    #[error("source {source_name:?}: {error}")]
    Download {
        /// The source's name.
        source_name: String,
        /// What went wrong.
        error: Box<DownloadError>,
    },
    /// A file is not the expected one.
    #[error("source {source_name:?}: {location} has SHA-256 {found}, not {expected}")]
    Checksum {
        /// The source's name.
        source_name: String,
        /// URL or path.
        location: String,
        /// The hash in the configuration.
        expected: String,
        /// The hash of the content.
        found: String,
    },
    /// A source has tokens of a tokenizer that does not exist yet.
    #[error("source {source_name:?} has tokens, and the tokenizer of the run does not exist yet")]
    NoTokenizer {
        /// The source's name.
        source_name: String,
    },
    /// A source gave other text the second time.
    #[error("source {source_name:?} changed while it was read")]
    Changed {
        /// The source's name.
        source_name: String,
    },
    /// The tokenizer cannot be made or used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The run needs more text than there is.
    #[error("the run needs {needed} sequences of {context} tokens, and the data has {available}")]
    TooLittle {
        /// Sequences that the run needs.
        needed: u64,
        /// Sequences that the data gives, all epochs together.
        available: u64,
        /// Tokens a sequence.
        context: usize,
    },
    /// The run of a model that sees pictures needs more rows than there are.
    #[error(
        "the run needs {needed} captions of pictures or sequences of text, and the data has {available}, all epochs together"
    )]
    TooFewRows {
        /// Rows that the run needs.
        needed: u64,
        /// Rows that the data gives, all epochs together.
        available: u64,
    },
    /// Not even one sequence is full.
    #[error(
        "a sequence of {context} tokens is longer than the training data: the largest source has \
         {tokens} tokens, all epochs together"
    )]
    ContextTooLong {
        /// Tokens a sequence.
        context: usize,
        /// Tokens of the largest source, all epochs together.
        tokens: u64,
    },
    /// A prepared file is not as it was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file or folder cannot be read, written, created or removed.
    #[error(transparent)]
    Io(#[from] FileError),
}

impl Advise for DataError {
    fn advice(&self) -> Advice {
        let usage = |hint: &str| Advice::USAGE.hint(hint);
        let failure = |hint: &str| Advice::FAILURE.hint(hint);
        match self {
            Self::Pattern { .. } => {
                usage("`*` matches within a name, `**` any folders, `[ab]` a or b, `{a,b}` either")
            }
            Self::NoMatch { .. } => usage(
                "relative patterns are taken from the working directory; `**/*.txt` looks in all folders; a name that \
                 begins with a dot matches only where the pattern writes the dot",
            ),
            Self::EmptySource { .. } => usage(
                "check its pattern or extensions, and `on_error = \"skip\"`, which leaves documents out",
            ),
            Self::OneSided { source_name, .. } => {
                let change = if source_name.is_none() {
                    "raise"
                } else {
                    "lower"
                };
                Advice::USAGE.hint(format!(
                    "{change} data.validation.fraction, set data.validation.by = \"tail\" to hold out the \
                     end of each document, or name validation text of its own in [[data.validation.source]]"
                ))
            }
            Self::NoPackages { .. } => {
                failure("`cargo fetch` downloads the sources of all packages")
            }
            Self::NoPackage { package, .. } => Advice::FAILURE.hint(format!(
                "`cargo fetch` in the folder of Firebox downloads it; builds from vendored sources have no {package}"
            )),
            Self::Text { error, .. } => {
                let skip = "on_error = \"skip\" leaves such documents out";
                let fields = error.other_fields("field = \"NAME\" in the source");
                match (error, fields.or_else(|| error.hint())) {
                    (TextError::Io(_), _) => error.advice(),
                    (_, Some(hint)) => Advice::FAILURE.hint(format!("{hint}; {skip}")),
                    (_, None) => failure(skip),
                }
            }
            Self::Picture { error, .. } => {
                let skip = "on_error = \"skip\" leaves such pictures out";
                let hint = error.hint().map(|hint| format!("{hint}; {skip}"));
                Advice::FAILURE.hint(hint.unwrap_or(skip.to_owned()))
            }
            Self::Download { error, .. } => error.advice(),
            Self::Checksum { .. } => failure(
                "this is another file, or another version of it; to accept it, set sha256 to its hash",
            ),
            Self::NoTokenizer { .. } => {
                usage("the run that train.init names makes it: `cargo train run` does that run first")
            }
            Self::Changed { .. } => failure("run again once nothing writes to it any more"),
            Self::Tokenizer(error @ TokenizerError::Write(_)) => error.advice(),
            Self::Tokenizer(error) => error.advice().exit_code(2),
            Self::TooLittle { .. } => usage(
                "lower train.steps or schedule.batch_tokens, or raise the sources' epochs or max_bytes",
            ),
            Self::TooFewRows { .. } => usage(
                "lower train.steps or schedule.batch_tokens, or raise the sources' epochs",
            ),
            Self::ContextTooLong { .. } => usage("lower model.context_length, or add text"),
            Self::Damaged { path, .. } => {
                let folder = path.parent().unwrap_or(path).display();
                Advice::FAILURE.hint(format!(
                    "remove {folder}: the next start prepares it again, with --resume as well"
                ))
            }
            Self::Io(error) => match error.source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    failure("free some space, or set data.cache to a folder on another disk")
                }
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => failure(
                    "set data.cache, or the environment variable FIREBOX_CACHE, to a folder that can \
                     be written",
                ),
                _ => Advice::FAILURE,
            },
            Self::CargoLock { .. } => Advice::FAILURE,
        }
    }
}

impl DataError {
    /// An [`Io`](Self::Io) error of some action on some path.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let failed = FileError::of(action, path);
        move |error| Self::Io(failed(error))
    }
}

fn one_sided(source_name: &Option<String>, documents: u64, fraction: f64) -> String {
    match source_name {
        Some(name) => format!(
            "source {name:?}: holding out {fraction} of its {documents} document(s) leaves nothing \
             to train on"
        ),
        None => {
            format!("holding out {fraction} of {documents} document(s) gives no validation text")
        }
    }
}
