//! Vocabularies of characters that are merged by scores, as SentencePiece makes them (Llama 2, Mixtral).

use std::cmp::Reverse;

use serde_json::{Map, Value, json};

use super::{GgmlVocabulary, kind};

/// What stands for a space in such a vocabulary.
const SPACE: &str = "▁";

/// The most bytes of a token; those of known vocabularies have fewer than a hundred.
const LONGEST_TOKEN: usize = 1024;

/// A merge, and what decides which of several comes first: the score of what it makes, and the lengths of its parts.
type Merge<'a> = (f32, usize, usize, &'a str, &'a str);

/// The model of the tokenizer.json: the merges are all pairs of pieces that make a piece, those that make likely ones first, as
/// `transformers` converts such vocabularies.
pub(super) fn model(
    vocabulary: &GgmlVocabulary,
    tokens: &Map<String, Value>,
) -> Result<Value, String> {
    let count = vocabulary.tokens.len();
    if vocabulary.scores.len() != count {
        return Err(format!(
            "it has {count} tokens and {} scores of them",
            vocabulary.scores.len()
        ));
    }
    // Each token is looked up in all of its parts, so that a long one would take for ever.
    let longest = vocabulary.tokens.iter().map(String::len).max().unwrap_or(0);
    if longest > LONGEST_TOKEN {
        return Err(format!(
            "it has a token of {longest} bytes, more than {LONGEST_TOKEN}"
        ));
    }
    let kind_of = |id: usize| vocabulary.kinds.get(id).copied().unwrap_or(kind::NORMAL);
    let is_piece = |text: &str| {
        let id = tokens.get(text).and_then(Value::as_u64);
        id.is_some_and(|id| kind_of(id as usize) == kind::NORMAL)
    };
    let mut merges: Vec<Merge<'_>> = Vec::new();
    for (id, text) in vocabulary.tokens.iter().enumerate() {
        if kind_of(id) != kind::NORMAL {
            continue;
        }
        let score = vocabulary.scores[id];
        let splits = text
            .char_indices()
            .skip(1)
            .map(|(place, _)| text.split_at(place));
        let splits = splits.filter(|(left, right)| is_piece(left) && is_piece(right));
        let mut splits: Vec<(&str, &str)> = splits.collect();
        splits.sort_by_key(|(left, right)| (id_of(tokens, left), id_of(tokens, right)));
        merges.extend(splits.into_iter().map(|(left, right)| {
            (
                score,
                left.chars().count(),
                right.chars().count(),
                left,
                right,
            )
        }));
    }
    // Of the same key, those of lower ids stay in front.
    merges.sort_by(|one, other| {
        let by_score = other.0.total_cmp(&one.0);
        by_score.then(Reverse((one.1, one.2)).cmp(&Reverse((other.1, other.2))))
    });
    let merges: Vec<Value> = merges
        .iter()
        .map(|merge| json!([merge.3, merge.4]))
        .collect();
    let unknown = (0..count).find(|&id| kind_of(id) == kind::UNKNOWN);
    Ok(json!({
        "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| &vocabulary.tokens[id]),
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
        "ignore_merges": false, "vocab": tokens, "merges": merges,
    }))
}

fn id_of(tokens: &Map<String, Value>, text: &str) -> Option<u64> {
    tokens.get(text).and_then(Value::as_u64)
}

/// What spaces become, one before the text included if `leading`.
pub(super) fn normalizer(leading: bool) -> Value {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let prepend = leading.then(|| json!({ "type": "Prepend", "prepend": SPACE }));
    let steps: Vec<Value> = prepend.into_iter().chain([replace]).collect();
    json!({ "type": "Sequence", "normalizers": steps })
}

/// How text is made of tokens.
pub(super) fn decoder(leading: bool) -> Value {
    let replace = json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " });
    let strip = leading.then(|| json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    let steps = [
        replace,
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let steps: Vec<Value> = steps.into_iter().chain(strip).collect();
    json!({ "type": "Sequence", "decoders": steps })
}
