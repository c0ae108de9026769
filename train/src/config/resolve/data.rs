//! Resolves `[data]`: sources, repetitions and the validation split.

use super::{Checked, above_zero, without_effect};
use crate::config::error::Problem;
use crate::config::raw::{RawCargo, RawData, RawSource, RawValidation};
use crate::config::{
    DataConfig, EMOJI_PACKAGE, OnError, PicturesConfig, Share, SourceConfig, SourceKind, Split,
    SplitKind, TokenizerConfig, TrainingSource, ValidationConfig,
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
    if raw.source.is_empty() {
        return Err(
            Problem::new("data.source", "must have at least one item").hint("add [[data.source]]")
        );
    }
    let weighted = raw.source.iter().any(|source| source.weight.is_some());
    let mut sources: Vec<TrainingSource> = Vec::with_capacity(raw.source.len());
    let mut names = Names::default();
    for (index, raw) in raw.source.into_iter().enumerate() {
        let item = format!("data.source.{index}");
        names.add(&item, &raw.name)?;
        let key = |key: &str| format!("{item}.{key}");
        let share = share(raw.epochs, raw.weight, weighted, &key)?;
        let text = source(raw, &item)?;
        sources.push(TrainingSource { text, share });
    }
    let validation = validation(raw.validation, &mut names)?;
    let captions = sources
        .iter()
        .find(|source| source.text.kind.has_pictures());
    if let Some(source) = captions.filter(|_| validation.split.by == Some(SplitKind::Tail)) {
        let rule = format!(
            "must be \"hash\", because the documents of source {:?} are captions of pictures, which are held out whole",
            source.text.name
        );
        return Err(Problem::new("data.validation.by", rule));
    }
    let is_tokens = |source: &&TrainingSource| source.text.kind.is_tokens();
    if let Some(source) = sources.iter().find(is_tokens)
        && validation.split.by == Some(SplitKind::Tail)
    {
        let rule = format!(
            "must be \"hash\", because the documents of source {:?} are tokens, which are held out whole",
            source.text.name
        );
        return Err(Problem::new("data.validation.by", rule).hint(
            "where the end is in a file of its own, such as val.bin, name it in a [[data.validation.source]]",
        ));
    }
    Ok(DataConfig {
        pictures: PicturesConfig {
            shift: raw.pictures.shift.unwrap_or(0),
            withheld: raw.pictures.withheld.unwrap_or(0.0),
        },
        cache: raw.cache,
        special_tokens: raw.special_tokens.unwrap_or(false),
        document_mask: raw.document_mask.unwrap_or(true),
        validation,
        source: sources,
    })
}

fn validation(raw: RawValidation, names: &mut Names) -> Checked<ValidationConfig> {
    let key = "data.validation.fraction";
    let own = !raw.source.is_empty();
    let fraction = raw.fraction.unwrap_or(if own { 0.0 } else { 0.01 });
    match own {
        true if !(0.0..1.0).contains(&fraction) => {
            return Err(Problem::new(key, "must be at least 0 and below 1")
                .hint("0 holds out [[data.validation.source]] alone"));
        }
        false if !(fraction > 0.0 && fraction < 1.0) => {
            return Err(Problem::new(key, "must be above 0 and below 1").hint(
                "0.01 holds out 1 %; 0 is allowed with a [[data.validation.source]], which is used for validation only",
            ));
        }
        _ => {}
    }
    let by = match (fraction > 0.0, raw.by) {
        (true, by) => Some(by.unwrap_or(SplitKind::Hash)),
        (false, Some(_)) => {
            return Err(
                without_effect("data.validation.by", "without data.validation.fraction").hint(
                    "remove it, or set a fraction above 0 to hold out text of the training sources as well",
                ),
            );
        }
        (false, None) => None,
    };
    let mut sources = Vec::with_capacity(raw.source.len());
    for (index, raw) in raw.source.into_iter().enumerate() {
        let item = format!("data.validation.source.{index}");
        names.add(&item, &raw.name)?;
        for (name, given) in [
            ("epochs", raw.epochs.is_some()),
            ("weight", raw.weight.is_some()),
        ] {
            unused(
                given,
                format!("{item}.{name}"),
                "in a source that is used for validation only",
            )?;
        }
        sources.push(source(raw, &item)?);
    }
    Ok(ValidationConfig {
        split: Split { fraction, by },
        source: sources,
    })
}

/// The names of sources, which are unique.
#[derive(Default)]
struct Names(Vec<(String, String)>);

impl Names {
    /// Adds the name of a list item.
    fn add(&mut self, item: &str, name: &str) -> Checked<()> {
        let key = format!("{item}.name");
        if name.trim().is_empty() {
            return Err(Problem::new(key, "must not be empty"));
        }
        if let Some((first, _)) = self.0.iter().find(|(_, other)| other == name) {
            let rule = format!("must be unique, but {first} has the same name");
            return Err(Problem::new(key, rule));
        }
        self.0.push((item.to_owned(), name.to_owned()));
        Ok(())
    }
}

fn unused(given: bool, key: String, condition: &str) -> Checked<()> {
    if given {
        Err(without_effect(key, condition).hint("remove it"))
    } else {
        Ok(())
    }
}

/// Resolves the documents of a list item.
fn source(raw: RawSource, item: &str) -> Checked<SourceConfig> {
    let key = |key: &str| format!("{item}.{key}");
    let kinds = [
        ("files", raw.files.is_some()),
        ("cargo", raw.cargo.is_some()),
        ("jsonl", raw.jsonl.is_some()),
        ("parquet", raw.parquet.is_some()),
        ("tokens", raw.tokens.is_some()),
        ("url", raw.url.is_some()),
    ];
    let given: Vec<&str> = kinds
        .iter()
        .filter(|(_, given)| *given)
        .map(|(kind, _)| *kind)
        .collect();
    if given.len() != 1 {
        let has = if given.is_empty() {
            "none".to_owned()
        } else {
            given.join(" and ")
        };
        let rule = format!(
            "must have exactly one of files, cargo, jsonl, parquet, tokens and url, but has {has}"
        );
        return Err(
            Problem::new(item, rule).hint(format!("write one [[{}]] for each", list_of(item)))
        );
    }
    unused(
        raw.sha256.is_some() && raw.url.is_none(),
        key("sha256"),
        "without url",
    )?;
    unused(
        raw.field.is_some() && raw.jsonl.is_none() && raw.parquet.is_none(),
        key("field"),
        "without jsonl or parquet",
    )?;
    for (name, given) in [
        ("image", raw.image.is_some()),
        ("concept", raw.concept.is_some()),
    ] {
        unused(given && raw.jsonl.is_none(), key(name), "without jsonl")?;
    }
    unused(
        raw.concept.is_some() && raw.image.is_none(),
        key("concept"),
        "without image",
    )?;
    unused(
        raw.max_bytes.is_some() && raw.url.is_some(),
        key("max_bytes"),
        "with url, which is a single document",
    )?;
    if raw.max_bytes == Some(0) {
        return Err(
            Problem::new(key("max_bytes"), "must be at least 1").hint("remove it for no limit")
        );
    }
    let kind = match (
        raw.files,
        raw.cargo,
        raw.jsonl,
        raw.parquet,
        raw.tokens,
        raw.url,
    ) {
        (Some(files), ..) => SourceKind::Files {
            files: filled(key("files"), files)?,
        },
        (_, Some(RawCargo::Extensions(cargo)), ..) => SourceKind::Cargo {
            cargo: extensions(key("cargo"), cargo)?,
        },
        (_, Some(RawCargo::Package(cargo)), ..) => SourceKind::Emoji {
            cargo: package(key("cargo"), cargo)?,
        },
        (_, _, _, Some(parquet), ..) => SourceKind::Parquet {
            parquet: filled(key("parquet"), parquet)?,
            field: raw.field.unwrap_or_else(|| "text".to_owned()),
        },
        (.., Some(tokens), _) => SourceKind::Tokens {
            tokens: filled(key("tokens"), tokens)?,
        },
        (_, _, Some(jsonl), ..) => {
            let jsonl = filled(key("jsonl"), jsonl)?;
            match raw.image {
                Some(image) => SourceKind::Pairs {
                    jsonl,
                    image,
                    field: raw.field.unwrap_or_else(|| "caption".to_owned()),
                    concept: raw.concept,
                },
                None => SourceKind::Jsonl {
                    jsonl,
                    field: raw.field.unwrap_or_else(|| "text".to_owned()),
                },
            }
        }
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
        max_bytes: raw.max_bytes,
        on_error,
        tiles: None,
    })
}

/// Checks that the ids of token files are those of a tokenizer that existed before the run. `given` is that of the
/// configuration, if any: otherwise it is that of the checkpoint of `train.init`.
pub(super) fn tokens(data: &DataConfig, given: Option<&TokenizerConfig>) -> Checked<()> {
    if matches!(given, None | Some(TokenizerConfig::File { .. })) {
        return Ok(());
    }
    match data.texts().find(|(source, _)| source.kind.is_tokens()) {
        None => Ok(()),
        Some((source, _)) => Err(Problem::new(
            "tokenizer.kind",
            format!(
                "must be \"file\", because source {:?} is tokens, which belong to the tokenizer that made them",
                source.name
            ),
        )
        .hint(
            "for nanoGPT's and llm.c's tokens of GPT-2: kind = \"file\", path = \"tokenizer.json\" (the one of \
             huggingface.co/openai-community/gpt2), end_of_text = \"<|endoftext|>\"",
        )),
    }
}

/// The list that an item belongs to.
fn list_of(item: &str) -> &str {
    item.rsplit_once('.').map_or(item, |(list, _)| list)
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

fn package(key: String, name: String) -> Checked<String> {
    match name == EMOJI_PACKAGE {
        true => Ok(name),
        false => Err(Problem::new(
            key,
            format!("must be \"{EMOJI_PACKAGE}\", or a list of file extensions"),
        )
        .hint("cargo = [\"rs\"] reads the code of all packages")),
    }
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
