//! What a person can do about an error, and the exit code that goes with it.

use std::error::Error;

/// A hint, printed on a line of its own below the error, and the exit code of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What to do about the error, where something can be done.
    pub hint: Option<String>,
    /// 2 when the command line or the configuration is at fault, otherwise 1.
    pub exit_code: u8,
    /// Whether the error has been printed, so that only the exit code is left to give.
    pub is_printed: bool,
}

impl Advice {
    /// The command failed: exit code 1.
    pub const FAILURE: Self = Self {
        hint: None,
        exit_code: 1,
        is_printed: false,
    };

    /// The command line or the configuration is at fault: exit code 2.
    pub const USAGE: Self = Self {
        hint: None,
        exit_code: 2,
        is_printed: false,
    };

    /// The same exit code, with a hint.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The same hint, with an exit code.
    pub fn exit_code(self, exit_code: u8) -> Self {
        Self { exit_code, ..self }
    }
}

/// An error that comes with [`Advice`]. One that wraps others passes theirs on: `Self::Text(error) => error.advice()`.
pub trait Advise: Error {
    /// The hint and the exit code together.
    fn advice(&self) -> Advice;

    /// What to do about it, where something can be done.
    fn hint(&self) -> Option<String> {
        self.advice().hint
    }

    /// The exit code of the process.
    fn exit_code(&self) -> u8 {
        self.advice().exit_code
    }
}
