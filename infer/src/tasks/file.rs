//! Files of tasks: an item a line.

use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use serde::Deserialize;
use serde_json::Value;

/// An item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A question with choices.
    Choices {
        /// What stands in front of each choice.
        question: String,
        /// Each follows the question after a space.
        choices: Vec<String>,
        /// The place of the right one, from 0.
        answer: usize,
    },
    /// A text with its end.
    Continuation {
        /// What stands in front; may be empty.
        context: String,
        /// The end, which follows as it is.
        continuation: String,
    },
}

/// As a line has it.
#[derive(Debug, Deserialize)]
struct RawItem {
    question: Option<String>,
    choices: Option<Vec<String>>,
    /// A place from 0, a letter from A, or the text of a choice.
    answer: Option<Value>,
    context: Option<String>,
    continuation: Option<String>,
}

/// Why a file of tasks cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is no item.
    #[error("{}:{line}: {what}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The file has no items.
    #[error("{} has no items", .0.display())]
    Empty(PathBuf),
    /// A text is longer than the context.
    #[error("{}:{line}: {what} has {tokens} tokens, and the model's context {context}", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// Which text.
        what: String,
        /// Its tokens, without those in front of it.
        tokens: usize,
        /// The most tokens that the model reads.
        context: usize,
    },
    /// Nothing of a line's text is left of which the model could say how likely it is.
    #[error("{}:{line}: {what} has no token to score", file.display())]
    NoToken {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// Which text.
        what: String,
    },
}

impl Advise for TaskError {
    fn advice(&self) -> Advice {
        match self {
            Self::File(error) if error.source.kind() == ErrorKind::NotFound => Advice::USAGE,
            Self::File(_) => Advice::FAILURE,
            Self::Line { .. } | Self::Empty(_) => Advice::FAILURE.hint(
                "an item is a line such as {\"question\": \"2 + 2 =\", \"choices\": [\"3\", \"4\"], \"answer\": 1} or \
                 {\"context\": \"Once upon a\", \"continuation\": \" time\"}",
            ),
            Self::TooLong { .. } => {
                Advice::FAILURE.hint("leave the item out, or use a model with a longer context")
            }
            Self::NoToken { .. } => {
                Advice::FAILURE.hint("begin the context with a text, since the first token of a text is not predicted")
            }
        }
    }
}

/// The items of a file of JSON lines, with their lines' numbers from 1; other fields than those of an item are passed over.
///
/// # Errors
///
/// When it cannot be read, a line is no item, or there is none.
pub fn read(path: &Path) -> Result<Vec<(usize, Item)>, TaskError> {
    let failed = FileError::of("read", path);
    let file = match std::fs::File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) => return Err(failed(error).into()),
    };
    let mut items = Vec::new();
    for (place, line) in file.lines().enumerate() {
        let line = line.map_err(FileError::of("read", path))?;
        let line = line.trim_start_matches('\u{feff}');
        if line.trim().is_empty() {
            continue;
        }
        let number = place + 1;
        let item = serde_json::from_str::<RawItem>(line)
            .map_err(|error| error.to_string())
            .and_then(RawItem::item)
            .map_err(|what| TaskError::Line {
                file: path.to_owned(),
                line: number,
                what,
            })?;
        items.push((number, item));
    }
    match items.is_empty() {
        true => Err(TaskError::Empty(path.to_owned())),
        false => Ok(items),
    }
}

impl RawItem {
    fn item(self) -> Result<Item, String> {
        match self {
            Self {
                question: Some(question),
                choices: Some(choices),
                answer: Some(answer),
                context: None,
                continuation: None,
            } => {
                if choices.len() < 2 || choices.iter().any(String::is_empty) {
                    return Err("`choices` must be two or more texts that are not empty".to_owned());
                }
                let answer = place(&answer, &choices)?;
                Ok(Item::Choices {
                    question,
                    choices,
                    answer,
                })
            }
            Self {
                question: None,
                choices: None,
                answer: None,
                context: Some(context),
                continuation: Some(continuation),
            } => match continuation.is_empty() {
                true => Err("`continuation` is empty".to_owned()),
                false => Ok(Item::Continuation {
                    context,
                    continuation,
                }),
            },
            _ => Err(
                "needs `question`, `choices` and `answer`, or `context` and `continuation`"
                    .to_owned(),
            ),
        }
    }
}

/// The place of the right choice.
fn place(answer: &Value, choices: &[String]) -> Result<usize, String> {
    let count = choices.len();
    let found = match answer {
        Value::String(text) => {
            let as_choice = choices.iter().position(|choice| choice == text);
            as_choice.or(match text.as_bytes() {
                [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
                _ => None,
            })
        }
        other => other.as_u64().and_then(|place| usize::try_from(place).ok()),
    };
    found.filter(|&place| place < count).ok_or_else(|| {
        format!(
            "`answer` is {answer}, and must be a number from 0 to {}, a letter from A, or the text of a choice",
            count - 1
        )
    })
}
