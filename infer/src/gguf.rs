//! The tokenizer of a checkpoint, beside its weights: a tokenizer.json in a folder, or a part of a GGUF file's metadata.

use std::collections::BTreeMap;
use std::path::Path;

use firebox_checkpoint::{CheckpointError, GgufValue, gguf_metadata, is_gguf};
use firebox_text::{GgmlVocabulary, TOKENIZER_FILE, Tokenizer};

use crate::InferError;

/// How tokens are found; `none` in a file without a tokenizer.
const MODEL: &str = "tokenizer.ggml.model";
const NO_TOKENIZER: [&str; 2] = ["none", "no_vocab"];
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
const TEMPLATE: &str = "tokenizer.chat_template";
/// The token that ends a document, and further ones that end a text.
const EOS: [&str; 3] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];
/// Firebox's own.
const NFC: &str = "firebox.tokenizer_nfc";

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
    let keys = Keys { path, metadata };
    let text = |key| keys.read(key, "a text", |value| value.as_text().map(str::to_owned));
    let texts = |key| {
        keys.read(key, "a list of texts", |value| {
            value.as_texts().map(<[_]>::to_vec)
        })
    };
    let flag = |key| keys.read(key, "a truth value", GgufValue::as_bool);
    let numbers = |key| {
        keys.read(key, "a list of finite numbers", |value| {
            let numbers = value.as_numbers()?;
            let finite = numbers.map(|number| number.as_f64().filter(|number| number.is_finite()));
            finite.collect::<Option<Vec<f64>>>()
        })
    };
    let id = |value: &GgufValue| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let Some(model) = text(MODEL)?.filter(|model| !NO_TOKENIZER.contains(&model.as_str())) else {
        return Ok(None);
    };
    let kinds = numbers(KINDS)?.unwrap_or_default().into_iter();
    let scores = numbers(SCORES)?.unwrap_or_default().into_iter();
    Ok(Some(GgmlVocabulary {
        model,
        pre: text(PRE)?.unwrap_or_default(),
        tokens: texts(TOKENS)?.unwrap_or_default(),
        kinds: kinds.map(|kind| kind as i32).collect(),
        scores: scores.map(|score| score as f32).collect(),
        merges: texts(MERGES)?.unwrap_or_default(),
        bos_id: keys.read(BOS, "the id of a token", id)?,
        add_bos: flag(ADD_BOS)?,
        add_space: flag(ADD_SPACE)?,
        nfc: flag(NFC)?,
        chat_template: text(TEMPLATE)?,
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
        None => all.push((MODEL, GgufValue::text(NO_TOKENIZER[0]))),
        Some(vocabulary) => {
            all.push((MODEL, GgufValue::text(&vocabulary.model)));
            all.push((PRE, GgufValue::text(&vocabulary.pre)));
            all.push((TOKENS, GgufValue::Texts(vocabulary.tokens.clone())));
            all.push((KINDS, GgufValue::integers(&vocabulary.kinds)));
            all.push((MERGES, GgufValue::Texts(vocabulary.merges.clone())));
            // An empty text begins with the end of the one before, and llama.cpp would take any id otherwise.
            let bos = vocabulary.bos_id.or(eos_ids.first().copied());
            all.extend(bos.map(|id| (BOS, GgufValue::size(id as usize))));
            all.extend(
                vocabulary
                    .add_bos
                    .map(|add| (ADD_BOS, GgufValue::flag(add))),
            );
            all.push(("tokenizer.ggml.add_eos_token", GgufValue::flag(false)));
            all.extend(vocabulary.nfc.map(|nfc| (NFC, GgufValue::flag(nfc))));
            let template = vocabulary.chat_template.as_ref();
            all.extend(template.map(|template| (TEMPLATE, GgufValue::text(template))));
        }
    }
    if let Some(beyond) = eos_ids.get(EOS.len()..).filter(|ids| !ids.is_empty()) {
        let ids = beyond.iter().map(u32::to_string).collect::<Vec<_>>();
        tracing::warn!(
            "a GGUF file has places for {} ids that end a text; these do not end one there: {}",
            EOS.len(),
            ids.join(", ")
        );
    }
    let ends = EOS.into_iter().zip(eos_ids);
    all.extend(ends.map(|(key, &id)| (key, GgufValue::size(id as usize))));
    all.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
