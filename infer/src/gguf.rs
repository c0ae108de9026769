//! The tokenizer of a checkpoint, beside its weights: a tokenizer.json in a folder, or a part of a GGUF file's metadata.

use std::collections::BTreeMap;
use std::path::Path;

use firebox_checkpoint::{GgufValue, gguf_metadata, is_gguf};
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
        let vocabulary = vocabulary(&gguf_metadata(place)?);
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
fn vocabulary(metadata: &BTreeMap<String, GgufValue>) -> Option<GgmlVocabulary> {
    let text = |key: &str| {
        metadata
            .get(key)
            .and_then(GgufValue::as_text)
            .map(str::to_owned)
    };
    let texts = |key: &str| {
        metadata
            .get(key)
            .and_then(GgufValue::as_texts)
            .unwrap_or_default()
    };
    let flag = |key: &str| metadata.get(key).and_then(GgufValue::as_bool);
    let model = text(MODEL).filter(|model| !NO_TOKENIZER.contains(&model.as_str()))?;
    let numbers = |key: &str| metadata.get(key).and_then(GgufValue::as_numbers);
    let kinds = numbers(KINDS).into_iter().flatten();
    let scores = numbers(SCORES).into_iter().flatten();
    let bos = metadata.get(BOS).and_then(GgufValue::as_u64);
    Some(GgmlVocabulary {
        model,
        pre: text(PRE).unwrap_or_default(),
        tokens: texts(TOKENS).to_vec(),
        kinds: kinds
            .map(|kind| kind.as_f64().map_or(0, |kind| kind as i32))
            .collect(),
        scores: scores
            .map(|score| score.as_f64().unwrap_or(0.0) as f32)
            .collect(),
        merges: texts(MERGES).to_vec(),
        bos_id: bos.and_then(|id| u32::try_from(id).ok()),
        add_bos: flag(ADD_BOS),
        add_space: flag(ADD_SPACE),
        nfc: flag(NFC),
        chat_template: text(TEMPLATE),
    })
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
    let ends = EOS.into_iter().zip(eos_ids);
    all.extend(ends.map(|(key, &id)| (key, GgufValue::size(id as usize))));
    all.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
