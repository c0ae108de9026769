//! Autoregressive generation: many texts at once, with or without a draft.
//!
//! A step of the model appends to each text of a batch the token that was drawn last, or a part of its prompt, and as
//! many drafted tokens as are worth it; from the logits of these positions the next tokens are drawn (`verify`). When a
//! text ends, the next one takes its place.
//!
//! Texts that begin alike share what is cached of their beginnings: a text waits while another one reads the same blocks
//! of a prompt, and then takes them over.
//!
//! What is generated depends on the model, the prompt and its [`Sampling`] alone, but for the rounding of logits, which
//! may depend on the number of rows of a step: a token can differ where two were as good as tied.

mod batch;
mod draft;
mod lookup;
mod pace;
#[cfg(test)]
mod tests;
mod verify;

pub use batch::generate_all;
pub use pace::DraftTokens;

use crate::language_model::LanguageModel;
use crate::network::Local;
use crate::sampling::Sampling;

/// A text to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// The most tokens to generate.
    pub count: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// An end-of-text token was drawn.
    Eos,
    /// The most tokens were generated.
    Count,
    /// The receiver wanted no more.
    Stopped,
}

/// A text that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub end: End,
    /// Number of tokens that were generated; an end-of-text token is not among them.
    pub tokens: usize,
    /// Number of tokens that had been generated when the text exceeded the context for the first time.
    pub cut: Option<usize>,
}

/// Takes what is generated. Texts have the numbers of their requests, from 0, and end in any order.
pub trait Receiver {
    /// The next token of a text; false ends the text.
    fn token(&mut self, text: usize, id: u32) -> bool;

    /// The end of a text.
    fn ended(&mut self, text: usize, ended: Ended);
}

/// Where drafted tokens come from.
#[derive(Debug, Clone, Copy, Default)]
pub enum Draft<'a> {
    /// There are none.
    #[default]
    None,
    /// What followed the last tokens where they occurred before in the same text.
    PromptLookup,
    /// A smaller model of the same vocabulary.
    Model(&'a LanguageModel),
}

/// How texts are generated.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Tokens that end a text.
    pub eos_ids: &'a [u32],
    /// The most texts at once, at least 1.
    pub batch: usize,
    /// In how many groups the texts take turns, at least 1: the most steps that are under way at once. More than one is for
    /// a [`Network`](crate::network::Network) of several stages.
    pub in_flight: usize,
    /// Where drafted tokens come from.
    pub draft: Draft<'a>,
    /// How many tokens are drafted for a text and step.
    pub draft_tokens: DraftTokens,
}

impl<'a> Options<'a> {
    /// One text after the other, without a draft.
    pub fn new(eos_ids: &'a [u32]) -> Self {
        Self {
            eos_ids,
            batch: 1,
            in_flight: 1,
            draft: Draft::None,
            draft_tokens: DraftTokens::Auto,
        }
    }
}

/// What was counted over all texts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Statistics {
    /// Tokens that were generated.
    pub tokens: usize,
    /// Draws of the next token of a text: steps of the model, counted for each text that it served.
    pub draws: usize,
    /// Tokens that were drafted.
    pub drafted: usize,
    /// Drafted tokens that were what the model itself drew.
    pub accepted: usize,
    /// Tokens of prompts that were not read, since another text with the same beginning had been.
    pub shared: usize,
    /// The most bytes of keys and values that texts held at once, over all ranks; those of a draft model and copies of
    /// key/value heads that several ranks have are not among them.
    pub cache_bytes: usize,
}

impl Statistics {
    /// Tokens of a text that a step of the model gave.
    pub fn tokens_per_step(&self) -> f64 {
        self.tokens as f64 / self.draws.max(1) as f64
    }

    /// Fraction of the drafted tokens that were accepted.
    pub fn acceptance(&self) -> f64 {
        self.accepted as f64 / self.drafted.max(1) as f64
    }
}

/// Continues `prompt` by up to `count` tokens, and calls `emit` with each, which ends the text by returning false. The
/// text also ends at any of `eos_ids`, which are not emitted.
///
/// When the text exceeds the context, its oldest half is dropped and the cache is refilled with the newest half, since
/// rotary positions are relative to the start of the cache. Returns the number of tokens that had been emitted when this
/// first happened, `None` if it did not.
///
/// Of a prompt that is longer than the context, only the newest tokens that fit are read; that alone does not count as
/// exceeding it.
///
/// # Panics
///
/// When the prompt is empty or a token of it is not in the vocabulary.
pub fn generate(
    model: &LanguageModel,
    prompt: &[u32],
    count: usize,
    eos_ids: &[u32],
    sampling: Sampling,
    emit: impl FnMut(u32) -> bool,
) -> Option<usize> {
    let mut only = Only { emit, cut: None };
    let request = Request {
        prompt: prompt.to_vec(),
        count,
        sampling,
    };
    let network = &mut Local::new(model);
    generate_all(network, [request], &Options::new(eos_ids), &mut only);
    only.cut
}

/// Receives a single text.
struct Only<F> {
    emit: F,
    cut: Option<usize>,
}

impl<F: FnMut(u32) -> bool> Receiver for Only<F> {
    fn token(&mut self, _: usize, id: u32) -> bool {
        (self.emit)(id)
    }

    fn ended(&mut self, _: usize, ended: Ended) {
        self.cut = ended.cut;
    }
}
