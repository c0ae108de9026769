//! `--set dotted.path=value`: overrides one value of a parsed file.

use toml::{Table, Value};

use super::ConfigError;

/// Sets one value of `table` and returns its dotted path.
///
/// The value is TOML. A value that is not TOML is used as a string, so that `data.source.0.url=../text.txt` needs no
/// quotes. Missing tables are created; list items must exist.
///
/// # Errors
///
/// When the argument has no `=` or no path, when the value starts like a TOML list, table or string but is not valid,
/// or when the path leads through a single value or a missing list item.
pub(super) fn apply(table: &mut Table, argument: &str) -> Result<String, ConfigError> {
    let error = |problem: String, hint: String| ConfigError::Override {
        argument: argument.into(),
        problem,
        hint,
    };
    let example = || "write it as dotted.path=value, such as train.steps=200".to_owned();
    let Some((path, text)) = argument.split_once('=') else {
        return Err(error("`=` is missing".into(), example()));
    };
    let path = path.trim();
    let mut keys: Vec<&str> = path.split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(error(format!("`{path}` is not a dotted path"), example()));
    }
    let value = parse(text.trim()).map_err(|problem| {
        let hint = "a value is TOML, such as 3, 0.5, true, [\"a\", \"b\"] or \"text\"; \
                    inside a shell, put single quotes around the whole argument";
        error(problem, hint.into())
    })?;
    let Some(last) = keys.pop() else {
        return Err(error("has an empty path".into(), example()));
    };

    let mut walked = String::new();
    let mut container = Container::Table(table);
    for key in keys {
        let value = container
            .enter(key)
            .map_err(|(problem, hint)| error(format!("{walked}{problem}"), hint))?;
        walked = if walked.is_empty() {
            key.to_owned()
        } else {
            format!("{walked}.{key}")
        };
        container = match value {
            Value::Table(table) => Container::Table(table),
            Value::Array(items) => Container::List(items),
            _ => {
                let problem = format!("{walked} is neither a table nor a list");
                return Err(error(
                    problem,
                    format!("set {walked} itself: {walked}=VALUE"),
                ));
            }
        };
    }
    *container
        .enter(last)
        .map_err(|(problem, hint)| error(format!("{walked}{problem}"), hint))? = value;
    Ok(path.to_owned())
}

enum Container<'a> {
    Table(&'a mut Table),
    List(&'a mut Vec<Value>),
}

impl<'a> Container<'a> {
    /// The value of `key`; a table without this key gets an empty table.
    fn enter(self, key: &str) -> Result<&'a mut Value, (String, String)> {
        match self {
            Self::Table(table) => Ok(table
                .entry(key)
                .or_insert_with(|| Value::Table(Table::new()))),
            Self::List(items) => {
                let count = items.len();
                let item = key
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get_mut(index));
                item.ok_or_else(|| {
                    let plural = if count == 1 { "item" } else { "items" };
                    let allowed = match count {
                        0 => "add an item to the file first".to_owned(),
                        1 => "the only valid index is 0".to_owned(),
                        _ => format!("valid indices are 0 to {}", count - 1),
                    };
                    (
                        format!(" has {count} {plural}; `{key}` is not a valid index"),
                        allowed,
                    )
                })
            }
        }
    }
}

fn parse(text: &str) -> Result<Value, String> {
    // Parsed as a document of one key, so that the value must end where the text ends.
    let parsed = format!("value = {text}").parse::<Table>();
    match parsed {
        Ok(mut table) if table.len() == 1 => table
            .remove("value")
            .ok_or_else(|| "the value is missing".to_owned()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("`{text}` is not valid TOML: {}", error.message()))
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}
