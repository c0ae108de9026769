//! The file of a study.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Equal, Study, StudyError, Variant};

/// As it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStudy {
    config: PathBuf,
    #[serde(default)]
    set: Vec<String>,
    seeds: Vec<u64>,
    seconds: Option<f64>,
    tokens: Option<u64>,
    flops: Option<f64>,
    variant: Vec<RawVariant>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVariant {
    name: String,
    #[serde(default)]
    set: Vec<String>,
}

/// Keys that a study decides.
const DECIDED: [&str; 2] = ["train.seed", "train.steps"];

/// Reads a study's TOML file; `equal` takes the place of what the file says.
///
/// # Errors
///
/// When it cannot be read, has an unknown or wrong key, or fewer than two variants.
pub fn load(path: &Path, equal: Option<Equal>) -> Result<Study, StudyError> {
    let fault = |what: String, hint: Option<&str>| StudyError::File {
        file: path.to_owned(),
        what,
        hint: hint.map(str::to_owned),
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        let hint = "name a file such as configs/study.toml";
        fault(format!("cannot read the study: {error}"), Some(hint))
    })?;
    let raw: RawStudy = toml::from_str(&text).map_err(|error| {
        let before = error.span().map_or("", |span| &text[..span.start]);
        let line = before.matches('\n').count() + 1;
        let what = error.message().trim().replace('\n', ", ");
        let hint = "configs/study.toml explains the keys";
        fault(format!("line {line}: {what}"), Some(hint))
    })?;
    let of_file = [
        raw.seconds.map(Equal::Seconds),
        raw.tokens.map(Equal::Tokens),
        raw.flops.map(Equal::Flops),
    ];
    let mut of_file = of_file.into_iter().flatten();
    let equal = match (equal, of_file.next(), of_file.next()) {
        (Some(equal), ..) | (None, Some(equal), None) => equal,
        _ => {
            let what = "needs one of seconds, tokens and flops: what is the same for all variants";
            return Err(fault(what.to_owned(), None));
        }
    };
    let (key, value) = equal.key_and_value();
    if !(value > 0.0 && value.is_finite()) {
        return Err(fault(format!("{key} = {value}: must be above 0"), None));
    }
    let mut seen = HashSet::new();
    if raw.seeds.is_empty() || !raw.seeds.iter().all(|seed| seen.insert(seed)) {
        let what = format!(
            "seeds = {:?}: must be one or more different numbers",
            raw.seeds
        );
        return Err(fault(
            what,
            Some("three seeds are the least that say how sure a difference is"),
        ));
    }
    if raw.variant.len() < 2 {
        let what = "needs at least two variants";
        return Err(fault(
            what.to_owned(),
            Some("write a [[variant]] for each, the first one to compare the others with"),
        ));
    }
    let mut seen = HashSet::new();
    for RawVariant { name, .. } in &raw.variant {
        let is_plain =
            |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
            let what = format!(
                "variant {name:?}: a name has letters, digits, -, _ and ., since folders have it, too"
            );
            return Err(fault(what, None));
        }
        if !seen.insert(name) {
            return Err(fault(format!("two variants are named {name:?}"), None));
        }
    }
    let sets = raw.variant.iter().map(|variant| &variant.set);
    for set in sets.chain([&raw.set]).flatten() {
        let key = set.split('=').next().unwrap_or_default().trim();
        if DECIDED.contains(&key) {
            let what = format!("set = {set:?}: the study itself decides {key}");
            return Err(fault(what, Some("use seeds, and seconds, tokens or flops")));
        }
    }
    let variants = raw
        .variant
        .into_iter()
        .map(|RawVariant { name, set }| Variant { name, set });
    Ok(Study {
        config: raw.config,
        set: raw.set,
        seeds: raw.seeds,
        equal,
        variants: variants.collect(),
    })
}

impl Equal {
    /// As the file has it.
    pub(super) fn key_and_value(self) -> (&'static str, f64) {
        match self {
            Self::Seconds(seconds) => ("seconds", seconds),
            Self::Tokens(tokens) => ("tokens", tokens as f64),
            Self::Flops(flops) => ("flops", flops),
        }
    }
}
