use proptest::prelude::*;

use super::*;

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
fn bytes_are_their_own_ids() {
    let tokenizer = Tokenizer::bytes();
    assert_eq!(tokenizer.vocabulary(), 257);
    assert_eq!(tokenizer.end_of_text(), 256);
    assert_eq!(tokenizer.encode("a é\n").unwrap(), [97, 32, 0xC3, 0xA9, 10]);
    // The short cut and the encoding that tokenizer.json describes are the same.
    let every: String = (0..0x250).filter_map(char::from_u32).collect();
    let general = tokenizer.inner.encode_fast(every.as_str(), false).unwrap();
    assert_eq!(tokenizer.encode(&every).unwrap(), general.get_ids());
}

#[test]
fn the_same_text_trains_the_same_tokenizer() {
    let first = trained();
    assert_eq!(first.vocabulary(), 400);
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
fn a_vocabulary_without_room_for_all_bytes_is_refused() {
    let error = Tokenizer::train_bpe(sample().into_iter(), 256).unwrap_err();
    assert!(error.to_string().contains("257"), "{error}");
}

#[test]
fn text_never_becomes_the_end_of_text() {
    for tokenizer in [Tokenizer::bytes(), trained()] {
        let text = format!("a{END_OF_TEXT}b");
        let ids = tokenizer.encode(&text).unwrap();
        assert!(!ids.contains(&tokenizer.end_of_text()));
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn an_ordinary_token_that_ends_documents_becomes_special() {
    let json = Tokenizer::bytes().to_json();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["added_tokens"][0]["special"] = false.into();
    json["truncation"] = serde_json::json!({
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
    let id = tokenizer.end_of_text();
    for loaded in [
        Tokenizer::load(&path, Some(id)).unwrap(),
        Tokenizer::load(&path, None).unwrap(),
        Tokenizer::from_file(&path, END_OF_TEXT).unwrap(),
    ] {
        assert_eq!(loaded.end_of_text(), id);
        assert_eq!(loaded.to_json(), tokenizer.to_json());
        assert!(loaded.splits_lines);
    }
    let error = Tokenizer::load(&path, Some(400)).unwrap_err();
    assert!(error.to_string().contains("no token of id 400"), "{error}");
    let error = Tokenizer::from_file(&path, "</s>").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("tokenizer.json has no token \"</s>\""),
        "{error}"
    );
    std::fs::write(&path, "{}").unwrap();
    assert!(matches!(
        Tokenizer::load(&path, None),
        Err(TokenizerError::Parse { path: Some(_), .. })
    ));
}

#[test]
fn bytes_of_a_sentencepiece_like_vocabulary() {
    let json = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null,
        "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "merges": [],
                  "vocab": {"</s>": 0, "<0xC3>": 1, "<0xA9>": 2, "▁": 3, "ü": 4}}
    }"#;
    let tokenizer = Tokenizer::from_bytes(json.as_bytes(), "</s>").unwrap();
    assert_eq!(tokenizer.bytes_of(&[1, 2, 3, 4, 0]), 2 + 1 + 2);
    assert_eq!(tokenizer.decode(&[1, 2, 3, 4, 0]), "é ü");
    let mut stream = tokenizer.stream();
    assert_eq!(
        [1, 2, 3, 4].map(|id| stream.push(id)),
        [None, Some("é".into()), Some(" ".into()), Some("ü".into())]
    );
    assert_eq!(stream.finish(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives_and_its_bytes_are_counted(text in any::<String>()) {
        thread_local!(static TOKENIZERS: [Tokenizer; 2] = [Tokenizer::bytes(), trained()]);
        TOKENIZERS.with(|tokenizers| {
            for tokenizer in tokenizers {
                let ids = tokenizer.encode(&text).unwrap();
                prop_assert_eq!(tokenizer.decode(&ids), &text[..]);
                prop_assert_eq!(tokenizer.bytes_of(&ids), text.len() as u64);
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary()));
            }
            Ok(())
        })?;
    }

    #[test]
    fn pieces_change_no_token(text in "([ \\r\\n\\t\u{a0}]|[a-z]{1,4}|[0-9]|[!;é'🦀]){0,80}", size in 0usize..40) {
        thread_local!(static TOKENIZER: Tokenizer = trained());
        TOKENIZER.with(|tokenizer| {
            let pieces: Vec<&str> = byte_level::pieces(&text, size).collect();
            prop_assert_eq!(pieces.concat(), &text[..]);
            let cut: Vec<u32> = pieces.iter().flat_map(|piece| tokenizer.encode(piece).unwrap()).collect();
            prop_assert_eq!(cut, tokenizer.encode(&text).unwrap());
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
