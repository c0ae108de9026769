//! Files of prompts, one JSON object per line.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use firebox_console::durable::FileError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::InferError;

/// A prompt of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Names the prompt's text in the output, once per file.
    pub id: Id,
    /// The text to continue; if empty, the model starts a new document.
    pub prompt: String,
    /// Maximum number of tokens to generate, instead of that of all.
    pub max_tokens: Option<usize>,
    /// Seed, instead of that of all.
    pub seed: Option<u64>,
}

/// The name of a prompt: that of its line, or the line's number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// Text.
    Text(String),
    /// An integer.
    Number(i64),
}

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
struct Line {
    prompt: String,
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    seed: Option<u64>,
}

/// Reads a file of prompts, or standard input for `-`; empty lines are skipped, and a UTF-8 byte order mark is.
///
/// # Errors
///
/// When the file cannot be read, has no prompts, or a line is not as it should be; the error names the line.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>, InferError> {
    let bytes = match path == Path::new("-") {
        true => {
            let mut bytes = Vec::new();
            let read = io::stdin().read_to_end(&mut bytes);
            read.map(|_| bytes).map_err(InferError::Input)?
        }
        false => {
            fs::read(path).map_err(|error| InferError::Read(FileError::of("read", path)(error)))?
        }
    };
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let mut prompts = Vec::new();
    let mut lines = HashMap::new();
    for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        let fault = |reason| InferError::PromptLine {
            file: path.to_owned(),
            line: number,
            reason,
        };
        let line = str::from_utf8(line)
            .map_err(|error| fault(format!("byte {} is not UTF-8", error.valid_up_to() + 1)))?;
        if line.trim().is_empty() {
            continue;
        }
        let prompt = parse(line, number).map_err(fault)?;
        if let Some(earlier) = lines.insert(prompt.id.clone(), number) {
            let id = serde_json::json!(prompt.id);
            return Err(fault(format!("id {id} is that of line {earlier} too")));
        }
        prompts.push(prompt);
    }
    match prompts.is_empty() {
        true => Err(InferError::NoPrompts {
            file: path.to_owned(),
        }),
        false => Ok(prompts),
    }
}

fn parse(line: &str, number: usize) -> Result<Prompt, String> {
    // Lists would fill the fields in order.
    if line.trim_start().starts_with('[') {
        return Err("a list; expected a JSON object".to_owned());
    }
    let found: Line = serde_json::from_str(line).map_err(|error| describe(&error))?;
    let id = match found.id {
        None => Id::Number(number as i64),
        Some(id) => serde_json::from_value(id.clone())
            .map_err(|_| format!("id must be a string or an integer, not {id}"))?,
    };
    Ok(Prompt {
        id,
        prompt: found.prompt,
        max_tokens: found.max_tokens.map(|tokens| tokens as usize),
        seed: found.seed,
    })
}

/// The error of a single line; its own number of the line, which is always 1, is left out.
pub(super) fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line 1 column {}", error.column());
    match text.strip_suffix(&place) {
        Some(reason) => format!("column {}: {reason}", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;

    use super::*;

    fn read(content: &[u8]) -> Result<Vec<Prompt>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.jsonl");
        fs::write(&path, content).unwrap();
        read_prompts(&path).map_err(|error| {
            assert_eq!(error.exit_code(), 2);
            assert!(error.hint().is_some(), "{error}");
            let text = error.to_string();
            text.replace(&format!("{}/", folder.path().display()), "")
        })
    }

    #[test]
    fn lines_with_and_without_names() {
        let text = "\u{FEFF}{\"prompt\": \"a\\nb\"}\r\n\n{\"id\": \"x\", \"prompt\": \"\", \"max_tokens\": 0, \"seed\": 7}\n\
                    {\"id\": -4, \"prompt\": \"ü\", \"seed\": null}";
        let prompt = |id, prompt: &str, max_tokens, seed| Prompt {
            id,
            prompt: prompt.to_owned(),
            max_tokens,
            seed,
        };
        let expected = vec![
            prompt(Id::Number(1), "a\nb", None, None),
            prompt(Id::Text("x".to_owned()), "", Some(0), Some(7)),
            prompt(Id::Number(-4), "ü", None, None),
        ];
        assert_eq!(read(text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        let good = "{\"prompt\": \"a\"}\n";
        for (line, words) in [
            (
                "{\"prompt\": \"a\"",
                "prompts.jsonl:2: column 14: EOF while parsing an object",
            ),
            (
                "once upon a time",
                "prompts.jsonl:2: column 1: expected value",
            ),
            (
                "\"a\"",
                "prompts.jsonl:2: column 3: invalid type: string \"a\"",
            ),
            (
                "{\"text\": \"a\"}",
                "unknown field `text`, expected one of `prompt`, `id`",
            ),
            ("{\"id\": 3}", "missing field `prompt`"),
            (
                "{\"prompt\": 3}",
                "invalid type: integer `3`, expected a string",
            ),
            (
                "{\"prompt\": \"a\", \"seed\": -1}",
                "invalid value: integer `-1`, expected u64",
            ),
            (
                "{\"prompt\": \"a\", \"max_tokens\": 1.5}",
                "floating point `1.5`",
            ),
            (
                "{\"prompt\": \"a\", \"id\": 1.5}",
                "id must be a string or an integer, not 1.5",
            ),
            (
                "{\"prompt\": \"a\", \"id\": 1}",
                "prompts.jsonl:2: id 1 is that of line 1 too",
            ),
        ] {
            let found = read(format!("{good}{line}\n").as_bytes()).unwrap_err();
            assert!(found.contains(words), "{line}: {found}");
        }
        let found = read(b"{\"prompt\": \"a\xFF\"}").unwrap_err();
        assert_eq!(found, "prompts.jsonl:1: byte 14 is not UTF-8");
        assert_eq!(read(b"\n \n").unwrap_err(), "prompts.jsonl has no prompts");
    }
}
