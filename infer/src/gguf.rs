//! The tokenizer of a checkpoint, beside its weights: a tokenizer.json in a folder, or a part of a GGUF file's metadata.

use std::collections::BTreeMap;
use std::path::Path;

use firebox_checkpoint::{
    CheckpointError, GgufValue, gguf_metadata, is_gguf, tokenizer_keys as keys,
};
use firebox_text::{GgmlVocabulary, TOKENIZER_FILE, Tokenizer};

use crate::InferError;

/// How tokens are found in a file without a tokenizer.
const NO_TOKENIZER: [&str; 2] = ["none", "no_vocab"];

/// The tokenizer of a checkpoint; `None` if it has none. See [`Tokenizer::load`] for `eos_ids`.
///
/// # Errors
///
/// When it cannot be read.
pub fn open_tokenizer(place: &Path, eos_ids: &[u32]) -> Result<Option<Tokenizer>, InferError> {
    if is_gguf(place) {
        let vocabulary = vocabulary(place, &gguf_metadata(place)?)?;
        let tokenizer = vocabulary.map(|vocabulary| Tokenizer::from_ggml(&vocabulary, eos_ids));
        return Ok(tokenizer.transpose()?);
    }
    let path = place.join(TOKENIZER_FILE);
    match path.exists() {
        true => Ok(Some(Tokenizer::load(&path, eos_ids)?)),
        false => Ok(None),
    }
}

/// The vocabulary in a file's metadata; `None` if it has none.
fn vocabulary(
    path: &Path,
    metadata: &BTreeMap<String, GgufValue>,
) -> Result<Option<GgmlVocabulary>, InferError> {
    let found = Keys { path, metadata };
    let text = |key| found.read(key, "a text", |value| value.as_text().map(str::to_owned));
    let texts = |key| {
        found.read(key, "a list of texts", |value| {
            value.as_texts().map(<[_]>::to_vec)
        })
    };
    let flag = |key| found.read(key, "a truth value", GgufValue::as_bool);
    let numbers = |key| {
        found.read(key, "a list of finite numbers", |value| {
            let numbers = value.as_numbers()?;
            let finite = numbers.map(|number| number.as_f64().filter(|number| number.is_finite()));
            finite.collect::<Option<Vec<f64>>>()
        })
    };
    let id = |value: &GgufValue| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let Some(model) = text(keys::MODEL)?.filter(|model| !NO_TOKENIZER.contains(&model.as_str()))
    else {
        return Ok(None);
    };
    let kinds = numbers(keys::KINDS)?.unwrap_or_default().into_iter();
    let scores = numbers(keys::SCORES)?.unwrap_or_default().into_iter();
    Ok(Some(GgmlVocabulary {
        model,
        pre: text(keys::PRE)?.unwrap_or_default(),
        tokens: texts(keys::TOKENS)?.unwrap_or_default(),
        kinds: kinds.map(|kind| kind as i32).collect(),
        scores: scores.map(|score| score as f32).collect(),
        merges: texts(keys::MERGES)?.unwrap_or_default(),
        bos_id: found.read(keys::BOS, "the id of a token", id)?,
        add_bos: flag(keys::ADD_BOS)?,
        add_space: flag(keys::ADD_SPACE)?,
        nfc: flag(keys::NFC)?,
        chat_template: text(keys::TEMPLATE)?,
    }))
}

/// The metadata of a file.
struct Keys<'a> {
    path: &'a Path,
    metadata: &'a BTreeMap<String, GgufValue>,
}

impl Keys<'_> {
    /// What a key has; `None` if it is absent. Of another type than the one that is allowed, it is an error.
    fn read<T>(
        &self,
        key: &str,
        allowed: &str,
        read: impl Fn(&GgufValue) -> Option<T>,
    ) -> Result<Option<T>, InferError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let value = read(value).ok_or_else(|| CheckpointError::Damaged {
            path: self.path.to_owned(),
            reason: format!("{key} must be {allowed}"),
        });
        Ok(Some(value?))
    }
}

/// The metadata of a tokenizer, with these ids that end a text; without one, llama.cpp takes ids alone.
pub fn tokenizer_metadata(
    vocabulary: Option<&GgmlVocabulary>,
    eos_ids: &[u32],
) -> Vec<(String, GgufValue)> {
    let mut all: Vec<(&str, GgufValue)> = Vec::new();
    match vocabulary {
        None => all.push((keys::MODEL, GgufValue::text(NO_TOKENIZER[0]))),
        Some(vocabulary) => {
            all.push((keys::MODEL, GgufValue::text(&vocabulary.model)));
            all.push((keys::PRE, GgufValue::text(&vocabulary.pre)));
            all.push((keys::TOKENS, GgufValue::Texts(vocabulary.tokens.clone())));
            all.push((keys::KINDS, GgufValue::integers(&vocabulary.kinds)));
            all.push((keys::MERGES, GgufValue::Texts(vocabulary.merges.clone())));
            // An empty text begins with the end of the one before, and llama.cpp would take any id otherwise.
            let bos = vocabulary.bos_id.or(eos_ids.first().copied());
            all.extend(bos.map(|id| (keys::BOS, GgufValue::size(id as usize))));
            all.extend(
                vocabulary
                    .add_bos
                    .map(|add| (keys::ADD_BOS, GgufValue::flag(add))),
            );
            all.push((keys::ADD_EOS, GgufValue::flag(false)));
            all.extend(vocabulary.nfc.map(|nfc| (keys::NFC, GgufValue::flag(nfc))));
            let template = vocabulary.chat_template.as_ref();
            all.extend(template.map(|template| (keys::TEMPLATE, GgufValue::text(template))));
        }
    }
    if let Some(beyond) = eos_ids.get(keys::EOS.len()..).filter(|ids| !ids.is_empty()) {
        let ids = beyond.iter().map(u32::to_string).collect::<Vec<_>>();
        tracing::warn!(
            "a GGUF file has places for {} ids that end a text; these do not end one there: {}",
            keys::EOS.len(),
            ids.join(", ")
        );
    }
    let ends = keys::EOS.into_iter().zip(eos_ids);
    all.extend(ends.map(|(key, &id)| (key, GgufValue::size(id as usize))));
    all.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
