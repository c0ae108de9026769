use std::fs;
use std::sync::LazyLock;

use firebox_console::advice::Advise as _;
use proptest::prelude::*;

use super::*;
use crate::tokenizer::tests::{TEMPLATE_BEGIN, with_post_processor};
use crate::{END_OF_TEXT, Tokenizer};

/// Ids of documents' ends and beginnings, and of another special token.
const END: u32 = 256;
const BEGIN: u32 = 257;
const OTHER: u32 = 258;

fn tokenizer() -> Tokenizer {
    let begin = serde_json::from_str(TEMPLATE_BEGIN).unwrap();
    with_post_processor(&["<s>", "<|other|>"], &begin, END_OF_TEXT)
}

static TEXTS: LazyLock<Arc<TokenTexts>> = LazyLock::new(|| Arc::new(TokenTexts::new(tokenizer())));

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// A file as nanoGPT writes it.
fn raw(ids: &[u32]) -> Vec<u8> {
    ids.iter()
        .flat_map(|&id| (id as u16).to_le_bytes())
        .collect()
}

/// A file as llm.c writes it, with ids of two or four bytes.
fn with_header(magic: u32, version: u32, ids: &[u32]) -> Vec<u8> {
    let mut header = vec![0; 4 * HEADER];
    for (place, number) in [magic, version, ids.len() as u32].into_iter().enumerate() {
        header[4 * place..4 * place + 4].copy_from_slice(&number.to_le_bytes());
    }
    match version {
        7 => header.extend(ids.iter().flat_map(|id| id.to_le_bytes())),
        _ => header.extend(raw(ids)),
    }
    header
}

fn read_with(texts: &Arc<TokenTexts>, bytes: &[u8]) -> Vec<Result<TokenDocument, TextError>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    fs::write(&path, bytes).unwrap();
    match TokenFile::open(&path, texts.clone()) {
        Ok(file) => file.collect(),
        Err(error) => vec![Err(error)],
    }
}

/// What a file has: texts, and what is said of what is wrong.
fn read(bytes: &[u8]) -> Vec<Result<String, String>> {
    let documents = read_with(&TEXTS, bytes).into_iter();
    documents
        .map(|document| match document {
            Ok(document) => {
                assert_eq!(document.ids, ids(&document.document.text));
                Ok(document.document.text)
            }
            Err(error) => {
                let error = error.to_string();
                Err(error.rsplit_once("train.bin: ").unwrap().1.to_owned())
            }
        })
        .collect()
}

fn texts(bytes: &[u8]) -> Vec<String> {
    read(bytes).into_iter().map(Result::unwrap).collect()
}

#[test]
fn documents_lie_between_the_tokens_that_begin_or_end_one() {
    let document = |before: &[u32], text: &str, after: &[u32]| [before, &ids(text), after].concat();
    let expected = ["drei ✓", "two"];
    let after = expected.map(|text| document(&[], text, &[END])).concat();
    assert_eq!(texts(&raw(&after)), expected);
    let before = expected.map(|text| document(&[END], text, &[])).concat();
    assert_eq!(texts(&with_header(20_240_520, 1, &before)), expected);
    let begun = expected.map(|text| document(&[BEGIN], text, &[])).concat();
    assert_eq!(texts(&with_header(20_240_801, 7, &begun)), expected);
    let both = expected
        .map(|text| document(&[BEGIN], text, &[END]))
        .concat();
    assert_eq!(texts(&with_header(20_240_801, 7, &both)), expected);
    // Nothing ends the only document; there is none.
    assert_eq!(texts(&raw(&ids("one"))), ["one"]);
    assert!(texts(&[]).is_empty() && texts(&raw(&[END, END])).is_empty());

    let documents = read_with(&TEXTS, &raw(&after));
    let second = documents[1].as_ref().unwrap();
    assert!(second.document.name.ends_with("train.bin:2"));
}

#[test]
fn a_document_that_is_wrong_is_an_error_of_its_own() {
    let file = [
        &ids("one")[..],
        &[END, 300, 97, 301, END],
        &[98, OTHER, END],
        &[0xC3, END],
        &ids("two"),
    ]
    .concat();
    let expected = [
        Ok("one".to_owned()),
        Err("token 5, at byte 8, is 300, and the tokenizer has 259 ids".to_owned()),
        Err(
            "token 10, at byte 18, is 258, the special token \"<|other|>\" within a document"
                .to_owned(),
        ),
        Err("the 1 tokens from token 12 on are not UTF-8 text".to_owned()),
        Ok("two".to_owned()),
    ];
    assert_eq!(read(&raw(&file)), expected);
    // A number of four bytes that no vocabulary reaches.
    let error = read(&with_header(20_240_801, 7, &[97, u32::MAX]));
    let expected = "token 2, at byte 1,028, is 4294967295, and the tokenizer has 259 ids";
    assert_eq!(error, [Err(expected.to_owned())]);

    let special = Arc::new(TokenTexts::new(tokenizer().with_special_tokens()));
    let documents = read_with(&special, &raw(&[98, OTHER, END]));
    let document = documents[0].as_ref().unwrap();
    assert_eq!(
        (&document.document.text[..], &document.ids[..]),
        ("b<|other|>", &[98, OTHER][..])
    );
}

#[test]
fn a_file_that_is_no_token_file_is_one_error() {
    let good = with_header(20_240_520, 1, &ids("one"));
    for (bytes, expected) in [
        (
            &b"abc"[..],
            "it has 3 bytes, which is not a whole number of tokens of 2 bytes",
        ),
        (
            &good[..1023],
            "it has the magic number of llm.c, 20240520, and ends within its header",
        ),
        (
            &good[..1028],
            "its header promises 3 tokens of 2 bytes, and 4 bytes follow",
        ),
        (
            &[&good[..], b"a"].concat(),
            "its header promises 3 tokens of 2 bytes, and 7 bytes follow",
        ),
        (
            &with_header(20_240_520, 2, &[]),
            "it is of version 2 of llm.c's format 20240520; version 1 is read",
        ),
        (
            &with_header(20_240_801, 1, &[]),
            "it is of version 1 of llm.c's format 20240801; version 7 is read",
        ),
        (
            &with_header(20_240_522, 1, &[]),
            "it has llm.c's multiple-choice questions, not documents",
        ),
    ] {
        assert_eq!(read(bytes), [Err(expected.to_owned())]);
    }
}

#[test]
fn tokens_of_another_tokenizer_are_found_out() {
    // Two texts with different words, and so two vocabularies.
    let [text, other] = [include_str!("tests.rs"), include_str!("../../lib.rs")];
    let [own, foreign] = [text, other].map(|text| {
        let text = std::iter::once(text.to_owned());
        Tokenizer::train_bpe(text, 1_200).unwrap()
    });
    let found = own.encode(text).unwrap();
    let own = Arc::new(TokenTexts::new(own));
    // Cut within a word, as a shard is.
    for part in [&found[..], &found[7..], &found[..found.len() - 3]] {
        let read = read_with(&own, &raw(part));
        assert_eq!(read[0].as_ref().unwrap().ids, part);
    }
    // Of another tokenizer, the same text has other ids.
    let other = foreign.encode(text).unwrap().into_iter();
    let other: Vec<u32> = other
        .filter(|&id| (id as usize) < own.vocab_size() && !own.is_boundary(id))
        .collect();
    let read = read_with(&own, &raw(&other));
    let [Err(error)] = &read[..] else {
        panic!("{read:?}");
    };
    assert!(
        error.to_string().contains("so they are of another one"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("tokenizer.path"));
}

#[test]
fn a_file_without_ends_of_documents_is_not_read_into_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    fs::write(
        &path,
        raw(&[&ids("one")[..], &[END], &ids("longer")].concat()),
    )
    .unwrap();
    let file = TokenFile::open(&path, TEXTS.clone())
        .unwrap()
        .with_longest(5);
    let found: Vec<_> = file.collect();
    assert!(found[0].is_ok());
    let error = found[1].as_ref().unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("none of 5 tokens begins or ends a document"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("end_of_text") && found.len() == 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Whatever the bytes, the result is documents whose tokens are in the file, or sentences.
    #[test]
    fn any_bytes_end_well(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), header in 0usize..3, count: bool) {
        let whole = (bytes.len().saturating_sub(1024) / [2, 2, 4][header]) as u32;
        if let Some(&(magic, version, _)) = header.checked_sub(1).map(|index| &FORMATS[index]) && bytes.len() >= 12 {
            bytes[..4].copy_from_slice(&magic.to_le_bytes());
            bytes[4..8].copy_from_slice(&version.to_le_bytes());
            if count {
                bytes[8..12].copy_from_slice(&whole.to_le_bytes());
            }
        }
        for document in read_with(&TEXTS, &bytes).into_iter().flatten() {
            prop_assert_eq!(document.ids, ids(&document.document.text));
        }
    }

    #[test]
    fn documents_are_read_as_they_were_written(
        texts in prop::collection::vec("\\PC{1,30}", 0..8), first in any::<bool>(), wide in any::<bool>(),
    ) {
        let document = |text: &String| match first {
            true => [&[END][..], &ids(text)].concat(),
            false => [&ids(text)[..], &[END]].concat(),
        };
        let all: Vec<u32> = texts.iter().flat_map(document).collect();
        let file = match wide {
            true => with_header(20_240_801, 7, &all),
            false => raw(&all),
        };
        prop_assert_eq!(super::tests::texts(&file), texts);
    }
}
