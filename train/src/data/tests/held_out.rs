//! What is held out: of training sources, and in sources of its own.

use std::fs;

use firebox_text::documents::TEXT_FIELD;
use firebox_text::packing::PackedText;

use super::super::*;
use super::{TEXTS, Workplace};
use crate::config::{Split, SplitKind};

#[test]
fn every_text_is_on_one_side_and_validation_is_what_evaluation_reads() {
    let workplace = Workplace::new(&TEXTS);
    for set in [
        &[][..],
        &["data.validation.by=\"tail\""],
        &["tokenizer.kind=\"bpe\"", "tokenizer.vocab_size=260"],
    ] {
        let prepared = prepare(&workplace.config(set), false).unwrap();
        let bytes: usize = TEXTS.iter().map(|text| text.len()).sum();
        assert_eq!(
            prepared.held_out.bytes + prepared.sources[0].text.bytes,
            bytes as u64
        );

        let file = [prepared.validation_text()];
        let read = |limit| PackedText::read(&prepared.tokenizer, &file, TEXT_FIELD, limit).unwrap();
        for context in [3, 8, 1000] {
            let parts = prepared.validation(context, u64::MAX).unwrap();
            let [part] = parts.as_slice() else {
                panic!("one source: {parts:?}");
            };
            let (whole, windows) = (read(None), part.windows.iter().map(Vec::as_slice));
            assert!(whole.windows(context).eq(windows));
            assert_eq!(
                (part.targets(), part.bytes),
                (whole.targets(), whole.bytes())
            );
            assert_eq!(part.targets(), prepared.held_out.tokens - 1);
        }
        let sample = prepared.validation(8, 17).unwrap();
        let whole = read(None);
        let windows: Vec<&[u32]> = whole.windows(8).collect();
        assert_eq!(sample[0].windows.len(), 2);
        assert!(
            sample[0]
                .windows
                .iter()
                .all(|window| windows.contains(&&window[..]))
        );
    }
}

#[test]
fn a_validation_source_is_held_out_whole_and_nothing_else_is() {
    let workplace = Workplace::new(&TEXTS);
    let held_out = ["Nothing of this is trained on.", "Nor of this: ågab."];
    let lines = held_out.map(|text| serde_json::json!({ "text": text }).to_string());
    workplace.write("held-out.jsonl", &lines.join("\n"));
    let path = workplace.path().join("held-out.jsonl");
    let own = format!(
        "data.validation.source=[{{ name = 'own', jsonl = ['{}'] }}]",
        path.display()
    );
    let config = workplace.config(&[&own, "data.validation.fraction=0"]);
    let prepared = prepare(&config, false).unwrap();
    let bytes = |texts: &[&str]| texts.iter().map(|text| text.len()).sum::<usize>() as u64;
    assert_eq!(prepared.sources.len(), 1);
    assert_eq!(prepared.sources[0].text.bytes, bytes(&TEXTS));
    assert_eq!(prepared.held_out.bytes, bytes(&held_out));
    let parts = prepared.validation(8, u64::MAX).unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part.source.as_str()).collect();
    assert_eq!(names, ["own"]);
    let file = [path.clone()];
    let read = PackedText::read(&prepared.tokenizer, &file, TEXT_FIELD, None).unwrap();
    assert!(
        read.windows(8)
            .eq(parts[0].windows.iter().map(Vec::as_slice))
    );
    assert_eq!(parts[0].bytes, read.bytes());
    // Found again, and by a resume without the files.
    let hash = &prepared.content_hash;
    assert_eq!(&prepare(&config, false).unwrap().content_hash, hash);
    fs::remove_file(&path).unwrap();
    let resumed = resume(&config, hash, false)
        .unwrap()
        .expect("the run's data");
    assert_eq!(resumed.validation(8, u64::MAX).unwrap(), parts);

    // Beside a split of the training text, and as one more source to train on, it is other data.
    workplace.write("held-out.jsonl", &lines.join("\n"));
    let both = workplace.config(&[&own, "data.validation.fraction=0.25"]);
    let both = prepare(&both, false).unwrap();
    assert_ne!(&both.content_hash, hash);
    let parts = both.validation(8, u64::MAX).unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part.source.as_str()).collect();
    assert_eq!(names, ["texts", "own"]);
    assert_eq!(
        both.held_out.bytes + both.sources[0].text.bytes,
        bytes(&TEXTS) + bytes(&held_out)
    );

    // A tokenizer is trained on training text alone.
    let bpe = [
        "tokenizer.kind=\"bpe\"",
        "tokenizer.vocab_size=270",
        "data.validation.fraction=0",
    ];
    let tokenizer = |name: &str, text: &str| {
        workplace.write(name, text);
        let path = workplace.path().join(name);
        let own = format!(
            "data.validation.source=[{{ name = 'own', files = ['{}'] }}]",
            path.display()
        );
        let config = workplace.config(&[&bpe[..], &[&own]].concat());
        prepare(&config, false)
            .unwrap()
            .tokenizer
            .to_json()
            .to_owned()
    };
    assert_eq!(
        tokenizer("1.held", "zzzzzz zzzzzz zzzzzz"),
        tokenizer("2.held", "qqqqqq qqqqqq")
    );

    workplace.write("empty.held", "");
    let path = workplace.path().join("empty.held");
    let empty = format!(
        "data.validation.source=[{{ name = 'own', files = ['{}'] }}]",
        path.display()
    );
    let error = prepare(&workplace.config(&[&empty]), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "source \"own\" is empty: it has no document with any text"
    );
}

#[test]
fn validation_documents_that_are_trained_on_are_counted() {
    let workplace = Workplace::new(&TEXTS);
    // Two copies, one of them twice, and what only resembles a text.
    let documents = [TEXTS[0], "new", TEXTS[3], TEXTS[0], "to  suffer"];
    let lines = documents.map(|text| serde_json::json!({ "text": text }).to_string());
    workplace.write("held-out.jsonl", &lines.join("\n"));
    workplace.write("new.md", "only new text");
    let path = workplace.path().display();
    let own = format!(
        "data.validation.source=[{{ name = 'own', jsonl = ['{path}/held-out.jsonl'] }}, \
         {{ name = 'new', files = ['{path}/*.md'] }}]"
    );
    let copies = |set: &[&str]| -> Vec<(String, u64)> {
        let prepared = prepare(&workplace.config(&[&[own.as_str()], set].concat()), false).unwrap();
        let held_out = prepared.validation.into_iter();
        held_out
            .map(|held_out| (held_out.source, held_out.copies))
            .collect()
    };
    let expected = |own| {
        let counts = [("texts", 0), ("own", own), ("new", 0)];
        counts.map(|(name, count)| (name.to_owned(), count))
    };
    let all = ["data.validation.fraction=0"];
    assert_eq!(copies(&all), expected(3));
    // Found as it was prepared.
    assert_eq!(copies(&all), expected(3));
    // Half of the text is held out, copies with it.
    let half = copies(&["data.validation.fraction=0.5"]);
    let trained_on = [TEXTS[0], TEXTS[3]].map(|text| {
        let split = Split {
            fraction: 0.5,
            by: Some(SplitKind::Hash),
        };
        let hash = super::super::hash::hash(text.as_bytes());
        super::super::split::split(text, &hash, split)
            .validation
            .is_empty()
    });
    let [first, second] = trained_on.map(u64::from);
    assert_eq!(half, expected(2 * first + second));
}
