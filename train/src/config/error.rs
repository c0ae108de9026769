//! What can be wrong with a configuration, as one sentence and a hint.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use firebox_console::advice::{Advice, Advise};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{} cannot be read", file.display())]
    Read {
        /// The configuration file.
        file: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}", file.display())]
    Syntax {
        /// The configuration file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A `--set` argument has no place to go.
    #[error("--set {argument}: {problem}")]
    Override {
        /// The argument as it was given.
        argument: String,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        hint: String,
    },
    /// A key is unknown, missing, of the wrong type, out of range, or without effect.
    #[error(transparent)]
    Key(Box<KeyError>),
}

impl Advise for ConfigError {
    fn advice(&self) -> Advice {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Advice::USAGE.hint(
                "the repository's configs folder has some to begin with, such as configs/quickstart.toml",
            ),
            Self::Read { .. } | Self::Syntax { .. } => Advice::USAGE,
            Self::Override { hint, .. } => Advice::USAGE.hint(hint),
            Self::Key(error) => Advice {
                hint: error.hint.clone(),
                ..Advice::USAGE
            },
        }
    }
}

/// A rule that one key breaks.
#[derive(Debug)]
pub struct KeyError {
    /// The configuration file.
    pub file: PathBuf,
    /// Where the key stands in the file; none when it does not.
    pub line: Option<usize>,
    /// The key's dotted path, with list items by number.
    pub key: String,
    /// Its value; none when it is missing or too long to show.
    pub value: Option<String>,
    /// Where the value came from.
    pub origin: Origin,
    /// What is wrong, and what is allowed; reads on from key and value.
    pub rule: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What caused it, for a value that names another file.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The file.
    File,
    /// A `--set` argument.
    Set,
    /// The file leaves the key out.
    Default,
}

impl fmt::Display for KeyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if let (Some(line), Origin::File) = (self.line, self.origin) {
            write!(formatter, ":{line}")?;
        }
        write!(formatter, ": {}", self.key)?;
        if let Some(value) = &self.value {
            write!(formatter, " = {value}")?;
        }
        match (self.origin, &self.value) {
            (Origin::Set, _) => write!(formatter, " (from --set)")?,
            (Origin::Default, Some(_)) => write!(formatter, " (default)")?,
            _ => {}
        }
        write!(formatter, " {}", self.rule)
    }
}

impl Error for KeyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// A broken rule before it is known where the key was written.
#[derive(Debug)]
pub(super) struct Problem {
    pub key: String,
    /// The value in use, for a key that nobody wrote.
    pub value: Option<String>,
    pub rule: String,
    pub hint: Option<String>,
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl Problem {
    pub fn new(key: impl Into<String>, rule: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: None,
            rule: rule.into(),
            hint: None,
            source: None,
        }
    }

    /// A key, or a whole section, that nobody wrote and that has no default.
    pub fn missing(key: impl Into<String>) -> Self {
        let key = key.into();
        let rule = if key.contains('.') {
            "is missing"
        } else {
            "is missing, a section that every run needs"
        };
        Self::new(key, rule)
            .hint("configs/quickstart.toml shows every key with its meaning and default")
    }

    pub fn value(mut self, value: impl ToString) -> Self {
        self.value = Some(value.to_string());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the error of another place behind it, whose hint, where it has one, is this one's.
    pub fn caused_by(mut self, error: impl Advise + Send + Sync + 'static) -> Self {
        self.hint = error.hint().or(self.hint);
        self.source = Some(Box::new(error));
        self
    }
}
