//! The body of `/v1/completions`.

use super::body::Body;
use super::field::{Field, Kind};
use super::generation::{self, Generation, LIKELIEST};
use crate::error::ApiError;

/// The most prompts of a request.
const PROMPTS: usize = 1024;

/// What a prompt may be.
const ALLOWED: &str =
    "a text, a list of texts, a list of token ids, or a list of lists of token ids";

const FIELDS: &[&str] = &["prompt", "logprobs", "echo"];

/// A request for completions of prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// How texts are generated.
    pub generation: Generation,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// How many of the likeliest tokens to name with log-probabilities, if those are wanted.
    pub logprobs: Option<usize>,
    /// Whether the prompt stands before the text.
    pub echo: bool,
}

/// A text to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// As text. It may be empty, where the tokenizer begins texts with a token.
    Text(String),
    /// As token ids; at least one.
    Ids(Vec<u32>),
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn read(body: &Body<'_>) -> Result<Self, ApiError> {
        let prompt = body.field("prompt").ok_or_else(|| ApiError::Missing {
            param: "prompt".to_owned(),
            allowed: ALLOWED,
        })?;
        Ok(Self {
            generation: Generation::read(body, 0)?,
            prompts: prompts(prompt)?,
            logprobs: body.optional("logprobs", |field| field.count(0..=LIKELIEST))?,
            echo: body
                .optional("echo", |field| field.boolean())?
                .unwrap_or(false),
        })
    }

    /// The names of all fields.
    pub const KNOWN: &'static [&'static [&'static str]] = &[FIELDS, generation::FIELDS];
}

/// A prompt or several: the first item of a list says what it is a list of.
fn prompts(field: Field<'_>) -> Result<Vec<Prompt>, ApiError> {
    if field.kind() == Kind::Text {
        return Ok(vec![Prompt::Text(field.text()?)]);
    }
    let (mut first, mut prompts) = (None, Vec::new());
    field.items(ALLOWED, |index, raw| {
        let item = |raw| field.item(index, raw);
        let kind = match first {
            Some(kind) => kind,
            None => *first.insert(item(raw).kind()),
        };
        if prompts.len() == PROMPTS {
            return Err(field.refused(format!("has more than {PROMPTS} prompts")));
        }
        match kind {
            Kind::Text => prompts.push(Prompt::Text(item(raw).text()?)),
            Kind::List => prompts.push(ids(item(raw))?),
            // A list of ids is one prompt, which is read below.
            Kind::Number => (),
            _ => return Err(item(raw).wrong_type("a text, a list of token ids, or a token id")),
        }
        Ok(())
    })?;
    match first {
        None => Err(field.refused(format!("is an empty list; it must be {ALLOWED}"))),
        Some(Kind::Number) => Ok(vec![ids(field)?]),
        Some(_) => Ok(prompts),
    }
}

fn ids(field: Field<'_>) -> Result<Prompt, ApiError> {
    let ids = generation::ids(field.clone())?;
    match ids.is_empty() {
        true => Err(field.refused("is an empty list; a prompt has at least one token")),
        false => Ok(Prompt::Ids(ids)),
    }
}
