use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::super::Tokenizer as Own;
use super::super::tests::{PATTERNS, pre_tokenizer};
use super::*;

const ALL: [Place; 6] = Place::ALL;

/// All places but these.
fn without(lost: &[Place]) -> Vec<Place> {
    ALL.into_iter()
        .filter(|place| !lost.contains(place))
        .collect()
}

/// A text with words, numbers, indentation, clauses and characters of every length.
fn sample() -> String {
    let line = |n: usize| {
        format!(
            "fn función_{n}(größe: usize) {{\n  // 日本語。你好，世界 🦀 {n} 4711 12\n\tit's x = {}; don't\n}}\r\n\n a  b ",
            n * 37
        )
    };
    (0..40).map(line).collect()
}

/// A byte-pair encoding with these parts, trained on the sample.
fn trained(normalizer: &Value, pre_tokenizer: &Value, fallback: bool) -> Tokenizer {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": fallback, "ignore_merges": false,
            "vocab": {}, "merges": [],
        },
    });
    let mut inner: Tokenizer = json.to_string().parse().unwrap();
    let bytes: Vec<AddedToken> = (0..256)
        .filter(|_| fallback)
        .map(|byte| AddedToken::from(format!("<0x{byte:02X}>"), false))
        .collect();
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(800)
        .special_tokens(bytes)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let words = [sample()];
    inner
        .train(&mut TrainerWrapper::BpeTrainer(trainer), words.into_iter())
        .unwrap();
    inner
}

fn published(name: &str, normalizer: &Value) -> Tokenizer {
    trained(normalizer, &pre_tokenizer(name), false)
}

/// As in Llama 2 and Mixtral: no pre-tokenizer, words begin with U+2581.
fn sentencepiece() -> Tokenizer {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    let normalizer = json!({ "type": "Sequence", "normalizers": [prepend, replace] });
    // Trained on words, so that no token contains a space behind a letter.
    let metaspace = json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true,
    });
    let split = json!({ "type": "Split", "pattern": { "Regex": r"\n|\d|\p{P}" }, "behavior": "Isolated", "invert": false });
    let both = json!({ "type": "Sequence", "pretokenizers": [split, metaspace] });
    let inner = trained(&Value::Null, &both, true);
    let mut json: Value = serde_json::from_str(&inner.to_string(false).unwrap()).unwrap();
    json["normalizer"] = normalizer;
    json["pre_tokenizer"] = Value::Null;
    json["added_tokens"] = json!([]);
    json.to_string().parse().unwrap()
}

#[test]
fn places_of_published_patterns() {
    for (name, _) in PATTERNS {
        for normalizer in [Value::Null, json!({ "type": "NFC" })] {
            let places = Cuts::of(&published(name, &normalizer)).places();
            // Signs, line feeds and slashes are one match of o200k.
            let from = usize::from(name == "o200k");
            assert_eq!(places, ALL[from..], "{name}");
        }
    }
    // Its vocabulary is what keeps words apart. Any two characters beyond ASCII are taken for the end of a clause.
    assert_eq!(
        Cuts::of(&sentencepiece()).places(),
        without(&[Place::Clause])
    );
    let own = Own::bytes();
    assert_eq!(own.cuts.places(), ALL);
}

#[test]
fn unknown_and_unsafe_parts_have_no_places() {
    let split = |pattern: &str, behavior: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": behavior, "invert": false });
    let places = |normalizer: Value, pre_tokenizer: Value| {
        Cuts::of(&trained(&normalizer, &pre_tokenizer, false)).places()
    };
    let strip = json!({ "type": "Strip", "strip_left": true, "strip_right": true });
    assert_eq!(places(strip, split(r"\s+|\S+", "Isolated")), []);
    // Looks behind, and at word boundaries.
    assert_eq!(
        places(Value::Null, split(r"(?<=a)b|\s+|\S+", "Isolated")),
        []
    );
    assert_eq!(
        places(Value::Null, split(r"\b\w+\b|\s+|\S+", "Isolated")),
        []
    );
    assert_eq!(places(Value::Null, split(r"\s+|\S+", "MergedWithNext")), []);
    // A word, and the space after it.
    assert_eq!(
        places(Value::Null, split(r"\w+ ?|[^\w]", "Isolated")),
        [Place::Line, Place::Clause, Place::Sign, Place::Punctuation]
    );
    // Whole lines.
    assert_eq!(
        places(Value::Null, split(r"[^\n]*\n|[^\n]+", "Isolated")),
        [Place::Line]
    );
    // Tokens over spaces, and nothing that splits there.
    let line = places(Value::Null, Value::Null);
    assert!(!line.contains(&Place::Word), "{line:?}");
}

#[test]
fn added_tokens_are_not_cut() {
    let with = |token: AddedToken| {
        let mut inner = published("gpt-2", &Value::Null);
        inner.add_tokens(&[token]);
        Cuts::of(&inner).places()
    };
    let token = |text: &str| AddedToken::from(text, false);
    assert_eq!(with(token("<x>")), ALL);
    assert_eq!(with(token("New York")), without(&[Place::Word]));
    assert_eq!(with(token("a\nb")), without(&[Place::Line]));
    assert_eq!(with(token("<mask>").lstrip(true)), without(&[Place::Line]));
    assert_eq!(
        with(token("tok").rstrip(true)),
        without(&[Place::Word, Place::Number])
    );
    assert_eq!(
        with(token("<x>").rstrip(true)),
        without(&[Place::Punctuation])
    );
    assert_eq!(with(token("x=1")), without(&[Place::Sign]));
    assert_eq!(
        with(token("e.g. ")),
        without(&[Place::Clause, Place::Sign, Place::Punctuation])
    );
    // Special ones count only where text can become them.
    let mut inner = published("gpt-2", &Value::Null);
    inner.add_special_tokens(&[AddedToken::from("end of text", true)]);
    assert!(!Cuts::of(&inner).places().contains(&Place::Word));
    inner.set_encode_special_tokens(true);
    assert_eq!(Cuts::of(&inner).places(), ALL);
}

fn cut(inner: &Tokenizer, text: &str, size: usize) -> Vec<u32> {
    let mut whole = String::new();
    let mut ids = Vec::new();
    for piece in Cuts::of(inner).pieces(text, size) {
        assert_eq!(piece.offset, whole.len());
        whole += piece.text;
        let (lead, tokens) = piece.lead.unwrap_or_default();
        let encoded = inner
            .encode_fast([lead, piece.text].concat(), false)
            .unwrap();
        ids.extend_from_slice(&encoded.get_ids()[tokens..]);
    }
    assert_eq!(whole, text);
    ids
}

/// Tokenizers of every kind that can be cut, with added tokens of every kind.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let nfc = json!({ "type": "NFC" });
    let mut all: Vec<(String, Tokenizer)> = PATTERNS
        .iter()
        .flat_map(|&(name, _)| {
            [&Value::Null, &nfc]
                .map(|normalizer| (format!("{name} {normalizer}"), published(name, normalizer)))
        })
        .collect();
    let prefix = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    all.push(("prefix space".into(), trained(&Value::Null, &prefix, false)));
    for scheme in ["first", "always"] {
        let metaspace = json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": scheme == "always",
        });
        all.push((scheme.into(), trained(&Value::Null, &metaspace, false)));
    }
    all.push(("sentencepiece".into(), sentencepiece()));
    let plain = |(name, inner): &(String, Tokenizer)| (format!("{name}, plain"), inner.clone());
    let ended = |(name, inner): &(String, Tokenizer)| {
        let mut inner = inner.clone();
        inner.add_tokens(&[
            AddedToken::from("<w>", false).single_word(true),
            AddedToken::from("<n>", false).normalized(false),
        ]);
        inner.add_special_tokens(&[AddedToken::from("<|s|>", true)]);
        (format!("{name}, tokens"), inner)
    };
    let stripping = |(name, inner): &(String, Tokenizer)| {
        let mut inner = inner.clone();
        inner.add_tokens(&[AddedToken::from("<l>", false)
            .lstrip(true)
            .normalized(false)]);
        inner.add_special_tokens(&[AddedToken::from("<r>", true).rstrip(true)]);
        (format!("{name}, stripping"), inner)
    };
    let with = all
        .iter()
        .flat_map(|of| [plain(of), ended(of), stripping(of)]);
    let with: Vec<_> = with.collect();
    for place in ALL {
        let used = |(_, inner): &(String, Tokenizer)| Cuts::of(inner).places().contains(&place);
        assert!(with.iter().any(used), "no text is cut at {place:?}");
    }
    with
}

/// What is put before a text is put behind added tokens, too.
#[test]
fn nothing_is_cut_behind_an_added_token_where_texts_have_a_prefix() {
    let mut inner = sentencepiece();
    assert!(Cuts::of(&inner).places().contains(&Place::Punctuation));
    inner.add_special_tokens(&[AddedToken::from("</s>", true).normalized(false)]);
    let places = Cuts::of(&inner).places();
    assert_eq!(places, without(&[Place::Clause, Place::Punctuation]));
    for text in ["a</s> a", "</s>  b c. d", "a. b</s> x, y"] {
        let whole = inner.encode_fast(text, false).unwrap();
        for size in 0..text.len() {
            assert_eq!(cut(&inner, text, size), whole.get_ids(), "{text:?}, {size}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn cutting_changes_no_token(
        text in "([ \\r\\n\\t\u{a0}]|[ \\n]|[a-zA-Z]{1,4}|[0-9]{1,4}|[-_!;é'\u{301}🦀.,:\"=(+/\\])}]|日本|が|、|ſ|Ⅷ|Ⓐ|한|'s|'LL|<l>|<w>|<n>|<\\|s\\|>|<r>| {3}|don't){0,60}",
        size in 0usize..24,
    ) {
        thread_local!(static TOKENIZERS: Vec<(String, Tokenizer)> = tokenizers());
        TOKENIZERS.with(|tokenizers| {
            for (name, inner) in tokenizers {
                let whole = inner.encode_fast(text.as_str(), false).unwrap();
                prop_assert_eq!(&cut(inner, &text, size), whole.get_ids(), "{}", name);
            }
            Ok(())
        })?;
    }
}

/// One run of more than a million characters of a kind must not decide over the rest of a document.
#[test]
fn text_behind_a_long_run_is_split_as_ever() {
    let rest = "word.\n\tit's 12345 done, and so on";
    for ((name, _), run) in PATTERNS.iter().zip([" ", "-", "a", "\n", "7", "\t "]) {
        let mut json: Value =
            serde_json::from_str(&published(name, &Value::Null).to_string(false).unwrap()).unwrap();
        json["added_tokens"] = json!([{
            "id": 900, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }]);
        let own = Own::from_bytes(json.to_string().as_bytes(), "<end>").unwrap();
        let text = ["x", &run.repeat(1_200_000 / run.len()), "!\n", rest].concat();
        let ids = own.encode(&text).unwrap();
        assert!(ids.ends_with(&own.encode(rest).unwrap()), "{name} {run:?}");
    }
}
