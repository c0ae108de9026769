//! `cargo infer eval --tasks`: questions with choices, and texts with their ends, by the likelihood that the model gives them.
//!
//! The arithmetic is that of lm-evaluation-harness: context and continuation are encoded together, spaces at the end of the
//! context belong to the continuation, and what exceeds the model's context is left out at the beginning (there it may be longer by
//! the last token, which is not read).

mod file;
mod score;
#[cfg(test)]
mod tests;
mod text;

use serde::Serialize;

pub use self::file::{Item, TaskError, read};
pub use self::score::score;

/// The result of `cargo infer eval --tasks`; the fields are those of its `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Over the questions with choices; `None` where there is none.
    pub choices: Option<Choices>,
    /// Over the texts with their ends; `None` where there is none.
    pub continuations: Option<Continuations>,
    /// Tokens that the model read.
    pub tokens: u64,
    /// Texts that are longer than the model's context, of which it read the end.
    pub cut: usize,
    /// The device's name.
    pub device: String,
    /// Item by item.
    pub items: Vec<Scored>,
}

/// How questions were answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choices {
    /// Number of questions.
    pub count: usize,
    /// Part of them whose right choice is the likeliest (`acc`).
    pub accuracy: Fraction,
    /// The same where the log-likelihood of a choice is divided by its number of characters (`acc_norm`).
    pub accuracy_by_length: Fraction,
    /// What guessing gives: the mean of 1 ÷ number of choices.
    pub chance: f64,
}

/// How likely the ends of texts were.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Continuations {
    /// Number of texts.
    pub count: usize,
    /// Part of them whose every token is the likeliest (`acc` of tasks such as LAMBADA).
    pub accuracy: Fraction,
    /// `exp(−mean log-likelihood of a continuation)`.
    pub perplexity: f64,
    /// Mean cross-entropy over their tokens, in nats.
    pub nats_per_token: f64,
}

/// A part of the items, and how much chance there is in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fraction {
    /// Between 0 and 1.
    pub value: f64,
    /// Its standard error: the sample's standard deviation ÷ √n; `None` for a single item.
    pub standard_error: Option<f64>,
}

/// An item's scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scored {
    /// Line of the file, from 1.
    pub line: usize,
    /// Log-likelihood in nats of each choice, or of the continuation alone.
    pub log_likelihoods: Vec<f64>,
    /// Whether every token of it is the likeliest.
    pub is_greedy: Vec<bool>,
    /// Tokens of each.
    pub tokens: Vec<usize>,
    /// The likeliest choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<usize>,
    /// The likeliest choice by length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen_by_length: Option<usize>,
    /// The right choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<usize>,
}

impl Fraction {
    /// Of the items for which it holds.
    pub(self) fn of(holds: &[bool]) -> Self {
        let count = holds.len() as f64;
        let value = holds.iter().filter(|&&holds| holds).count() as f64 / count;
        let standard_error = match holds.len() {
            1 => None,
            _ => Some((value * (1.0 - value) / (count - 1.0)).sqrt()),
        };
        Self {
            value,
            standard_error,
        }
    }
}
