//! Configuration errors, each one sentence and a hint.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use firebox_console::advice::{Advice, Advise};

/// Why a configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The configuration file.
        file: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}", file.display())]
    Syntax {
        /// The configuration file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's message.
        message: String,
    },
    /// A `--set` argument cannot be applied.
    #[error("--set {argument}: {problem}")]
    Override {
        /// The argument, as given.
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
                "the configs folder of the repository contains examples, such as configs/quickstart.toml",
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

/// A key that breaks a rule.
#[derive(Debug)]
pub struct KeyError {
    /// The configuration file.
    pub file: PathBuf,
    /// The line of the key in the file; `None` if the file does not contain it.
    pub line: Option<usize>,
    /// The key's dotted path, with list items by index.
    pub key: String,
    /// Its value; `None` if it is missing or too long to show.
    pub value: Option<String>,
    /// Where the value was set.
    pub origin: ValueOrigin,
    /// What is wrong and what is allowed; the rest of a sentence that starts with key and value.
    pub rule: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// The underlying error, if the value names another file.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// Where a value was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueOrigin {
    /// In the file.
    File,
    /// By a `--set` argument.
    Set,
    /// Nowhere; the value is the default.
    Default,
}

impl fmt::Display for KeyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if let (Some(line), ValueOrigin::File) = (self.line, self.origin) {
            write!(formatter, ":{line}")?;
        }
        write!(formatter, ": {}", self.key)?;
        if let Some(value) = &self.value {
            write!(formatter, " = {value}")?;
        }
        match (self.origin, &self.value) {
            (ValueOrigin::Set, _) => write!(formatter, " (from --set)")?,
            (ValueOrigin::Default, Some(_)) => write!(formatter, " (default)")?,
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

/// A broken rule, before the key is located in the file.
#[derive(Debug)]
pub(super) struct Problem {
    pub key: String,
    /// The default value, if the key is not written.
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

    /// A missing key or section that has no default.
    pub fn missing(key: impl Into<String>) -> Self {
        let key = key.into();
        let rule = if key.contains('.') {
            "is missing"
        } else {
            "is missing; every run needs this section"
        };
        Self::new(key, rule).hint("configs/quickstart.toml explains every key and its default")
    }

    pub fn value(mut self, value: impl ToString) -> Self {
        self.value = Some(value.to_string());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the underlying error and its hint, which, if there is one, replaces the present hint.
    pub fn caused_by(mut self, error: impl Advise + Send + Sync + 'static) -> Self {
        self.hint = error.hint().or(self.hint);
        self.source = Some(Box::new(error));
        self
    }
}
