use firebox_console::advice::Advise as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// The post-processor of Llama and Mixtral, with the id that [`json_with`] assigns to `<s>`.
pub(crate) const TEMPLATE_BEGIN: &str = r#"{
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}}
}"#;

/// The `tokenizer.json` of the byte tokenizer with further special tokens, from 257 on, and a post-processor.
pub(super) fn json_with(tokens: &[&str], post_processor: &Value) -> String {
    let mut json: Value = serde_json::from_str(Tokenizer::bytes().to_json()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (id, &token) in (257..).zip(tokens) {
        let mut entry = added[0].clone();
        entry["id"] = id.into();
        entry["content"] = token.into();
        added.push(entry);
    }
    json["post_processor"] = post_processor.clone();
    json.to_string()
}

/// The tokenizer that [`json_with`] describes.
pub(crate) fn with_post_processor(
    tokens: &[&str],
    post_processor: &Value,
    eos_token: &str,
) -> Tokenizer {
    Tokenizer::from_bytes(json_with(tokens, post_processor).as_bytes(), eos_token).unwrap()
}

/// The patterns by which published tokenizers split text, one after the other.
pub(super) const PATTERNS: [(&str, &[&str]); 6] = [
    (
        "gpt-2",
        &[r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
    ),
    (
        "llama-3",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "qwen2",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "cl100k",
        &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        ],
    ),
    (
        "o200k",
        &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    (
        "deepseek-v3",
        &[
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|",
                r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
    ),
];

/// The pre-tokenizer with one of [`PATTERNS`].
pub(super) fn pre_tokenizer(name: &str) -> Value {
    let (_, patterns) = PATTERNS.iter().find(|(own, _)| *own == name).unwrap();
    let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let all: Vec<Value> = patterns.iter().map(split).chain([bytes]).collect();
    json!({ "type": "Sequence", "pretokenizers": all })
}

/// Some text with words, numbers, indentation and characters of every length.
fn sample() -> Vec<String> {
    let line = |n: usize| {
        format!(
            "fn función_{n}(größe: usize) -> String {{\n    // 日本語 🦀 {n}\n\tlet x = {};\n}}\n\n",
            n * 37
        )
    };
    (0..60).map(|n| line(n).repeat(1 + n % 3)).collect()
}

fn trained() -> Tokenizer {
    Tokenizer::train_bpe(sample().into_iter(), 400).unwrap()
}

#[test]
fn a_special_token_that_no_text_becomes_needs_no_embedding() {
    let json = json_with(&["<pad>"], &Value::Null);
    let tokenizer = Tokenizer::from_bytes(json.as_bytes(), "<|endoftext|>").unwrap();
    assert_eq!(tokenizer.vocab_size(), 258);
    assert_eq!(tokenizer.document_vocab_size(), 257);
    assert_eq!(tokenizer.with_special_tokens().document_vocab_size(), 258);
    // The token that ends a document is one of it.
    let tokenizer = Tokenizer::from_bytes(json.as_bytes(), "<pad>").unwrap();
    assert_eq!(tokenizer.document_vocab_size(), 258);
}

#[test]
fn bytes_are_their_own_ids() {
    let tokenizer = Tokenizer::bytes();
    assert_eq!(tokenizer.vocab_size(), 257);
    assert_eq!(tokenizer.eos_id(), 256);
    assert_eq!(tokenizer.encode("a é\n").unwrap(), [97, 32, 0xC3, 0xA9, 10]);
    // The shortcut gives the same ids as the encoding that tokenizer.json describes.
    let every: String = (0..0x250).filter_map(char::from_u32).collect();
    let general = tokenizer.inner.encode_fast(every.as_str(), false).unwrap();
    assert_eq!(tokenizer.encode(&every).unwrap(), general.get_ids());
}

#[test]
fn the_same_text_trains_the_same_tokenizer() {
    let first = trained();
    assert_eq!(first.vocab_size(), 400);
    for _ in 0..4 {
        assert_eq!(trained().to_json(), first.to_json());
    }
    let reversed = Tokenizer::train_bpe(sample().into_iter().rev(), 400).unwrap();
    assert_eq!(reversed.to_json(), first.to_json());
    let other = Tokenizer::train_bpe(sample().into_iter().take(9), 400).unwrap();
    assert_ne!(other.to_json(), first.to_json());
}

#[test]
fn training_compresses() {
    let text = sample().concat();
    let tokens = trained().encode(&text).unwrap().len();
    assert!(
        tokens * 2 < text.len(),
        "{tokens} tokens for {} bytes",
        text.len()
    );
}

#[test]
fn a_vocabulary_too_small_for_all_bytes_is_rejected() {
    let error = Tokenizer::train_bpe(sample().into_iter(), 256).unwrap_err();
    assert!(error.to_string().contains("257"), "{error}");
}

#[test]
fn text_never_becomes_the_end_of_text() {
    for tokenizer in [Tokenizer::bytes(), trained()] {
        let text = format!("a{END_OF_TEXT}b");
        let ids = tokenizer.encode(&text).unwrap();
        assert!(!ids.contains(&tokenizer.eos_id()));
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn an_ordinary_token_that_ends_documents_becomes_special() {
    let mut json: Value = serde_json::from_str(Tokenizer::bytes().to_json()).unwrap();
    json["added_tokens"][0]["special"] = false.into();
    json["truncation"] = json!({
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    });
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), END_OF_TEXT).unwrap();
    let text = format!("abc{END_OF_TEXT}");
    let general = tokenizer.inner.encode_fast(text.as_str(), false).unwrap();
    assert_eq!(
        general.get_ids().len(),
        text.len(),
        "neither truncated nor matched"
    );
    assert_eq!(tokenizer.decode(&[97, 256]), "a");
    assert_eq!(tokenizer.bytes_of(&[97, 256]), 1);
}

#[test]
fn a_saved_tokenizer_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let tokenizer = trained();
    tokenizer.save(&path).unwrap();
    let id = tokenizer.eos_id();
    for loaded in [
        Tokenizer::load(&path, &[id]).unwrap(),
        Tokenizer::load(&path, &[]).unwrap(),
        Tokenizer::from_file(&path, END_OF_TEXT).unwrap(),
    ] {
        assert_eq!(loaded.eos_id(), id);
        assert_eq!(loaded.to_json(), tokenizer.to_json());
    }
    let error = Tokenizer::load(&path, &[400]).unwrap_err();
    assert!(
        error.to_string().contains("no token with id 400"),
        "{error}"
    );
    let error = Tokenizer::from_file(&path, "</s>").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("tokenizer.json has no token \"</s>\""),
        "{error}"
    );
    std::fs::write(&path, "{}").unwrap();
    assert!(matches!(
        Tokenizer::load(&path, &[]),
        Err(TokenizerError::Parse { path: Some(_), .. })
    ));
}

#[test]
fn what_is_read_is_written_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (source, copy) = (folder.path().join("a.json"), folder.path().join("b.json"));
    let template: Value = serde_json::from_str(TEMPLATE_BEGIN).unwrap();
    let mut full: Value = serde_json::from_str(&json_with(&["<s>", "<pad>"], &template)).unwrap();
    full["padding"] = json!({
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": null,
        "pad_id": 258, "pad_type_id": 0, "pad_token": "<pad>",
    });
    full["truncation"] = json!({
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    });
    // Tokens that are not special, the EOS token among them, which becomes special in memory only.
    full["added_tokens"][0]["special"] = false.into();
    full["added_tokens"][1]["lstrip"] = true.into();
    let shapes = [
        Tokenizer::bytes().to_json().to_owned(),
        trained().to_json().to_owned(),
        json_with(&[], &Value::Null),
        json_with(&["<s>"], &template),
        full.to_string(),
        serde_json::to_string_pretty(&full).unwrap() + "\n",
        // CRLF line ends, escapes, another order and trailing whitespace.
        serde_json::to_string_pretty(&full)
            .unwrap()
            .replace('\n', "\r\n")
            .replace("<pad>", "<p\\u0061d>")
            + " ",
    ];
    for json in shapes {
        fs::write(&source, &json).unwrap();
        for tokenizer in [
            Tokenizer::from_file(&source, END_OF_TEXT).unwrap(),
            Tokenizer::load(&source, &[]).unwrap(),
            Tokenizer::from_bytes(json.as_bytes(), END_OF_TEXT).unwrap(),
        ] {
            assert_eq!(tokenizer.to_json(), json);
            tokenizer.save(&copy).unwrap();
            assert_eq!(fs::read(&copy).unwrap(), json.as_bytes());
            // Neither truncated, nor padded, nor matched.
            let ids = tokenizer.encode("abcdefgh<s>").unwrap();
            assert_eq!(tokenizer.decode(&ids), "abcdefgh<s>");
            assert!(!ids.iter().any(|id| tokenizer.bos_ids().contains(id)));
        }
    }
}

#[test]
fn the_first_of_several_eos_ids_ends_documents() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json_with(&["<s>", "</s>"], &Value::Null)).unwrap();
    // The last id is of a model that has more ids than its tokenizer.
    let tokenizer = Tokenizer::load(&path, &[258, 256, 258, 300]).unwrap();
    assert_eq!(tokenizer.eos_ids(), [258, 256, 300]);
    assert_eq!(tokenizer.eos_id(), 258);
    assert_eq!(tokenizer.document(&[97]).collect::<Vec<_>>(), [97, 258]);
    assert_eq!(Tokenizer::load(&path, &[]).unwrap().eos_ids(), [256]);
    let error = Tokenizer::load(&path, &[300, 256]).unwrap_err();
    assert!(
        error.to_string().contains("no token with id 300"),
        "{error}"
    );
}

#[test]
fn a_prompt_begins_with_bos_and_is_never_empty() {
    let plain = Tokenizer::bytes();
    assert_eq!(plain.prompt("a").unwrap(), [97]);
    assert_eq!(plain.prompt("").unwrap(), [256]);
    let template = serde_json::from_str(TEMPLATE_BEGIN).unwrap();
    let begins = with_post_processor(&["<s>"], &template, END_OF_TEXT);
    assert_eq!(begins.prompt("a").unwrap(), [257, 97]);
    assert_eq!(begins.prompt("").unwrap(), [257]);
    assert_eq!(begins.bytes_of(&[257, 97, 256]), 1);
    assert_eq!(begins.decode(&[257, 97, 256]), "a");
}

#[test]
fn a_bos_id_without_a_token_is_an_error() {
    let template: Value = serde_json::from_str(TEMPLATE_BEGIN).unwrap();
    let json = json_with(&[], &template);
    let error = Tokenizer::from_bytes(json.as_bytes(), END_OF_TEXT).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tokenizer: post_processor adds id 257, which is not in the vocabulary"
    );
    assert!(error.hint().unwrap().contains("post_processor"));
    let error = Tokenizer::from_bytes(b"{\xFF", END_OF_TEXT).unwrap_err();
    assert!(error.to_string().contains("invalid utf-8"), "{error}");
}

/// Bytes as tokens, a space as `▁`, and no space at the start of a text.
fn sentencepiece_like() -> Tokenizer {
    let json = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null,
        "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "byte_fallback": true, "merges": [],
                  "vocab": {"</s>": 0, "<0xC3>": 1, "<0xA9>": 2, "▁": 3, "ü": 4, "▁a": 5}}
    }"#;
    Tokenizer::from_bytes(json.as_bytes(), "</s>").unwrap()
}

#[test]
fn bytes_of_a_sentencepiece_like_vocabulary() {
    let tokenizer = sentencepiece_like();
    assert_eq!(tokenizer.bytes_of(&[1, 2, 3, 4, 0]), 2 + 1 + 2);
    assert_eq!(tokenizer.decode(&[1, 2, 3, 4, 0]), "é ü");
    let mut stream = tokenizer.stream();
    assert_eq!(
        [1, 2, 3, 4].map(|id| stream.push(id)),
        [None, Some("é".into()), Some(" ".into()), Some("ü".into())]
    );
    assert_eq!(stream.finish(), None);
}

#[test]
fn tokens_alone_show_their_bytes() {
    let tokenizer = sentencepiece_like();
    let texts = [0, 1, 4, 5, 6].map(|id| tokenizer.token_text(id));
    assert_eq!(texts, ["</s>", "\u{FFFD}", "ü", " a", ""]);
    assert_eq!(tokenizer.token_bytes(1), [0xC3]);
    let bytes = Tokenizer::bytes();
    let texts = [97, 0xC3, 32, 256, 257].map(|id| bytes.token_text(id));
    assert_eq!(texts, ["a", "\u{FFFD}", " ", "<|endoftext|>", ""]);
    assert_eq!(bytes.token_bytes(0xC3), [0xC3]);
}

#[test]
fn special_tokens_are_shown_on_request() {
    let tokenizer = Tokenizer::bytes();
    let shown = |special_tokens| {
        let mut stream = StreamDecoder::new(&tokenizer, special_tokens);
        let mut text: String = [97, 256, 98]
            .iter()
            .filter_map(|&id| stream.push(id))
            .collect();
        text.extend(stream.finish());
        assert_eq!(text, tokenizer.decode_with(&[97, 256, 98], special_tokens));
        text
    };
    assert_eq!(shown(false), "ab");
    assert_eq!(shown(true), "a<|endoftext|>b");
}

#[test]
fn a_stream_after_a_prompt_goes_on_with_its_last_character() {
    let tokenizer = Tokenizer::bytes();
    let ids = tokenizer.encode("Tür \u{1F525}").unwrap();
    let (last, prompt) = ids.split_last().unwrap();
    let mut stream = tokenizer.stream().after(prompt);
    assert_eq!(stream.push(*last), Some("\u{1F525}".to_owned()));
    // A space at the start of what follows is not at the start of the text.
    let tokenizer = sentencepiece_like();
    assert_eq!(tokenizer.stream().push(5), Some("a".to_owned()));
    assert_eq!(
        tokenizer.stream().after(&[4]).push(5),
        Some(" a".to_owned())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives_and_its_bytes_are_counted(text in any::<String>()) {
        thread_local!(static TOKENIZERS: [Tokenizer; 3] = [
            Tokenizer::bytes(),
            trained(),
            with_post_processor(&["<s>"], &serde_json::from_str(TEMPLATE_BEGIN).unwrap(), END_OF_TEXT),
        ]);
        TOKENIZERS.with(|tokenizers| {
            for tokenizer in tokenizers {
                let ids = tokenizer.encode(&text).unwrap();
                prop_assert_eq!(tokenizer.decode(&ids), &text[..]);
                prop_assert_eq!(tokenizer.decode(&tokenizer.prompt(&text).unwrap()), &text[..]);
                prop_assert_eq!(tokenizer.bytes_of(&ids), text.len() as u64);
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            }
            Ok(())
        })?;
    }

    #[test]
    fn streaming_shows_what_decoding_shows(ids in prop::collection::vec(0u32..=256, 0..40)) {
        let tokenizer = Tokenizer::bytes();
        let mut stream = tokenizer.stream();
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.finish());
        prop_assert_eq!(text, tokenizer.decode(&ids));
    }

    #[test]
    fn streaming_shows_what_decoding_shows_where_characters_are_whole(
        parts in prop::collection::vec(prop::sample::select(vec![&[1u32, 2][..], &[3], &[4], &[5], &[0], &[6]]), 0..20),
        special_tokens in any::<bool>(),
    ) {
        let tokenizer = sentencepiece_like();
        let ids = parts.concat();
        let mut stream = StreamDecoder::new(&tokenizer, special_tokens);
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.finish());
        prop_assert_eq!(text, tokenizer.decode_with(&ids, special_tokens));
    }

    #[test]
    fn streaming_never_breaks_a_character(text in any::<String>()) {
        let tokenizer = Tokenizer::bytes();
        let mut stream = tokenizer.stream();
        let mut shown = String::new();
        for id in tokenizer.encode(&text).unwrap() {
            shown.extend(stream.push(id));
            prop_assert!(text.starts_with(&shown));
        }
        shown.extend(stream.finish());
        prop_assert_eq!(shown, text);
    }
}

#[test]
fn special_tokens_in_text_are_counted_and_taken_on_request() {
    let template: Value = serde_json::from_str(TEMPLATE_BEGIN).unwrap();
    let json = json_with(&["<s>", "<|user|>"], &template);
    let plain = Tokenizer::from_bytes(json.as_bytes(), END_OF_TEXT).unwrap();
    let text = "<|user|>a<|endoftext|><s>b";
    assert_eq!(plain.special_places(text), 3);
    assert_eq!(plain.special_places("<|user>"), 0);
    assert_eq!(plain.encode(text).unwrap().len(), text.len());
    let special = plain.clone().with_special_tokens();
    assert!(special.takes_special_tokens() && !plain.takes_special_tokens());
    assert_eq!(special.encode(text).unwrap(), [258, 97, 256, 257, 98]);
    assert_eq!(special.prompt("<|user|>").unwrap(), [257, 258]);
    assert_eq!(special.to_json(), json);
    let bytes = Tokenizer::bytes().with_special_tokens();
    assert_eq!(bytes.encode("a<|endoftext|>").unwrap(), [97, 256]);
}

#[test]
fn an_error_of_a_text_names_its_place() {
    let json = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "model": {"type": "WordLevel", "vocab": {"</s>": 0, "word": 1}, "unk_token": "<unk>"}
    }"#;
    let tokenizer = Tokenizer::from_bytes(json.as_bytes(), "</s>").unwrap();
    let long = "word ".repeat(100_000) + "unknown";
    let error = tokenizer.encode_batch(&["word", &long]).unwrap_err();
    let error = error.in_document(|text| (format!("text {text}"), 1000));
    let text = error.to_string();
    assert!(
        text.starts_with("text 1: the tokenizer cannot encode the text from byte "),
        "{text}"
    );
    let TokenizerError::Encode { offset, .. } = error else {
        panic!("{error}")
    };
    assert!((1000 + (256 << 10)..1000 + long.len()).contains(&offset));
}
