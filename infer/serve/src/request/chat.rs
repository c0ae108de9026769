//! The body of `/v1/chat/completions`.

use super::body::Body;
use super::field::{Field, Kind};
use super::generation::{self, Generation, LIKELIEST};
use crate::error::ApiError;

/// What messages may be.
const ALLOWED: &str = "a list of messages with role and content";
/// What the content of a message may be.
const CONTENT: &str = "a text or a list of parts of type \"text\" or \"image_url\"";
/// What a picture may be.
const PICTURE: &str = "an object such as {\"url\": \"data:image/png;base64,…\"}";

const FIELDS: &[&str] = &[
    "messages",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "chat_template_kwargs",
];

/// What a chat template reads by name, beside the messages.
pub type Variables = serde_json::Map<String, serde_json::Value>;

/// A request for the next message of a chat.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// How texts are generated; its `max_tokens` is that of `max_completion_tokens`, where there is one.
    pub generation: Generation,
    /// At least one.
    pub messages: Vec<Message>,
    /// How many of the likeliest tokens to name with log-probabilities, if those are wanted.
    pub logprobs: Option<usize>,
    /// What the chat template reads beside the messages: `chat_template_kwargs`.
    pub variables: Variables,
}

/// What somebody has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What, in parts; a text is a single one.
    pub content: Vec<Part>,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A text.
    Text(String),
    /// A picture.
    Picture(PictureUrl),
}

/// Where a picture is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureUrl {
    /// The field that says it.
    pub param: String,
    /// What it says.
    pub url: String,
}

impl Message {
    /// The texts of its parts, joined by line ends. `picture` stands where a picture is.
    pub fn text(&self, picture: &str) -> String {
        let mut text = String::new();
        let mut after_text = false;
        for part in &self.content {
            match part {
                Part::Text(own) => {
                    if after_text {
                        text.push('\n');
                    }
                    text.push_str(own);
                }
                Part::Picture(_) => text.push_str(picture),
            }
            after_text = matches!(part, Part::Text(_));
        }
        text
    }

    /// Its pictures, in order.
    pub fn pictures(&self) -> impl Iterator<Item = &PictureUrl> {
        self.content.iter().filter_map(|part| match part {
            Part::Picture(picture) => Some(picture),
            Part::Text(_) => None,
        })
    }
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn read(body: &Body<'_>) -> Result<Self, ApiError> {
        let messages = body.field("messages").ok_or_else(|| ApiError::Missing {
            param: "messages".to_owned(),
            allowed: ALLOWED,
        })?;
        let mut generation = Generation::read(body, 1)?;
        let newer = body.optional("max_completion_tokens", |field| field.count(1..=usize::MAX))?;
        generation.max_tokens = newer.or(generation.max_tokens);
        Ok(Self {
            generation,
            messages: read_messages(&messages)?,
            logprobs: logprobs(body)?,
            variables: body
                .optional("chat_template_kwargs", |field| variables(&field))?
                .unwrap_or_default(),
        })
    }

    /// The names of all fields.
    pub const KNOWN: &'static [&'static [&'static str]] = &[FIELDS, generation::FIELDS];
}

fn logprobs(body: &Body<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = body.optional("logprobs", |field| field.boolean())?;
    let Some(field) = body.field("top_logprobs") else {
        return Ok((wanted == Some(true)).then_some(0));
    };
    let likeliest = field.count(0..=LIKELIEST)?;
    match wanted {
        Some(true) => Ok(Some(likeliest)),
        _ if likeliest == 0 => Ok(None),
        _ => Err(field.refused("is for log-probabilities; set logprobs to true or leave it out")),
    }
}

fn variables(field: &Field<'_>) -> Result<Variables, ApiError> {
    let mut variables = Variables::new();
    field.members(
        "an object, such as {\"enable_thinking\": false}",
        |name, value| {
            variables.insert(name.to_owned(), value.json()?);
            Ok(())
        },
    )?;
    Ok(variables)
}

/// Reads messages.
pub(super) fn read_messages(field: &Field<'_>) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::new();
    field.items(ALLOWED, |index, raw| {
        messages.push(message(field.item(index, raw))?);
        Ok(())
    })?;
    match messages.is_empty() {
        true => Err(field.refused("is an empty list; it must have at least one message")),
        false => Ok(messages),
    }
}

fn message(field: Field<'_>) -> Result<Message, ApiError> {
    let (mut role, mut content) = (None, None);
    field.members("an object with role and content", |name, value| {
        match name {
            "role" => role = Some(value.text()?),
            "content" => content = Some(read_content(&value)?),
            "tool_calls" | "function_call" => {
                return Err(value.unsupported("models are not given tools"));
            }
            // A name, for example: templates rarely show it.
            _ => (),
        }
        Ok(())
    })?;
    let missing = |name, allowed| ApiError::Missing {
        param: format!("{}.{name}", field.name()),
        allowed,
    };
    Ok(Message {
        role: role.ok_or_else(|| missing("role", "a text such as \"user\""))?,
        content: content.ok_or_else(|| missing("content", CONTENT))?,
    })
}

fn read_content(field: &Field<'_>) -> Result<Vec<Part>, ApiError> {
    if field.kind() == Kind::Text {
        return Ok(vec![Part::Text(field.text()?)]);
    }
    let mut parts = Vec::new();
    field.items(CONTENT, |index, raw| {
        parts.push(part(field.item(index, raw))?);
        Ok(())
    })?;
    Ok(parts)
}

fn part(field: Field<'_>) -> Result<Part, ApiError> {
    let (mut kind, mut text, mut picture) = (None, None, None);
    field.members("an object with type and text", |name, value| {
        match name {
            "type" => kind = Some(value.text()?),
            "text" => text = Some(value.text()?),
            "image_url" => picture = Some(picture_url(&value)?),
            _ => (),
        }
        Ok(())
    })?;
    let missing = |name, allowed| ApiError::Missing {
        param: format!("{}.{name}", field.name()),
        allowed,
    };
    let example = "that of a part such as {\"type\": \"text\", \"text\": \"Hello\"}";
    match (kind.as_deref(), text, picture) {
        (Some("text"), Some(text), _) => Ok(Part::Text(text)),
        (Some("image_url"), _, Some(picture)) => Ok(Part::Picture(picture)),
        (None, ..) => Err(missing("type", example)),
        (Some("text"), ..) => Err(missing("text", example)),
        (Some("image_url"), ..) => Err(missing("image_url", PICTURE)),
        (Some(kind), ..) => Err(field.unsupported(format!(
            "it is a part of type {kind:?}, and parts are of type \"text\" or \"image_url\""
        ))),
    }
}

/// The address of a picture: an object, or the text alone, as some clients write it. How closely the picture is to be looked
/// at (`detail`) is up to the model.
fn picture_url(field: &Field<'_>) -> Result<PictureUrl, ApiError> {
    let of = |field: &Field<'_>| {
        Ok(PictureUrl {
            param: field.name().to_owned(),
            url: field.text()?,
        })
    };
    if field.kind() == Kind::Text {
        return of(field);
    }
    let mut url = None;
    field.members(PICTURE, |name, value| {
        if name == "url" {
            url = Some(of(&value)?);
        }
        Ok(())
    })?;
    url.ok_or_else(|| ApiError::Missing {
        param: format!("{}.url", field.name()),
        allowed: "that of a picture, such as \"data:image/png;base64,…\"",
    })
}
