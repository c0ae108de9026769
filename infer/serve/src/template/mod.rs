//! Chats as text: the Jinja template of a checkpoint, rendered as `transformers` renders it.

mod python;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind};

use serde_json::{Value as Json, json};

use crate::request::{Message, Part, Variables};

/// The template's name in its environment.
const NAME: &str = "chat_template";

/// Writes chats as text.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<&'static str, String>,
    /// Whether it writes contents that are lists of parts.
    takes_parts: bool,
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is not one.
    #[error("the checkpoint's chat template cannot be read: {0}")]
    Syntax(String),
    /// It refuses the messages itself.
    #[error("the checkpoint's chat template refuses the messages: {0}")]
    Raised(String),
    /// It fails.
    #[error("the checkpoint's chat template fails on the messages: {0}")]
    Failed(String),
}

impl ChatTemplate {
    /// Reads a template, which is given the texts of special tokens by name, such as `bos_token`.
    ///
    /// # Errors
    ///
    /// When it has a syntax that Jinja, or this reading of it, does not know.
    pub fn new(
        source: &str,
        special_tokens: BTreeMap<&'static str, String>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // As transformers sets them.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| syntax_error(&error))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("raise_exception", raise);
        environment.add_function("strftime_now", python::strftime_now);
        let source = without_generation_tags(source).into_owned();
        let added = environment.add_template_owned(NAME, source);
        added.map_err(|error| syntax_error(&error))?;
        let mut template = Self {
            environment,
            special_tokens,
            takes_parts: false,
        };
        template.takes_parts = template.writes_parts();
        Ok(template)
    }

    /// Whether a list of one part of text is written as the text alone is.
    fn writes_parts(&self) -> bool {
        let text = "How many boilers are there?";
        let of = |content: Json| {
            let messages = json!([{ "role": "user", "content": content }]);
            self.write(&messages, &Variables::new())
        };
        let parts = json!([{ "type": "text", "text": text }]);
        matches!((of(text.into()), of(parts)), (Ok(text), Ok(parts)) if text == parts)
    }

    /// The text of a chat, up to where the assistant's next message begins. The template reads `variables` by their names, such
    /// as `enable_thinking`; those that it is always given stay what they are. A message with pictures is given as a list of
    /// parts, such as `{"type": "image"}`, to a template that writes lists; to another one as a text in which `picture` stands
    /// for each.
    ///
    /// # Errors
    ///
    /// When the template refuses the messages, or fails.
    pub fn render(
        &self,
        messages: &[Message],
        variables: &Variables,
        picture: &str,
    ) -> Result<String, TemplateError> {
        let given = messages.iter().map(|message| {
            let content = match self.takes_parts && message.pictures().next().is_some() {
                true => message.content.iter().map(part).collect(),
                false => Json::from(message.text(picture)),
            };
            json!({ "role": message.role, "content": content })
        });
        self.write(&given.collect(), variables)
    }

    /// The text of messages, which are a list.
    fn write(&self, messages: &Json, variables: &Variables) -> Result<String, TemplateError> {
        let variables = variables.iter();
        let mut names: BTreeMap<&str, Value> = variables
            .map(|(name, value)| (name.as_str(), Value::from(Serde(value))))
            .collect();
        let tokens = self.special_tokens.iter();
        names.extend(tokens.map(|(&name, text)| (name, Value::from(text.as_str()))));
        names.insert("messages", Value::from(Serde(messages)));
        names.insert("add_generation_prompt", Value::from(true));
        // Templates ask whether these are none, which what is undefined is not.
        names.insert("tools", Value::from(()));
        names.insert("documents", Value::from(()));
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|template| template.render(names));
        rendered.map_err(|error| match raised(&error) {
            Some(Raised(message)) => TemplateError::Raised(message.clone()),
            None => TemplateError::Failed(words(&error)),
        })
    }
}

/// A part as templates of models that see know it.
fn part(part: &Part) -> Json {
    match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Picture(_) => json!({ "type": "image" }),
    }
}

/// What a template says of messages that it does not take.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// `raise_exception` of `transformers`.
fn raise(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

fn raised(error: &Error) -> Option<&Raised> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(raised) = error.downcast_ref() {
            return Some(raised);
        }
        cause = error.source();
    }
    None
}

fn syntax_error(error: &Error) -> TemplateError {
    TemplateError::Syntax(words(error))
}

/// An error with its line.
fn words(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// The same template without the tags that mark what an assistant has said, which `transformers` adds to Jinja and which write
/// nothing. A condition that always holds takes their place, so that white space around them is treated alike.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_matches(['{', '}', '%', '-', '+']).trim();
        text.push_str(before);
        match name {
            "generation" => text.push_str(&tag.replace(name, "if true")),
            "endgeneration" => text.push_str(&tag.replace(name, "endif")),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    Cow::Owned(text)
}
