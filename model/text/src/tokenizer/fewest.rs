//! How few tokens a text can have, without encoding it.

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer as Inner};

use super::Tokenizer;
use super::byte_level;

/// What is known of the text that tokens stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// Bytes of the longest token.
    longest: usize,
    /// Whether this is true of ASCII alone, since other characters may be composed before they are encoded.
    ascii: bool,
}

impl Reach {
    /// `None` unless every byte of a text is shown to be in one of its tokens, each of which stands for its own bytes: a token
    /// for what is unknown, one that takes the spaces beside it, or a splitting that removes text could stand for any number.
    pub fn of(inner: &Inner) -> Option<Self> {
        let part = |part: serde_json::Result<Value>| {
            part.expect("a tokenizer's part can be written as JSON")
        };
        let normalizer = inner.get_normalizer().map(serde_json::to_value);
        let ascii = match normalizer.map_or(Value::Null, part)["type"].as_str() {
            None => false,
            Some("NFC" | "NFD" | "NFKC" | "NFKD") => true,
            Some(_) => return None,
        };
        let ModelWrapper::BPE(model) = inner.get_model() else {
            return None;
        };
        let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
        if affixes.iter().any(|affix| affix.is_some()) {
            return None;
        }
        let pre_tokenizer = inner.get_pre_tokenizer().map(serde_json::to_value);
        if !keeps_bytes(&pre_tokenizer.map_or(Value::Null, part)) {
            return None;
        }
        let vocabulary = inner.get_vocab(true);
        if byte_level::characters()
            .iter()
            .any(|c| !vocabulary.contains_key(c.encode_utf8(&mut [0; 4]) as &str))
        {
            return None;
        }
        let added = inner.get_added_tokens_decoder();
        if added.values().any(|token| token.lstrip || token.rstrip) {
            return None;
        }
        // A character is a byte, but in added tokens.
        let longest = vocabulary.keys().map(|token| token.chars().count());
        let longest_added = added.values().map(|token| token.content.len());
        let longest = longest.chain(longest_added).max()?;
        Some(Self { longest, ascii })
    }
}

/// Whether a pre-tokenizer makes characters of bytes, and removes none.
fn keeps_bytes(pre_tokenizer: &Value) -> bool {
    let keeps = |part: &Value| match part["type"].as_str() {
        Some("ByteLevel" | "Digits") => true,
        Some("Split" | "Punctuation") => part["behavior"] != "Removed",
        _ => false,
    };
    let none = Vec::new();
    let parts = match pre_tokenizer["type"].as_str() {
        Some("Sequence") => pre_tokenizer["pretokenizers"].as_array().unwrap_or(&none),
        _ => std::slice::from_ref(pre_tokenizer),
    };
    parts.iter().all(keeps) && parts.iter().any(|part| part["type"] == "ByteLevel")
}

impl Tokenizer {
    /// A number of tokens that a text has at least, found at once: as if all were as long as the longest there is. 0 where
    /// tokens may stand for more than their own text.
    pub fn fewest_tokens(&self, text: &str) -> usize {
        match self.reach {
            Some(reach) if !reach.ascii || text.is_ascii() => text.len().div_ceil(reach.longest),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn trained() -> Tokenizer {
        let text = "the fire is in the box, and the box is in the fire   \n\n".repeat(20);
        Tokenizer::train_bpe([text].into_iter(), 300).unwrap()
    }

    /// The trained tokenizer, with something else in its file.
    fn with(key: &str, value: &Value) -> Tokenizer {
        let mut json: Value = serde_json::from_str(trained().to_json()).unwrap();
        *json.pointer_mut(key).unwrap() = value.clone();
        Tokenizer::from_bytes(json.to_string().as_bytes(), super::super::END_OF_TEXT).unwrap()
    }

    #[test]
    fn a_long_word_is_known_to_have_many_tokens() {
        assert_eq!(
            Tokenizer::bytes().reach.unwrap().longest,
            "<|endoftext|>".len()
        );
        let longest = trained().reach.unwrap().longest;
        assert!((13..40).contains(&longest), "{longest}");
        // As regular expressions cannot split it.
        let spaces = " ".repeat(20_000_000);
        assert!(trained().fewest_tokens(&spaces) >= 500_000);
    }

    #[test]
    fn nothing_is_said_where_tokens_may_stand_for_more() {
        let text = "a".repeat(1000);
        assert!(trained().fewest_tokens(&text) > 0);
        let composed = with("/normalizer", &json!({ "type": "NFC" }));
        assert_eq!(
            composed.fewest_tokens(&text),
            trained().fewest_tokens(&text)
        );
        assert_eq!(composed.fewest_tokens("e\u{301}"), 0);
        let removed = json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "Removed", "invert": false });
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        });
        let removes = json!({ "type": "Sequence", "pretokenizers": [removed, bytes] });
        let strips = json!([{
            "id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": true,
            "normalized": false, "special": true,
        }]);
        for (key, value) in [
            ("/normalizer", json!({ "type": "Lowercase" })),
            ("/pre_tokenizer", removes),
            ("/pre_tokenizer", Value::Null),
            ("/added_tokens", strips),
        ] {
            assert_eq!(with(key, &value).fewest_tokens(&text), 0, "{key}: {value}");
        }
    }

    proptest! {
        #[test]
        fn no_text_has_fewer(text in "(the fire|box| |\n|<\\|endoftext\\|>|[a-z]|\\PC){0,60}") {
            for tokenizer in [trained(), Tokenizer::bytes(), with("/normalizer", &json!({ "type": "NFKC" }))] {
                let tokenizer = tokenizer.with_special_tokens();
                let tokens = tokenizer.encode(&text).unwrap().len();
                prop_assert!(tokenizer.fewest_tokens(&text) <= tokens);
            }
        }
    }
}
