use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::Tokenizer;
use super::super::tests::pre_tokenizer;
use super::splitting::Splitting;
use super::{GgmlVocabulary, kind};

fn sample() -> Vec<String> {
    let line = |n: usize| {
        format!(
            "fn größe_{n}() {{ // don't 日本語 🦀 {n}\r\n\tlet x = {};\n}}\n\n",
            n * 37
        )
    };
    (0..200).map(|n| line(n).repeat(1 + n % 3)).collect()
}

fn trained() -> Tokenizer {
    Tokenizer::train_bpe(sample().into_iter(), 400).unwrap()
}

/// The trained tokenizer with changes to its tokenizer.json.
fn changed(change: impl FnOnce(&mut Value)) -> Tokenizer {
    let mut json: Value = serde_json::from_str(trained().to_json()).unwrap();
    change(&mut json);
    Tokenizer::from_bytes(json.to_string().as_bytes(), "<|endoftext|>").unwrap()
}

fn reason(tokenizer: &Tokenizer, size: usize) -> String {
    tokenizer.to_ggml(size).unwrap_err().to_string()
}

#[test]
fn what_firebox_trains_has_a_name_in_llama_cpp() {
    let vocabulary = trained().to_ggml(402).unwrap();
    assert_eq!(
        (&*vocabulary.model, &*vocabulary.pre),
        ("gpt2", "smaug-bpe")
    );
    assert_eq!(vocabulary.tokens.len(), 402);
    assert_eq!(vocabulary.tokens[0], "<|endoftext|>");
    assert_eq!(vocabulary.kinds[..2], [kind::CONTROL, kind::NORMAL]);
    assert_eq!(vocabulary.tokens[401], "[PAD401]");
    assert_eq!(vocabulary.kinds[401], kind::UNUSED);
    assert_eq!(vocabulary.merges.len(), 400 - 257);
    assert_eq!((vocabulary.bos_id, vocabulary.add_bos), (None, Some(false)));
}

#[test]
fn every_splitting_comes_back() {
    for name in ["smaug-bpe", "qwen2", "gpt-2", "refact", "deepseek-v3"] {
        let splitting = Splitting::named(name).unwrap();
        let tokenizer = changed(|json| json["pre_tokenizer"] = splitting.to_json());
        let vocabulary = tokenizer.to_ggml(400).unwrap();
        assert_eq!(vocabulary.pre, name);
        let back = Tokenizer::from_ggml(&vocabulary, &[tokenizer.eos_id()]).unwrap();
        assert_eq!(back.to_ggml(400).unwrap(), vocabulary);
        for text in sample() {
            assert_eq!(
                back.encode(&text).unwrap(),
                tokenizer.encode(&text).unwrap(),
                "{name}"
            );
        }
    }
}

#[test]
fn single_bytes_need_no_merges() {
    let vocabulary = Tokenizer::bytes().to_ggml(257).unwrap();
    assert_eq!(
        (vocabulary.pre.as_str(), vocabulary.merges.len()),
        ("gpt-2", 0)
    );
    let back = Tokenizer::from_ggml(&vocabulary, &[256]).unwrap();
    assert_eq!(back.encode("a é\n").unwrap(), [97, 32, 0xC3, 0xA9, 10]);
}

#[test]
fn normalization_and_first_tokens_come_back() {
    let tokenizer = changed(|json| {
        json["normalizer"] = json!({ "type": "NFC" });
        json["model"]["ignore_merges"] = true.into();
        json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"] } },
        });
    });
    let vocabulary = tokenizer.to_ggml(400).unwrap();
    assert_eq!(vocabulary.pre, "llama-bpe");
    assert_eq!(vocabulary.nfc, Some(true));
    assert_eq!(
        (vocabulary.bos_id, vocabulary.add_bos),
        (Some(0), Some(true))
    );
    let back = Tokenizer::from_ggml(&vocabulary, &[0]).unwrap();
    let decomposed = "gro\u{308}ße";
    assert_eq!(
        back.prompt(decomposed).unwrap(),
        tokenizer.prompt(decomposed).unwrap()
    );
    // What a file does not say is what is usual with the name.
    let silent = GgmlVocabulary {
        add_bos: None,
        nfc: None,
        ..vocabulary
    };
    let back = Tokenizer::from_ggml(&silent, &[0]).unwrap();
    assert_eq!(back.bos_ids(), [0]);
    assert_ne!(
        back.encode(decomposed).unwrap(),
        tokenizer.encode(decomposed).unwrap()
    );
}

#[test]
fn tokenizers_that_llama_cpp_lacks_are_refused_by_name() {
    let tokenizer = trained();
    assert_eq!(
        reason(&tokenizer, 399),
        "llama.cpp has no tokenizer like that of the model: its token \"uÌĪÃŁ\" has the id 399, and the model 399 ids"
            .replace("uÌĪÃŁ", &tokenizer.to_ggml(400).unwrap().tokens[399])
    );
    for (words, change) in [
        (
            "(pre_tokenizer)",
            &(|json: &mut Value| {
                json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a+".into();
            }) as &dyn Fn(&mut Value),
        ),
        ("(pre_tokenizer)", &|json| {
            json["pre_tokenizer"] = pre_tokenizer("o200k")
        }),
        ("(normalizer \"Lowercase\")", &|json| {
            json["normalizer"] = json!({ "type": "Lowercase" })
        }),
        ("(byte_fallback)", &|json| {
            json["model"]["byte_fallback"] = true.into()
        }),
        ("(lstrip)", &|json| {
            json["added_tokens"][0]["lstrip"] = true.into()
        }),
    ] {
        let found = reason(&changed(change), 400);
        assert!(found.contains(words), "{found}");
    }
}

#[test]
fn vocabularies_that_firebox_lacks_are_refused_by_name() {
    let good = trained().to_ggml(400).unwrap();
    let read = |vocabulary: &GgmlVocabulary, eos: u32| {
        Tokenizer::from_ggml(vocabulary, &[eos])
            .unwrap_err()
            .to_string()
    };
    let with = |change: &dyn Fn(&mut GgmlVocabulary)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    for (words, vocabulary, eos) in [
        (
            "its model is \"bert\"; Firebox reads gpt2 and llama",
            with(&|v| v.model = "bert".to_owned()),
            0,
        ),
        (
            "it splits text as \"tekken\"; Firebox knows",
            with(&|v| v.pre = "tekken".to_owned()),
            0,
        ),
        ("400 tokens and 3 kinds", with(&|v| v.kinds.truncate(3)), 0),
        (
            "two of its tokens are",
            with(&|v| v.tokens[7] = v.tokens[8].clone()),
            0,
        ),
        ("of the kind 9", with(&|v| v.kinds[7] = 9), 0),
        ("no token with id 400", good.clone(), 400),
        (
            "no token with id 999, which begins",
            with(&|v| (v.bos_id, v.add_bos) = (Some(999), Some(true))),
            0,
        ),
    ] {
        let found = read(&vocabulary, eos);
        assert!(found.contains(words), "{found}");
    }
}

/// Llama 2's kind of vocabulary, with bytes for what it lacks.
fn characters() -> GgmlVocabulary {
    let pieces = ["▁", "a", "b", "ab", "▁a", "▁ab", "é"];
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = special.into_iter().chain(bytes);
    let mut vocabulary = GgmlVocabulary {
        model: "llama".to_owned(),
        tokens: tokens.chain(pieces.map(str::to_owned)).collect(),
        kinds: [
            vec![kind::UNKNOWN, kind::CONTROL, kind::CONTROL],
            vec![kind::BYTE; 256],
        ]
        .concat(),
        scores: vec![0.0; 259],
        bos_id: Some(1),
        ..GgmlVocabulary::default()
    };
    vocabulary.kinds.extend([kind::NORMAL; 7]);
    vocabulary
        .scores
        .extend([-9.0, -8.0, -7.0, -1.0, -2.0, -3.0, -6.0]);
    vocabulary
}

#[test]
fn characters_are_merged_by_scores() {
    let vocabulary = characters();
    let tokenizer = Tokenizer::from_ggml(&vocabulary, &[2]).unwrap();
    let id = |text: &str| {
        let place = vocabulary.tokens.iter().position(|token| token == text);
        place.unwrap() as u32
    };
    assert_eq!(tokenizer.bos_ids(), [1]);
    // A space stands before the text; "ab" is likelier than "▁a", and a byte stands for what is no piece.
    let expected = [id("▁ab"), id("▁a"), id("é"), id("<0x0A>")];
    assert_eq!(tokenizer.encode("ab aé\n").unwrap(), expected);
    assert_eq!(tokenizer.decode(&expected), "ab aé\n");
    let without = GgmlVocabulary {
        add_space: Some(false),
        add_bos: Some(false),
        ..vocabulary.clone()
    };
    let without = Tokenizer::from_ggml(&without, &[2]).unwrap();
    assert_eq!(without.prompt("ab").unwrap(), [id("ab")]);
    // It is not written: llama.cpp merges by scores, which a tokenizer.json does not have.
    assert!(reason(&tokenizer, 300).contains("(byte_fallback)"));
    let mut long = vocabulary.clone();
    long.tokens[260] = "a".repeat(5000);
    let error = Tokenizer::from_ggml(&long, &[2]).unwrap_err().to_string();
    assert!(
        error.contains("a token of 5000 bytes, more than 1024"),
        "{error}"
    );
    let short = GgmlVocabulary {
        scores: vec![0.0; 3],
        ..vocabulary
    };
    let error = Tokenizer::from_ggml(&short, &[2]).unwrap_err().to_string();
    assert!(error.contains("266 tokens and 3 scores"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_same_tokens_come_back(text in "\\PC{0,40}|[a-z \\n\\r\\t0-9'é]{0,60}") {
        static TRAINED: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(trained);
        let tokenizer = &*TRAINED;
        let vocabulary = tokenizer.to_ggml(400).unwrap();
        let back = Tokenizer::from_ggml(&vocabulary, &[0]).unwrap();
        prop_assert_eq!(back.encode(&text).unwrap(), tokenizer.encode(&text).unwrap());
    }
}
