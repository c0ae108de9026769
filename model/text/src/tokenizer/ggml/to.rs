//! From a tokenizer to the vocabulary of a GGUF file.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::{Tokenizer, TokenizerError, byte_level};
use super::splitting::Splitting;
use super::{GgmlVocabulary, kind};

impl Tokenizer {
    /// The vocabulary of a GGUF file, with a token for each of a model's `vocab_size` ids, by which llama.cpp gives the tokens that
    /// this tokenizer gives. A text that is not in Unicode's normalization form C may get others there, if the tokenizer brings
    /// text into that form.
    ///
    /// # Errors
    ///
    /// When llama.cpp has no tokenizer like this one, or it has ids that the model lacks.
    pub fn to_ggml(&self, vocab_size: usize) -> Result<GgmlVocabulary, TokenizerError> {
        let json: Value =
            serde_json::from_str(&self.json).map_err(|error| TokenizerError::Parse {
                path: None,
                message: error.to_string(),
            })?;
        let refused = |reason: String| TokenizerError::Ggml { reason };
        check_model(&json["model"]).map_err(refused)?;
        let nfc = normalizes(&json["normalizer"]).map_err(refused)?;
        let merges = merges(&json["model"]["merges"]).map_err(refused)?;
        let ignore_merges = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let splitting = match merges.is_empty() && !ignore_merges {
            // However text is split, each byte is a token.
            true => Splitting::named("gpt-2"),
            false => Splitting::of(&json["pre_tokenizer"], ignore_merges),
        };
        let splitting = splitting
            .filter(|splitting| splitting.exact)
            .ok_or_else(|| {
                refused(
                    "it splits text in a way that llama.cpp has no name for (pre_tokenizer)"
                        .to_owned(),
                )
            })?;
        if json["decoder"]["type"] != "ByteLevel" {
            return Err(refused(
                "its tokens are not made of bytes (decoder)".to_owned(),
            ));
        }
        let (tokens, kinds) = self.vocabulary(&json, vocab_size).map_err(refused)?;
        let bos_id = match self.bos_ids() {
            [] => None,
            [id] => Some(*id),
            _ => return Err(refused("it begins a text with several tokens".to_owned())),
        };
        Ok(GgmlVocabulary {
            model: "gpt2".to_owned(),
            pre: splitting.names[0].to_owned(),
            tokens,
            kinds,
            scores: Vec::new(),
            merges,
            bos_id,
            add_bos: Some(bos_id.is_some()),
            add_space: None,
            nfc: (nfc != splitting.nfc).then_some(nfc),
            chat_template: self.config(0)?.chat_template,
        })
    }

    /// Whether text is brought into Unicode's normalization form C before it is split.
    pub fn normalizes(&self) -> bool {
        self.inner.get_normalizer().is_some()
    }

    /// The token and the kind of each id.
    fn vocabulary(&self, json: &Value, size: usize) -> Result<(Vec<String>, Vec<i32>), String> {
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; size];
        let mut set = |id: u64, text: &str, kind: i32| -> Result<(), String> {
            let place = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id));
            let Some(place) = place else {
                return Err(format!(
                    "its token {text:?} has the id {id}, and the model {size} ids"
                ));
            };
            *place = Some((text.to_owned(), kind));
            Ok(())
        };
        let vocabulary = json["model"]["vocab"].as_object();
        let vocabulary = vocabulary.ok_or("it has no vocabulary of pieces")?;
        for (text, id) in vocabulary {
            set(id.as_u64().unwrap_or(u64::MAX), text, kind::NORMAL)?;
        }
        for byte in byte_level::characters() {
            if !vocabulary.contains_key(byte.to_string().as_str()) {
                return Err(format!("it has no token for the byte {byte:?}"));
            }
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default();
            for option in ["single_word", "lstrip", "rstrip"] {
                if token[option] == true {
                    return Err(format!(
                        "its token {text:?} takes what is beside it into account ({option})"
                    ));
                }
            }
            let kind = match token["special"] == true {
                true => kind::CONTROL,
                false => kind::USER_DEFINED,
            };
            set(token["id"].as_u64().unwrap_or(u64::MAX), text, kind)?;
        }
        // They are special, whatever the file says.
        for &id in self.bos_ids().iter().chain([&self.eos_id()]) {
            if let Some((_, kind)) = tokens.get_mut(id as usize).and_then(Option::as_mut) {
                *kind = kind::CONTROL;
            }
        }
        let unused = |id: usize| (format!("[PAD{id}]"), kind::UNUSED);
        let all = tokens.into_iter().enumerate();
        let all = all.map(|(id, token)| token.unwrap_or_else(|| unused(id)));
        let (tokens, kinds): (Vec<String>, Vec<i32>) = all.unzip();
        // llama.cpp stops the process at two of the same text.
        let mut seen = BTreeSet::new();
        match tokens
            .iter()
            .find(|token| token.is_empty() || !seen.insert(token.as_str()))
        {
            Some(token) => Err(format!("two of its tokens are {token:?}, or it is empty")),
            None => Ok((tokens, kinds)),
        }
    }
}

/// Whether merges make the tokens, without further rules.
fn check_model(model: &Value) -> Result<(), String> {
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        return Err(format!("its model is {kind}; Firebox writes BPE"));
    }
    if model["byte_fallback"] == true {
        return Err(
            "it is one of characters (byte_fallback), which llama.cpp merges by scores instead of merges"
                .to_owned(),
        );
    }
    for option in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        let value = &model[option];
        if !value.is_null() && *value != "" && *value != 0.0 {
            return Err(format!("{option} = {value}"));
        }
    }
    Ok(())
}

/// Whether a normalizer brings text into form C; it may do nothing else.
fn normalizes(normalizer: &Value) -> Result<bool, String> {
    let steps = match normalizer["type"].as_str() {
        None => return Ok(false),
        Some("Sequence") => normalizer["normalizers"]
            .as_array()
            .cloned()
            .unwrap_or_default(),
        Some(_) => vec![normalizer.clone()],
    };
    match steps.iter().find(|step| step["type"] != "NFC") {
        Some(step) => Err(format!(
            "it changes text before it is split (normalizer {})",
            step["type"]
        )),
        None => Ok(!steps.is_empty()),
    }
}

/// The merges, each once, as pairs with a space between.
fn merges(merges: &Value) -> Result<Vec<String>, String> {
    let written = |merge: &Value| match merge {
        Value::String(pair) => Some(pair.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [left, right] => Some(format!("{} {}", left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    };
    let is_pair = |pair: &String| pair.matches(' ').count() == 1;
    let all = merges.as_array().into_iter().flatten();
    let all: Option<Vec<String>> = all.map(|merge| written(merge).filter(is_pair)).collect();
    let all = all.ok_or("its merges are not pairs of tokens without spaces")?;
    let mut seen = BTreeSet::new();
    match all.iter().find(|pair| !seen.insert(pair.as_str())) {
        Some(pair) => Err(format!("its merge {pair:?} occurs twice")),
        None => Ok(all),
    }
}
