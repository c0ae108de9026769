//! Loads a configuration: parses the file, applies `--set` overrides, and locates faults.

use std::path::{Path, PathBuf};

use serde_path_to_error::Segment;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::error::{KeyError, Problem, ValueOrigin};
use super::raw::RawConfig;
use super::{ConfigError, RunConfig, overrides, resolve, saved};

/// Maximum length of a value shown in a message, in bytes.
const LONGEST_SHOWN_VALUE: usize = 80;

/// Reads a run's TOML file, applies the `--set` overrides (`dotted.path=value`), and checks every rule.
///
/// Does not use a device. Opens a `file` tokenizer to read its vocabulary size, and the `config.json` and
/// `tokenizer.json` of the checkpoint that the run starts from.
///
/// # Errors
///
/// The first fault, with the file, the line, the key, its value and what is allowed.
pub fn load(path: &Path, overrides: &[String]) -> Result<RunConfig, ConfigError> {
    parse(path, &read_text(path)?, overrides, None)
}

/// The same, also of a run that starts from another one without a checkpoint yet, if `train.init` names the configuration of
/// that run: its model and tokenizer are then as planned there, so that a `bpe` tokenizer is one still to be trained.
///
/// # Errors
///
/// See [`load`].
pub fn load_planned(path: &Path, overrides: &[String]) -> Result<RunConfig, ConfigError> {
    Chain::planned(path).read(path, overrides)
}

/// Configurations of which each starts from the next one.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    /// Whether a run that another one starts from need not have a checkpoint yet.
    pub planned: bool,
    files: Vec<PathBuf>,
}

impl Chain {
    fn present(file: &Path) -> Self {
        Self {
            planned: false,
            files: vec![file.to_owned()],
        }
    }

    fn planned(file: &Path) -> Self {
        Self {
            planned: true,
            ..Self::present(file)
        }
    }

    /// Reads the configuration that the last one starts from.
    ///
    /// # Errors
    ///
    /// See [`load`].
    pub fn follow(&self, file: &Path) -> Result<RunConfig, ConfigError> {
        let mut longer = self.clone();
        longer.files.push(file.to_owned());
        longer.read(file, &[])
    }

    /// The way from a configuration back to itself, if the last one starts from it: the files, with arrows between them.
    pub fn circle(&self, file: &Path) -> Option<String> {
        let real = |file: &Path| file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let mut files = self.files.iter();
        let start = files.position(|before| real(before) == real(file))?;
        let names = self.files[start..].iter().map(PathBuf::as_path);
        let names = names.chain([file]).map(|name| name.display().to_string());
        Some(names.collect::<Vec<_>>().join(" → "))
    }

    fn read(&self, file: &Path, overrides: &[String]) -> Result<RunConfig, ConfigError> {
        parse_after(self, file, &read_text(file)?, overrides, None)
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        file: path.to_owned(),
        source,
    })
}

/// [`load`] for text that is already read; see [`parse_after`].
pub(super) fn parse(
    file: &Path,
    text: &str,
    overrides: &[String],
    saved: Option<&Table>,
) -> Result<RunConfig, ConfigError> {
    parse_after(&Chain::present(file), file, text, overrides, saved)
}

/// Reads the last configuration of a chain, whose text is `text`. If the run has a `saved` configuration, it provides the model and tokenizer
/// keys that the text omits; see [`saved::complete`].
fn parse_after(
    chain: &Chain,
    file: &Path,
    text: &str,
    overrides: &[String],
    saved: Option<&Table>,
) -> Result<RunConfig, ConfigError> {
    let mut table = text.parse::<Table>().map_err(|error| ConfigError::Syntax {
        file: file.to_owned(),
        line: error.span().map_or(1, |span| line_at(text, span.start)),
        message: error.message().replace('\n', ", "),
    })?;
    let set = overrides
        .iter()
        .map(|argument| overrides::apply(&mut table, argument))
        .collect::<Result<Vec<String>, ConfigError>>()?;
    let complete = saved.is_some_and(|saved| saved::complete(&mut table, saved));

    read(&table)
        .and_then(|raw| resolve::resolve(raw, complete, chain))
        .map_err(|problem| {
            ConfigError::Key(Box::new(locate(
                problem,
                file.to_owned(),
                text,
                &table,
                &set,
            )))
        })
}

fn read(table: &Table) -> Result<RawConfig, Problem> {
    for (key, value) in table {
        let lists_tables = value
            .as_array()
            .and_then(|items| items.first())
            .is_some_and(Value::is_table);
        if lists_tables {
            return Err(Problem::new(key, "must be a table, not a list of tables")
                .hint(format!("write [{key}], with single brackets")));
        }
    }
    serde_path_to_error::deserialize(table.clone()).map_err(|error| {
        let path: Vec<String> = error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                Segment::Seq { index } => Some(index.to_string()),
                Segment::Map { key } => Some(key.clone()),
                Segment::Enum { variant } => Some(variant.clone()),
                Segment::Unknown => None,
            })
            .collect();
        translate(path, error.inner().message(), table)
    })
}

/// Translates serde's message into a rule, which follows the key in the sentence, and a hint.
fn translate(mut path: Vec<String>, message: &str, table: &Table) -> Problem {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("missing field") {
        path.extend(quoted.first().map(|name| (*name).to_owned()));
        return Problem::missing(path.join("."));
    }
    if let ("unknown field", [name, allowed @ ..]) = (first_words(message), quoted.as_slice()) {
        if path.last().map(String::as_str) != Some(*name) {
            path.push((*name).to_owned());
        }
        let parent = path[..path.len() - 1].join(".");
        let rule = match parent.as_str() {
            "" => format!("is not a known section; allowed: {}", allowed.join(", ")),
            parent => format!(
                "is not a known key of {parent}; allowed: {}",
                allowed.join(", ")
            ),
        };
        return with_suggestion(Problem::new(path.join("."), rule), name, allowed);
    }
    if let ("unknown variant", [name, allowed @ ..]) = (first_words(message), quoted.as_slice()) {
        let choices: Vec<String> = allowed
            .iter()
            .map(|choice| format!("\"{choice}\""))
            .collect();
        let rule = format!("must be {}", choices.join(" or "));
        return with_suggestion(Problem::new(path.join("."), rule), name, allowed);
    }
    let expected = message
        .split_once(", expected ")
        .map(|(_, expected)| expected);
    let rule = match expected {
        Some("usize" | "u64" | "u32") => "must be a non-negative integer".to_owned(),
        Some("f64") => "must be a number".to_owned(),
        Some("a boolean") => "must be true or false".to_owned(),
        Some("a sequence") => "must be a list".to_owned(),
        Some("a string" | "path string" | "string or table") => "must be a string".to_owned(),
        Some("an array of length 2") => "must be a list of two numbers".to_owned(),
        Some(expected) => format!("must be {expected}"),
        None => format!("is not allowed: {message}"),
    };
    let key = path.join(".");
    let hint = match (find(table, &key), expected) {
        (Some(Value::Table(_)), Some("a sequence")) => {
            Some(format!("write [[{key}]], with double brackets"))
        }
        (
            Some(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_))),
            Some("a string"),
        ) => Some(format!("write {key} = \"{value}\"")),
        (Some(Value::String(text)), Some("usize" | "u64" | "u32" | "f64" | "a boolean"))
            if text.parse::<f64>().is_ok() || text.parse::<bool>().is_ok() =>
        {
            Some("write it without quotes".to_owned())
        }
        _ => None,
    };
    Problem {
        hint,
        ..Problem::new(key, rule)
    }
}

fn first_words(message: &str) -> &str {
    message.split(" `").next().unwrap_or(message)
}

fn with_suggestion(problem: Problem, written: &str, allowed: &[&str]) -> Problem {
    let distance = |known: &&&str| strsim::damerau_levenshtein(written, known);
    match allowed.iter().min_by_key(distance) {
        Some(nearest) if distance(&nearest) <= written.len().max(nearest.len()) / 3 => {
            problem.hint(format!("did you mean `{nearest}`?"))
        }
        _ => problem,
    }
}

/// Adds to a problem where its key was set, and its value.
fn locate(problem: Problem, file: PathBuf, text: &str, table: &Table, set: &[String]) -> KeyError {
    let found = find(table, &problem.key);
    let origin = match found {
        Some(_)
            if set
                .iter()
                .any(|path| leads_to(path, &problem.key) || leads_to(&problem.key, path)) =>
        {
            ValueOrigin::Set
        }
        Some(_) => ValueOrigin::File,
        None if problem.value.is_some() => ValueOrigin::Default,
        None => ValueOrigin::File,
    };
    let shown = found
        .filter(|value| !contains_table(value))
        .map(Value::to_string);
    let value = shown.filter(|value| value.len() <= LONGEST_SHOWN_VALUE);
    let value = value.or(problem.value.filter(|_| found.is_none()));
    let line = line_of(text, &problem.key);
    KeyError {
        file,
        line,
        key: problem.key,
        value,
        origin,
        rule: problem.rule,
        hint: problem.hint,
        source: problem.source,
    }
}

fn contains_table(value: &Value) -> bool {
    value.is_table()
        || value
            .as_array()
            .is_some_and(|items| items.iter().any(contains_table))
}

fn leads_to(path: &str, key: &str) -> bool {
    key.strip_prefix(path)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

pub(super) fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let mut keys = key.split('.');
    let first = table.get(keys.next()?)?;
    keys.try_fold(first, |value, key| match value {
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        value => value.get(key),
    })
}

/// The line of a key, or of the innermost enclosing table that the file contains.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut deepest = None;
    let mut value: Option<&Spanned<DeValue>> = None;
    for key in key.split('.') {
        let table = match value.map(Spanned::get_ref) {
            None => Some(document.get_ref()),
            Some(DeValue::Table(table)) => Some(table),
            Some(DeValue::Array(items)) => {
                let Some(item) = key.parse().ok().and_then(|index: usize| items.get(index)) else {
                    break;
                };
                deepest = Some(item.span().start);
                value = Some(item);
                continue;
            }
            Some(_) => None,
        };
        let entry = table.and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key));
        let Some((name, below)) = entry else { break };
        deepest = Some(name.span().start);
        value = Some(below);
    }
    deepest.map(|start| line_at(text, start))
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_key_or_of_its_nearest_table() {
        let text = "[a]\nb = 1\n\n[[c.d]]\ne = 2\n[[c.d]]\ne = 3\n";
        assert_eq!(line_of(text, "a.b"), Some(2));
        assert_eq!(line_of(text, "a.missing"), Some(1));
        assert_eq!(line_of(text, "c.d.1.e"), Some(7));
        assert_eq!(line_of(text, "c.d.1.missing"), Some(6));
        assert_eq!(line_of(text, "missing"), None);
    }
}
