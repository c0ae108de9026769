//! The bodies of `/tokenize` and `/detokenize`.

use super::body::Body;
use super::generation::ids;
use crate::error::ApiError;

/// A text to make token ids of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizeRequest {
    /// The model that is asked for.
    pub model: Option<String>,
    /// The text.
    pub prompt: String,
    /// Whether the token comes first that begins texts.
    pub add_special_tokens: bool,
}

impl TokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn read(body: &Body<'_>) -> Result<Self, ApiError> {
        let prompt = body.field("prompt").ok_or_else(|| ApiError::Missing {
            param: "prompt".to_owned(),
            allowed: "a text",
        })?;
        Ok(Self {
            model: body.optional("model", |field| field.text())?,
            prompt: prompt.text()?,
            add_special_tokens: body
                .optional("add_special_tokens", |field| field.boolean())?
                .unwrap_or(true),
        })
    }

    /// The names of all fields.
    pub const KNOWN: &'static [&'static [&'static str]] =
        &[&["model", "prompt", "add_special_tokens"]];
}

/// Token ids to make a text of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// The model that is asked for.
    pub model: Option<String>,
    /// The ids.
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn read(body: &Body<'_>) -> Result<Self, ApiError> {
        let tokens = body.field("tokens").ok_or_else(|| ApiError::Missing {
            param: "tokens".to_owned(),
            allowed: "a list of token ids",
        })?;
        Ok(Self {
            model: body.optional("model", |field| field.text())?,
            tokens: ids(tokens)?,
        })
    }

    /// The names of all fields.
    pub const KNOWN: &'static [&'static [&'static str]] = &[&["model", "tokens"]];
}
