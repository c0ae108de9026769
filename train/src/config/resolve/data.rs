//! Resolves `[data]`: sources, repetitions and the validation split.

use super::{Checked, above_zero, without_effect};
use crate::config::error::Problem;
use crate::config::raw::{RawData, RawSource};
use crate::config::{
    DataConfig, OnError, Share, SourceConfig, SourceKind, SplitKind, ValidationConfig,
};

pub(super) fn data(raw: RawData) -> Checked<DataConfig> {
    if raw
        .cache
        .as_ref()
        .is_some_and(|path| path.as_os_str().is_empty())
    {
        return Err(Problem::new("data.cache", "must not be empty")
            .hint("remove it to use the user's cache folder"));
    }
    let fraction = raw.validation.fraction.unwrap_or(0.01);
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(
            Problem::new("data.validation.fraction", "must be above 0 and below 1")
                .hint("0.01 holds out 1 %"),
        );
    }
    let validation = ValidationConfig {
        fraction,
        by: raw.validation.by.unwrap_or(SplitKind::Hash),
    };
    if raw.source.is_empty() {
        return Err(
            Problem::new("data.source", "must have at least one item").hint("add [[data.source]]")
        );
    }
    let weighted = raw.source.iter().any(|source| source.weight.is_some());
    let mut sources: Vec<SourceConfig> = Vec::with_capacity(raw.source.len());
    for (index, raw) in raw.source.into_iter().enumerate() {
        let source = source(raw, weighted, &|key| format!("data.source.{index}.{key}"))?;
        if let Some(first) = sources
            .iter()
            .position(|earlier| earlier.name == source.name)
        {
            let rule = format!("must be unique, but data.source.{first} has the same name");
            return Err(Problem::new(format!("data.source.{index}.name"), rule));
        }
        sources.push(source);
    }
    Ok(DataConfig {
        cache: raw.cache,
        special_tokens: raw.special_tokens.unwrap_or(false),
        validation,
        source: sources,
    })
}

fn source(raw: RawSource, weighted: bool, key: &dyn Fn(&str) -> String) -> Checked<SourceConfig> {
    if raw.name.trim().is_empty() {
        return Err(Problem::new(key("name"), "must not be empty"));
    }
    let kinds = [
        ("files", raw.files.is_some()),
        ("cargo", raw.cargo.is_some()),
        ("jsonl", raw.jsonl.is_some()),
        ("url", raw.url.is_some()),
    ];
    let given: Vec<&str> = kinds
        .iter()
        .filter(|(_, given)| *given)
        .map(|(kind, _)| *kind)
        .collect();
    if given.len() != 1 {
        let item = key("");
        let item = item.trim_end_matches('.').to_owned();
        let has = if given.is_empty() {
            "none".to_owned()
        } else {
            given.join(" and ")
        };
        let rule = format!("must have exactly one of files, cargo, jsonl and url, but has {has}");
        return Err(Problem::new(item, rule).hint("write one [[data.source]] for each"));
    }
    let unused = |given: bool, name: &str, condition: &str| {
        if given {
            Err(without_effect(key(name), condition).hint("remove it"))
        } else {
            Ok(())
        }
    };
    unused(
        raw.sha256.is_some() && raw.url.is_none(),
        "sha256",
        "without url",
    )?;
    unused(
        raw.field.is_some() && raw.jsonl.is_none(),
        "field",
        "without jsonl",
    )?;
    unused(
        raw.max_bytes.is_some() && raw.url.is_some(),
        "max_bytes",
        "with url, which is a single document",
    )?;
    if raw.max_bytes == Some(0) {
        return Err(
            Problem::new(key("max_bytes"), "must be at least 1").hint("remove it for no limit")
        );
    }
    let share = share(raw.epochs, raw.weight, weighted, key)?;
    let kind = match (raw.files, raw.cargo, raw.jsonl, raw.url) {
        (Some(files), ..) => SourceKind::Files {
            files: filled(key("files"), files)?,
        },
        (_, Some(cargo), ..) => SourceKind::Cargo {
            cargo: extensions(key("cargo"), cargo)?,
        },
        (_, _, Some(jsonl), _) => SourceKind::Jsonl {
            jsonl: filled(key("jsonl"), jsonl)?,
            field: raw.field.unwrap_or_else(|| "text".to_owned()),
        },
        (.., url) => {
            let url = url.filter(|url| !url.trim().is_empty());
            let url = url.ok_or_else(|| Problem::new(key("url"), "must not be empty"))?;
            SourceKind::Url {
                url,
                sha256: digest(key("sha256"), raw.sha256)?,
            }
        }
    };
    let on_error = raw.on_error.unwrap_or(OnError::Fail);
    Ok(SourceConfig {
        name: raw.name,
        kind,
        share,
        max_bytes: raw.max_bytes,
        on_error,
    })
}

fn share(
    epochs: Option<u32>,
    weight: Option<f64>,
    weighted: bool,
    key: &dyn Fn(&str) -> String,
) -> Checked<Share> {
    let mixed = "set epochs for every source, or weight for every source";
    match (epochs, weight) {
        (Some(_), Some(_)) => {
            Err(without_effect(key("epochs"), "together with weight").hint(mixed))
        }
        (Some(_), None) if weighted => Err(Problem::new(
            key("epochs"),
            "must not be set, because other sources have a weight",
        )
        .hint(mixed)),
        (None, None) if weighted => {
            Err(Problem::new(key("weight"), "is missing, but other sources have one").hint(mixed))
        }
        (Some(0), None) => Err(Problem::new(key("epochs"), "must be at least 1")
            .hint("to exclude the source, remove it")),
        (Some(epochs), None) => Ok(Share::Epochs(epochs)),
        (None, Some(weight)) => {
            above_zero(key("weight"), weight)?;
            Ok(Share::Weight(weight))
        }
        (None, None) => Ok(Share::Epochs(1)),
    }
}

fn filled(key: String, values: Vec<String>) -> Checked<Vec<String>> {
    if values.is_empty() || values.iter().any(|value| value.trim().is_empty()) {
        return Err(Problem::new(
            key,
            "must be a list of one or more non-empty patterns",
        ));
    }
    Ok(values)
}

fn extensions(key: String, values: Vec<String>) -> Checked<Vec<String>> {
    let plain =
        |value: &String| !value.is_empty() && value.chars().all(|letter| letter.is_alphanumeric());
    if values.is_empty() || !values.iter().all(plain) {
        let rule = "must be a list of one or more file extensions without dots";
        return Err(
            Problem::new(key, rule).hint("for example cargo = [\"rs\"] or cargo = [\"md\"]")
        );
    }
    Ok(values)
}

fn digest(key: String, value: Option<String>) -> Checked<String> {
    let hint = "`sha256sum FILE` prints it";
    let value =
        value.ok_or_else(|| Problem::new(&key, "is missing, but url requires it").hint(hint))?;
    if value.len() != 64 || !value.chars().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(Problem::new(key, "must be 64 hexadecimal digits").hint(hint));
    }
    Ok(value.to_ascii_lowercase())
}
