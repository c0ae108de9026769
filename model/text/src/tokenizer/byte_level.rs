//! The `tokenizer.json` of the byte-level tokenizers that are made here.

use serde_json::{Map, Value, json};
use tokenizers::DecoderWrapper;

use super::END_OF_TEXT;

/// How GPT-4's tokenizer splits text before pairs are merged. Digits are grouped in threes, and a
/// line end is never in one piece with the text after it.
pub(super) const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The character that represents each byte in a byte-level vocabulary (GPT-2): a printable character
/// represents itself, the other bytes are mapped to U+0100 and up.
pub(super) fn characters() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte as u8);
        }
        next += 1;
        char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
    })
}

/// The byte that a character represents, if it does.
pub(super) fn byte(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        printable @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => printable,
        // Bytes 00 to 20, 7F to A0, and AD.
        mapped @ 0x100..=0x120 => mapped - 0x100,
        mapped @ 0x121..=0x142 => mapped - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// No merges and no splitting: id = byte, and EOS is 256.
pub(super) fn identity_json() -> String {
    let vocabulary: Map<String, Value> = characters()
        .iter()
        .enumerate()
        .map(|(byte, c)| (c.to_string(), json!(byte)))
        .collect();
    let eos_token = json!([{
        "id": 256, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    }]);
    tokenizer_json(eos_token, byte_level(false), vocabulary)
}

/// Splits by [`SPLIT`] and has an empty vocabulary: the start of training.
pub(super) fn splitting_json() -> String {
    tokenizer_json(json!([]), splitting(), Map::new())
}

fn tokenizer_json(added: Value, pre_tokenizer: Value, vocabulary: Map<String, Value>) -> String {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
    .to_string()
}

/// A `ByteLevel` entry; `regex` makes a pre-tokenizer split as GPT-2 does, and has no effect in a
/// decoder.
pub(super) fn byte_level(regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex })
}

fn splitting() -> Value {
    let split = json!({
        "type": "Split", "pattern": { "Regex": SPLIT }, "behavior": "Isolated", "invert": false,
    });
    json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
}

/// Whether every id below 256 is its byte, and the only other id is EOS.
pub(super) fn is_identity(inner: &tokenizers::Tokenizer) -> bool {
    let is_byte =
        |(byte, c): (usize, &char)| inner.token_to_id(&c.to_string()) == Some(byte as u32);
    inner.get_vocab_size(true) == 257
        && inner.get_normalizer().is_none()
        && matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
        && pre_tokenizer_is(inner, byte_level(false))
        && characters().iter().enumerate().all(is_byte)
}

fn pre_tokenizer_is(inner: &tokenizers::Tokenizer, expected: Value) -> bool {
    inner
        .get_pre_tokenizer()
        .and_then(|own| serde_json::to_value(own).ok())
        == Some(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_represent_bytes_and_bytes_characters() {
        for (value, c) in (0..=255).zip(characters()) {
            assert_eq!(byte(c), Some(value));
        }
        let represents = ('\0'..=char::MAX).filter(|&c| byte(c).is_some());
        assert_eq!(represents.count(), 256);
    }
}
