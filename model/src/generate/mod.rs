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

mod draft;
mod engine;
mod lookup;
mod pace;
mod parts;
mod room;
#[cfg(test)]
mod tests;
mod text;
mod verify;

pub use engine::{Engine, StepReport, generate_all, least_blocks};
pub use pace::DraftTokens;

use std::sync::Arc;

use crate::cache::BLOCK_TOKENS;
use crate::language_model::LanguageModel;
use crate::network::Local;
use crate::sampling::{Sampling, Scored};
use crate::vision::PictureKeys;

/// The most tokens of prompts that a step reads where nobody says otherwise.
pub const STEP_TOKENS: usize = 1024;

/// A text to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// The most tokens to generate.
    pub count: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What is added to the logits of some tokens before everything else that changes them.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that end the text besides those of [`Options::eos_ids`].
    pub stop_ids: Vec<u32>,
    /// Makes the tokens of [`Options::eos_ids`] like others.
    pub ignores_eos: bool,
    /// How many of the likeliest tokens come with the score of each token; `None` for no scores.
    pub likeliest: Option<usize>,
    /// Whether the tokens of the prompt are scored too. The prompt is then read whole, and fits the context.
    pub scores_prompt: bool,
    /// The pictures that the image tokens of the prompt stand for, in order. Prompt and generated text fit the context then.
    pub pictures: Option<Arc<PictureKeys>>,
}

impl Request {
    /// Without pictures, a bias, scores, or further tokens that end it.
    pub fn new(prompt: Vec<u32>, count: usize, sampling: Sampling) -> Self {
        Self {
            prompt,
            count,
            sampling,
            bias: Vec::new(),
            stop_ids: Vec::new(),
            ignores_eos: false,
            likeliest: None,
            scores_prompt: false,
            pictures: None,
        }
    }

    fn ends(&self, id: u32, eos_ids: &[u32]) -> bool {
        self.stop_ids.contains(&id) || !self.ignores_eos && eos_ids.contains(&id)
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A token that ends the text was drawn.
    Eos,
    /// The most tokens were generated.
    Count,
    /// The receiver wanted no more.
    Stopped,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// How likely it was, if the [request](Request::likeliest) asks for that.
    pub scored: Option<Scored>,
}

/// A text that ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Why.
    pub end: End,
    /// Number of tokens that were generated; one that ends the text is not among them.
    pub tokens: usize,
    /// Number of tokens that had been generated when the text exceeded the context for the first time.
    pub cut: Option<usize>,
    /// Tokens of its prompt that were not read, since another text with the same beginning had been.
    pub shared: usize,
    /// The token that ended it, with [`End::Eos`].
    pub last: Option<Token>,
}

/// Takes what is generated. Texts have numbers in the order in which their requests came, from 0, and end in any order.
pub trait Receiver {
    /// The first tokens of a text are being read, but for so many that another text with the same beginning has read.
    fn began(&mut self, _text: usize, _shared: usize) {}

    /// How likely further tokens of a text's prompt are, from the second one on.
    fn prompt_scored(&mut self, _text: usize, _scores: Vec<Scored>) {}

    /// The next token of a text; false ends the text.
    fn token(&mut self, text: usize, token: Token) -> bool;

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
    /// The most texts that have ended of which keys and values are kept for others that begin alike.
    pub kept: usize,
    /// The most tokens of prompts that a step reads, at least 1, which bounds its time and memory.
    pub step_tokens: usize,
    /// Blocks of the cache, and never more, at least one more than a text of the whole context has: then the oldest texts
    /// that have ended lose theirs, and the newest ones begin anew later. `None` lets the cache grow.
    pub blocks: Option<usize>,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Whether the network counts which experts the steps visit.
    pub counts_experts: bool,
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
            kept: 0,
            step_tokens: STEP_TOKENS,
            blocks: None,
            block_tokens: BLOCK_TOKENS,
            counts_experts: false,
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
    /// Texts that lost what was cached of them and began anew, since a bounded cache was full.
    pub preempted: usize,
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
    let request = Request::new(prompt.to_vec(), count, sampling);
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
    fn token(&mut self, _: usize, token: Token) -> bool {
        (self.emit)(token.id)
    }

    fn ended(&mut self, _: usize, ended: Ended) {
        self.cut = ended.cut;
    }
}
