//! From the vocabulary of a GGUF file to a tokenizer.

use serde_json::{Map, Value, json};

use super::super::folder::Companions;
use super::super::{Tokenizer, TokenizerError, byte_level, parse};
use super::splitting::Splitting;
use super::{GgmlVocabulary, characters, kind};

impl Tokenizer {
    /// The tokenizer of the vocabulary of a GGUF file. Of `eos_ids` the first ends a document, and each of them ends generated text.
    ///
    /// # Errors
    ///
    /// When Firebox does not know the vocabulary's model or way of splitting text, or it contradicts itself.
    pub fn from_ggml(vocabulary: &GgmlVocabulary, eos_ids: &[u32]) -> Result<Self, TokenizerError> {
        let refused = |reason: String| TokenizerError::GgmlUnread { reason };
        let json = json_of(vocabulary).map_err(refused)?.to_string();
        let inner = parse(&json).map_err(|error| refused(error.to_string()))?;
        let [first, ..] = eos_ids else {
            return Err(refused(
                "it does not say which token ends a text".to_owned(),
            ));
        };
        if inner.id_to_token(*first).is_none() {
            return Err(refused(format!(
                "it has no token with id {first}, which ends a text"
            )));
        }
        let mut tokenizer = Self::new(inner, Some(&json), *first)?;
        for id in eos_ids {
            if !tokenizer.eos_ids.contains(id) {
                tokenizer.eos_ids.push(*id);
            }
        }
        if let Some(template) = &vocabulary.chat_template {
            tokenizer.companions = Companions::of_template(template);
        }
        Ok(tokenizer)
    }
}

/// The tokenizer.json.
fn json_of(vocabulary: &GgmlVocabulary) -> Result<Value, String> {
    let (tokens, added) = tokens(vocabulary)?;
    let mut json = match vocabulary.model.as_str() {
        "gpt2" => of_bytes(vocabulary, &tokens)?,
        "llama" => {
            let leading = vocabulary.add_space.unwrap_or(true);
            json!({
                "normalizer": characters::normalizer(leading),
                "pre_tokenizer": null,
                "post_processor": post_processor(vocabulary, true)?,
                "decoder": characters::decoder(leading),
                "model": characters::model(vocabulary, &tokens)?,
            })
        }
        other => {
            return Err(format!(
                "its model is {other:?}; Firebox reads gpt2 and llama"
            ));
        }
    };
    json["version"] = json!("1.0");
    json["added_tokens"] = json!(added);
    Ok(json)
}

/// That of a vocabulary of bytes, which are merged in the order of a list.
fn of_bytes(vocabulary: &GgmlVocabulary, tokens: &Map<String, Value>) -> Result<Value, String> {
    let splitting = Splitting::named(&vocabulary.pre).ok_or_else(|| {
        format!(
            "it splits text as {:?}; Firebox knows {}",
            vocabulary.pre,
            Splitting::names().join(", ")
        )
    })?;
    let pre_tokenizer = match vocabulary.merges.is_empty() && !splitting.ignore_merges {
        // However text is split, each byte is a token.
        true => byte_level::byte_level(false),
        false => splitting.to_json(),
    };
    let nfc = vocabulary.nfc.unwrap_or(splitting.nfc);
    Ok(json!({
        "normalizer": nfc.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(vocabulary, splitting.add_bos)?,
        "decoder": byte_level::byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": splitting.ignore_merges, "vocab": tokens, "merges": vocabulary.merges,
        },
    }))
}

/// What puts a token before each text, if one is put there; `usual` where the file does not say.
fn post_processor(vocabulary: &GgmlVocabulary, usual: bool) -> Result<Value, String> {
    let add_bos = vocabulary.add_bos.unwrap_or(usual);
    match vocabulary.bos_id.filter(|_| add_bos) {
        None => Ok(Value::Null),
        Some(id) => begin_with(id, vocabulary),
    }
}

/// The ids by their tokens, and those tokens that are not pieces of text.
fn tokens(vocabulary: &GgmlVocabulary) -> Result<(Map<String, Value>, Vec<Value>), String> {
    let count = vocabulary.tokens.len();
    if !vocabulary.kinds.is_empty() && vocabulary.kinds.len() != count {
        return Err(format!(
            "it has {count} tokens and {} kinds of them",
            vocabulary.kinds.len()
        ));
    }
    let (mut tokens, mut added) = (Map::new(), Vec::new());
    for (id, text) in vocabulary.tokens.iter().enumerate() {
        let kind = vocabulary.kinds.get(id).copied().unwrap_or(kind::NORMAL);
        match kind {
            kind::NORMAL | kind::BYTE => {}
            kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED => added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != kind::USER_DEFINED,
            })),
            kind::UNUSED => continue,
            other => return Err(format!("its token {text:?} is of the kind {other}")),
        }
        if tokens.insert(text.clone(), json!(id)).is_some() {
            return Err(format!("two of its tokens are {text:?}"));
        }
    }
    Ok((tokens, added))
}

/// What puts a token before each text.
fn begin_with(id: u32, vocabulary: &GgmlVocabulary) -> Result<Value, String> {
    let token = vocabulary.tokens.get(id as usize);
    let token =
        token.ok_or_else(|| format!("it has no token with id {id}, which begins a text"))?;
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let tokens: Map<String, Value> = Map::from_iter([(
        token.clone(),
        json!({ "id": token, "ids": [id], "tokens": [token] }),
    )]);
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [special, text("A")],
        "pair": [special, text("A"), text("B")],
        "special_tokens": tokens,
    }))
}
