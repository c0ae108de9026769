use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::super::{JsonLines, TextError, documents, read_within};

const LINES: &str = "{\"text\": \"one\"}\n{\"text\": \"zwei\"}\n{\"text\": \"trois\"}\n";

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &str) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 0).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// The documents of a file with these bytes, up to the first error.
fn texts(name: &str, bytes: &[u8]) -> (Vec<String>, Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let mut texts = Vec::new();
    let documents = match documents(&path, "text") {
        Ok(documents) => documents,
        Err(error) => return (texts, Some(error.to_string())),
    };
    for document in documents {
        match document {
            Ok(document) => texts.push(document.text),
            Err(error) => return (texts, Some(error.to_string())),
        }
    }
    (texts, None)
}

#[test]
fn compressed_lines_are_lines() {
    let (first, second) = LINES.split_at(20);
    for compress in [gzip, zstd] {
        // One stream, and two one after the other, as `cat` joins them.
        let joined = [compress(first), compress(second)].concat();
        for bytes in [compress(LINES), joined] {
            for name in ["a.jsonl.gz", "a.ndjson.ZST", "a.jsonl", "a.json.gz"] {
                let (texts, error) = texts(name, &bytes);
                assert_eq!(texts, ["one", "zwei", "trois"], "{name}: {error:?}");
            }
        }
        let (texts, _) = texts("a.txt.gz", &compress("a text\n"));
        assert_eq!(texts, ["a text\n"]);
    }
    // Zeros behind the members of a gzip file, but nothing else.
    let padded = [gzip(first), vec![0; 3], gzip(second), vec![0; 100_000]].concat();
    assert_eq!(texts("a.jsonl.gz", &padded).0.len(), 3);
    let (_, error) = texts(
        "a.jsonl.gz",
        &[gzip(LINES), b"\0\0garbage".to_vec()].concat(),
    );
    assert!(error.unwrap().contains("damaged or cut off"));
    // Bytes without data between frames, with which pzstd begins its files.
    let skipped = [&b"\x50\x2A\x4D\x18\x03\0\0\0abc"[..], &zstd(LINES)].concat();
    assert_eq!(texts("a.jsonl.zst", &skipped).0.len(), 3);
}

#[test]
fn what_is_cut_off_is_an_error() {
    for compress in [gzip, zstd] {
        let bytes = compress(LINES);
        for length in 6..bytes.len() {
            let (texts, error) = texts("a.jsonl.gz", &bytes[..length]);
            let error = error.unwrap_or_else(|| panic!("{length} bytes gave {texts:?}"));
            assert!(error.contains("damaged or cut off"), "{error}");
        }
    }
}

#[test]
fn more_than_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    for compress in [gzip, zstd] {
        let line = format!("{{\"text\": \"{}\"}}\n", "x".repeat(100_000));
        fs::write(&path, compress(&line)).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
        let mut lines = JsonLines::open(&path, "text").unwrap();
        assert_eq!(lines.next().unwrap().unwrap().text.len(), 100_000);
        let mut lines = JsonLines::open(&path, "text").unwrap().with_limit(1000);
        let error = lines.next().unwrap().unwrap_err();
        assert!(matches!(error, TextError::TooLarge { .. }), "{error}");
        assert!(lines.next().is_none());
        let error = read_within(&path, 1000).unwrap_err();
        assert!(
            error.to_string().contains("is larger than 1000 B"),
            "{error}"
        );
        assert_eq!(read_within(&path, 200_000).unwrap().text, line);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever a byte is changed to, the documents are the same or the last thing is an error.
    #[test]
    fn damage_ends_in_an_error(place in 0usize..60, value: u8, use_zstd: bool) {
        let mut bytes = if use_zstd { zstd(LINES) } else { gzip(LINES) };
        let place = place % bytes.len();
        bytes[place] = value;
        let (found, error) = texts("a.jsonl.gz", &bytes);
        prop_assert!(error.is_some() || found == ["one", "zwei", "trois"], "{found:?}");
    }
}
