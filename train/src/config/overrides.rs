//! `--set dotted.path=value`: one value laid over a parsed file.

use toml::{Table, Value};

use super::ConfigError;

/// Sets one value of `table` and gives back the dotted path that was set.
///
/// The value is TOML; what is not TOML is taken as a string, so that `data.source.0.url=../text.txt` needs no
/// quotes. Tables that are missing on the way are made; list items must exist.
///
/// # Errors
///
/// An argument without `=`, with an empty path, with a value that begins like a TOML list, table or string and
/// is none, or with a path that leads through something that is neither table nor list.
pub(super) fn apply(table: &mut Table, argument: &str) -> Result<String, ConfigError> {
    let error = |problem: String, hint: String| ConfigError::Override {
        argument: argument.into(),
        problem,
        hint,
    };
    let example = || "write it as dotted.path=value, such as train.steps=200".to_owned();
    let Some((path, text)) = argument.split_once('=') else {
        return Err(error("has no `=`".into(), example()));
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
    let mut place = Place::Table(table);
    for key in keys {
        let value = place
            .enter(key)
            .map_err(|(problem, hint)| error(format!("{walked}{problem}"), hint))?;
        walked = if walked.is_empty() {
            key.to_owned()
        } else {
            format!("{walked}.{key}")
        };
        place = match value {
            Value::Table(table) => Place::Table(table),
            Value::Array(items) => Place::List(items),
            _ => {
                let problem = format!("{walked} is a single value, neither a table nor a list");
                return Err(error(problem, format!("set it whole: {walked}={{ … }}")));
            }
        };
    }
    *place
        .enter(last)
        .map_err(|(problem, hint)| error(format!("{walked}{problem}"), hint))? = value;
    Ok(path.to_owned())
}

enum Place<'a> {
    Table(&'a mut Table),
    List(&'a mut Vec<Value>),
}

impl<'a> Place<'a> {
    /// The value below `key`; an empty table where a table has none.
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
                        0 => "add one to the file first".to_owned(),
                        1 => "0 is allowed".to_owned(),
                        _ => format!("0 to {} are allowed", count - 1),
                    };
                    (
                        format!(" is a list of {count} {plural} and `{key}` is none of them"),
                        allowed,
                    )
                })
            }
        }
    }
}

fn parse(text: &str) -> Result<Value, String> {
    // A whole document of one key, so that the value ends where the text ends.
    let parsed = format!("value = {text}").parse::<Table>();
    match parsed {
        Ok(mut table) if table.len() == 1 => table
            .remove("value")
            .ok_or_else(|| "has no value".to_owned()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("`{text}` is not valid TOML: {}", error.message()))
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}
