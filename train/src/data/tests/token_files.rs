//! Sources whose documents are tokens already.

use std::fs;

use firebox_console::advice::Advise as _;
use firebox_text::documents::TEXT_FIELD;
use firebox_text::packing::PackedText;

use super::super::*;
use super::{TEXTS, Workplace};

/// The documents as nanoGPT stores them, by a tokenizer of bytes: each followed by the token that ends it.
fn raw(texts: &[&str]) -> Vec<u8> {
    let ids = |text: &&str| {
        text.bytes()
            .map(u16::from)
            .chain([256])
            .collect::<Vec<u16>>()
    };
    let ids = texts.iter().flat_map(ids);
    ids.flat_map(u16::to_le_bytes).collect()
}

/// A workplace with the same texts in plain files and as tokens, and what reads the tokens.
fn workplace() -> (Workplace, Vec<String>) {
    let workplace = Workplace::new(&TEXTS);
    workplace.write("tokenizer.json", Tokenizer::bytes().to_json());
    fs::write(workplace.path().join("train.bin"), raw(&TEXTS)).unwrap();
    let folder = workplace.path().display();
    let set = vec![
        "tokenizer.kind=\"file\"".to_owned(),
        format!("tokenizer.path='{folder}/tokenizer.json'"),
        "tokenizer.end_of_text=\"<|endoftext|>\"".to_owned(),
        format!("data.source=[{{ name = 'tokens', tokens = ['{folder}/*.bin'] }}]"),
    ];
    (workplace, set)
}

fn config(workplace: &Workplace, set: &[String]) -> RunConfig {
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    workplace.config(&set)
}

fn documents(set: &TokenSet) -> Vec<Vec<u32>> {
    let documents = (0..set.documents()).map(|number| {
        let mut tokens = Vec::new();
        set.read(set.document(number).unwrap().tokens, &mut tokens)
            .unwrap();
        tokens
    });
    documents.collect()
}

#[test]
fn tokens_are_prepared_as_the_text_that_they_are_of() {
    let (workplace, set) = workplace();
    let tokens = prepare(&config(&workplace, &set), false).unwrap();
    let text = prepare(&config(&workplace, &set[..3]), false).unwrap();
    assert_eq!(documents(&tokens.training[0]), documents(&text.training[0]));
    assert_eq!(
        documents(&tokens.validation[0].set),
        documents(&text.validation[0].set)
    );
    assert_eq!(tokens.sources[0].text, text.sources[0].text);
    assert_eq!(tokens.held_out, text.held_out);
    // What is held out can be evaluated as text, and gives the same.
    let file = [tokens.validation_text()];
    let read = PackedText::read(&tokens.tokenizer, &file, TEXT_FIELD, None).unwrap();
    let parts = tokens.validation(8, u64::MAX).unwrap();
    assert!(
        read.windows(8)
            .eq(parts[0].windows.iter().map(Vec::as_slice))
    );
    assert_eq!(parts[0].bytes, read.bytes());

    // They are found again, and other tokens of the same file name are not.
    assert_eq!(
        prepare(&config(&workplace, &set), false)
            .unwrap()
            .content_hash,
        tokens.content_hash
    );
    fs::write(workplace.path().join("train.bin"), raw(&TEXTS[1..])).unwrap();
    assert_ne!(
        prepare(&config(&workplace, &set), false)
            .unwrap()
            .content_hash,
        tokens.content_hash
    );
}

#[test]
fn the_tokenizer_decides_what_tokens_are_of() {
    let (workplace, set) = workplace();
    workplace.age("train.bin", 60);
    let before = prepare(&config(&workplace, &set), false).unwrap();
    // The same file of tokens, unchanged: but what ended a document is a letter now, and ends none.
    let mut json: serde_json::Value = serde_json::from_str(Tokenizer::bytes().to_json()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    added.push(added[0].clone());
    added[1]["id"] = 257.into();
    added[1]["content"] = "<end>".into();
    workplace.write("tokenizer.json", &json.to_string());
    let mut other = set.clone();
    other[2] = "tokenizer.end_of_text=\"<end>\"".to_owned();
    let error = prepare(&config(&workplace, &other), false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is 256, the special token \"<|endoftext|>\" within a document"),
        "{error}"
    );
    assert!(
        error.hint().unwrap().contains("tokenizer.end_of_text"),
        "{error}"
    );
    let special = [
        &other[..],
        &[
            "data.special_tokens=true".to_owned(),
            "data.validation.fraction=0.999".to_owned(),
        ],
    ]
    .concat();
    let error = prepare(&config(&workplace, &special), false).unwrap_err();
    // All of the file is one document by now.
    assert!(
        matches!(error, DataError::OneSided { documents: 1, .. }),
        "{error}"
    );
    assert_eq!(
        before.sources[0].text.documents + before.held_out.documents,
        TEXTS.len() as u64
    );
}

#[test]
fn what_is_wrong_with_a_document_is_left_out_or_ends_the_run() {
    let (workplace, set) = workplace();
    let mut bytes = raw(&TEXTS);
    bytes[3] = 7;
    fs::write(workplace.path().join("train.bin"), &bytes).unwrap();
    let error = prepare(&config(&workplace, &set), false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("train.bin: token 2, at byte 2, is 1903, and the tokenizer has 257 ids"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 1);
    let mut skip = set.clone();
    skip[3] = skip[3].replace(" }]", ", on_error = 'skip' }]");
    let prepared = prepare(&config(&workplace, &skip), false).unwrap();
    let found = prepared.sources[0].text.documents + prepared.held_out.documents;
    assert_eq!(found, TEXTS.len() as u64 - 1);
}
