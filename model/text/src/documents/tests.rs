//! What Python's `json` and Hugging Face's datasets make of the same bytes was looked up with them; the values here are
//! theirs where a comment does not say otherwise.

use firebox_console::advice::Advise as _;
use proptest::prelude::*;

use super::*;

fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    (folder, path)
}

/// The documents of a file; errors without the folder, and with their hint.
fn results(name: &str, content: &[u8]) -> Vec<Result<String, String>> {
    let (folder, path) = file(name, content);
    let base = format!("{}/", folder.path().display());
    let sentence = |error: TextError| {
        let hint = error.hint().unwrap_or_default();
        format!("{error} | {hint}").replace(&base, "")
    };
    match documents(&path, TEXT_FIELD) {
        Ok(documents) => documents
            .map(|document| document.map(|d| d.text).map_err(sentence))
            .collect(),
        Err(error) => vec![Err(sentence(error))],
    }
}

fn texts(name: &str, content: &[u8]) -> Vec<String> {
    let results = results(name, content);
    results.into_iter().map(Result::unwrap).collect()
}

/// The one error of a file.
fn error(name: &str, content: &[u8]) -> String {
    let results = results(name, content);
    assert_eq!(results.len(), 1, "{results:?}");
    results[0].clone().unwrap_err()
}

#[test]
fn each_json_line_is_a_document_and_any_other_file_is_one_document() {
    let content = "{\"text\": \"one\"}\n\n{\"id\": 2, \"text\": \"tw\\u00f6\\n\"}";
    for name in ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.Json"] {
        assert_eq!(texts(name, content.as_bytes()), ["one", "twö\n"], "{name}");
    }
    let (_folder, path) = file("a.jsonl", content.as_bytes());
    let last = documents(&path, TEXT_FIELD).unwrap().last().unwrap();
    assert!(last.unwrap().name.ends_with("a.jsonl:3"));
    assert_eq!(texts("a.txt", content.as_bytes()), [content]);
}

#[test]
fn a_dot_leads_into_objects() {
    let found = |line: &str, field: &str| {
        let found = json::string_field(line, field);
        found.map_err(|fault| fault.describe(line, field))
    };
    let line =
        r#"{"id": 1, "a": {"t": "in", "u": {"v": "deep"}}, "b.c": {"t": "dotted"}, "d": null}"#;
    for (field, expected) in [
        ("a.t", Ok("in")),
        ("a.u.v", Ok("deep")),
        ("b.c.t", Ok("dotted")),
        (
            "a",
            Err("field \"a\" is not a string but an object at column 16"),
        ),
        (
            "a.u",
            Err("field \"a.u\" is not a string but an object at column 33"),
        ),
        (
            "a.x",
            Err(
                "the object at column 1 has no field \"a.x\", only \"id\", \"a.t\", \"a.u\", \"b.c\", \"d\"",
            ),
        ),
        (
            "d.t",
            Err("the object at column 1 has no field \"d.t\", only \"id\", \"a\", \"b.c\", \"d\""),
        ),
    ] {
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(found(line, field), expected, "{field}");
    }
    for (line, expected) in [
        // The field of that very name counts, wherever it stands; of equal names, the last.
        (r#"{"a.t": "own", "a": {"t": "in"}}"#, Some("own")),
        (r#"{"a": {"t": "in"}, "a.t": "own"}"#, Some("own")),
        (r#"{"a": {"t": "1"}, "a": {"t": "2"}}"#, Some("2")),
        (r#"{"a": {"t": "1"}, "a": {"u": "2"}}"#, None),
        (r#"{"a": {"t": "1"}, "a": 2}"#, None),
        (r#"{"a": {}}"#, None),
        (r#"{"\u0061": {"\u0074": "escaped"}}"#, Some("escaped")),
    ] {
        assert_eq!(found(line, "a.t").ok().as_deref(), expected, "{line}");
    }
    let empty = found(r#"{"a": {}}"#, "a.t").unwrap_err();
    assert_eq!(
        empty,
        "the object at column 1 has no field \"a.t\", only \"a\""
    );
}

#[test]
fn json_of_one_value_is_a_text_and_an_array_of_objects_is_refused() {
    for content in [
        "{\n  \"text\": \"one\"\n}\n",
        "[1,\n 2]\n",
        "[]",
        "nothing",
        "\"a\"\n",
    ] {
        assert_eq!(texts("a.json", content.as_bytes()), [content]);
    }
    for content in [
        "[{\"text\": \"one\"}]",
        "[\n  {\n    \"text\": \"one\"\n  }\n]\n",
    ] {
        for name in ["a.json", "a.jsonl"] {
            let error = error(name, content.as_bytes());
            let start =
                format!("{name} is one JSON array, not JSON lines | `jq -c '.[]' {name} > ");
            assert!(error.starts_with(&start), "{error}");
        }
    }
    let pretty = error("a.jsonl", b"{\n  \"text\": \"one\"\n}\n");
    assert!(
        pretty.starts_with(
            "a.jsonl is one JSON value over several lines, not JSON lines | `jq -c . a.jsonl > a.lines.jsonl`"
        ),
        "{pretty}"
    );
    // Lines that are arrays are lines.
    assert_eq!(results("a.jsonl", b"[1]\n[2]\n").len(), 2);
}

#[test]
fn errors_contain_the_line_and_the_column_or_the_byte() {
    let content = b"{\"text\": \"one\"}\n{\"text\": 1}\n {}\nnot\n{\"text\": \"\xFF\"}\n{\"id\": 1, \"body\": \"a\"}\n\
        {\"text\": \"a\\ud83d\"}\n{\"text\": \"a\n{\"text\": \"a\"} {}\n{\"text\": \"a\0\"}\n[1]\n{\"text\": \"a\",}\n{\"a\": 01}\n";
    let found: Vec<String> = results("a.jsonl", content)
        .into_iter()
        .filter_map(Result::err)
        .map(|error| error.split(" | ").next().unwrap().to_owned())
        .collect();
    assert_eq!(
        found,
        [
            "a.jsonl:2: field \"text\" is not a string but a number at column 10",
            "a.jsonl:3: the object at column 2 is empty: it has no field \"text\"",
            "a.jsonl:4: invalid JSON at column 1: expected a value, found 'n'",
            "a.jsonl: invalid UTF-8 at byte 46",
            "a.jsonl:6: the object at column 1 has no field \"text\", only \"id\", \"body\"",
            "a.jsonl:7: field \"text\" has half of a surrogate pair at column 12, which is not a character",
            "a.jsonl:8: invalid JSON at column 12: the line ends within a string",
            "a.jsonl:9: invalid JSON at column 15: expected the end of the line, found '{'",
            "a.jsonl:10: invalid JSON at column 12: expected no control character within a string, found '\\0'",
            "a.jsonl:11: expected an object with a field \"text\" at column 1, found an array",
            "a.jsonl:12: invalid JSON at column 14: expected a key in double quotes, found '}'",
            "a.jsonl:13: invalid JSON at column 8: expected `,` or `}`, found '1'",
        ]
    );
    let latin = error("a.txt", b"caf\xE9");
    assert!(
        latin.starts_with("a.txt: invalid UTF-8 at byte 3 | ") && latin.contains("iconv"),
        "{latin}"
    );
}

#[test]
fn only_the_wanted_field_has_to_fit() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let long = "1".repeat(5000);
    for value in [
        "NaN",
        "-Infinity",
        "[Infinity, {\"b\": NaN}]",
        "1e999",
        "-1E-999",
        &long,
        "null",
        "{}",
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        &deep,
        " [ ] ",
        "{\"text\": 1}",
    ] {
        for line in [
            format!("{{\"a\": {value}, \"text\": \"one\"}}"),
            format!("{{\"text\":\"one\",\"a\":{value}}}\r\n"),
        ] {
            assert_eq!(texts("a.jsonl", line.as_bytes()), ["one"], "{value:.20}");
        }
    }
    // PyArrow refuses equal keys; for Python's `json` the last one counts.
    let line = b"{\"text\": 1, \"te\\u0078t\": \"a\\u0000\\ud83d\\ude00\"}";
    assert_eq!(texts("a.jsonl", line), ["a\0\u{1F600}"]);
}

#[test]
fn a_byte_order_mark_is_passed_over_in_json_and_stays_in_text() {
    let mark = "\u{FEFF}";
    let content = format!("{mark}{{\"text\": \"one\"}}\r\n{{\"text\": \"{mark}two\"}}");
    for name in ["a.jsonl", "a.json"] {
        assert_eq!(texts(name, content.as_bytes()), ["one", "\u{FEFF}two"]);
    }
    assert_eq!(texts("a.txt", content.as_bytes()), [content]);
    let within = format!("{{\"text\": \"one\"}}\n{mark}{{\"text\": \"two\"}}");
    let error = results("a.jsonl", within.as_bytes())[1]
        .clone()
        .unwrap_err();
    assert!(
        error.contains("a.jsonl:2: invalid JSON at column 1"),
        "{error}"
    );
}

#[test]
fn what_is_not_text_is_named() {
    let wide = |text: &str, big: bool| -> Vec<u8> {
        let bytes = |unit: u16| {
            if big {
                unit.to_be_bytes()
            } else {
                unit.to_le_bytes()
            }
        };
        text.encode_utf16().flat_map(bytes).collect()
    };
    let mut tar = vec![b'a'; 600];
    tar[257..262].copy_from_slice(b"ustar");
    for (name, content, what, hint) in [
        (
            "a.jsonl.lz4",
            b"\x04\x22\x4D\x18\x64".to_vec(),
            "compressed with lz4",
            "`lz4 -dc a.jsonl.lz4 > a.jsonl`",
        ),
        (
            "a.jsonl",
            b"\x04\x22\x4D\x18\x64".to_vec(),
            "compressed with lz4",
            "`lz4 -dc < a.jsonl > a.plain.jsonl`",
        ),
        (
            "a b.txt.xz",
            b"\xFD7zXZ\0\0".to_vec(),
            "compressed with xz",
            "`xzcat 'a b.txt.xz' > 'a b.txt'`",
        ),
        (
            "a.bz2",
            b"BZh91AY&SY".to_vec(),
            "compressed with bzip2",
            "`bzcat a.bz2 > a`",
        ),
        (
            "a.xz",
            b"\xFD7zXZ\0\0".to_vec(),
            "compressed with xz",
            "`xzcat a.xz > a`",
        ),
        (
            "a.zip",
            b"PK\x03\x04".to_vec(),
            "a zip archive",
            "`unzip a.zip`",
        ),
        ("a.tar", tar, "a tar archive", "`tar -xf a.tar`"),
        (
            "a.rows",
            b"PAR1\x15\x04".to_vec(),
            "a Parquet file",
            "parquet = [",
        ),
        (
            "a.arrow",
            b"\xFF\xFF\xFF\xFF\x10\0".to_vec(),
            "an Arrow file",
            "Dataset.from_file('",
        ),
        (
            "a.feather",
            b"ARROW1\0\0".to_vec(),
            "an Arrow file",
            "pandas.read_feather('",
        ),
        (
            "a.pdf",
            b"%PDF-1.7\n".to_vec(),
            "a PDF",
            "`pdftotext a.pdf a.txt`",
        ),
        (
            "a.db",
            b"SQLite format 3\0".to_vec(),
            "an SQLite database",
            "sqlite3 -json a.db",
        ),
        (
            "a.txt",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "a pointer of Git LFS",
            "`git lfs pull`",
        ),
        (
            "a.jsonl",
            wide("\u{FEFF}{\"text\": 1}", false),
            "UTF-16, not UTF-8",
            "`iconv -f utf-16 -t utf-8 a.jsonl > a.utf8.jsonl`",
        ),
        (
            "a.txt",
            wide("\u{FEFF}one", true),
            "UTF-16, not UTF-8",
            "`iconv -f utf-16 -t utf-8 ",
        ),
        (
            "a.json",
            wide("{\"text\"", false),
            "UTF-16, not UTF-8",
            "`iconv -f utf-16le -t utf-8 ",
        ),
        (
            "a.txt",
            wide("one two", true),
            "UTF-16, not UTF-8",
            "`iconv -f utf-16be -t utf-8 ",
        ),
        (
            "a.txt",
            b"\xFF\xFE\0\0o\0\0\0".to_vec(),
            "UTF-32, not UTF-8",
            "`iconv -f utf-32 -t utf-8 ",
        ),
    ] {
        let error = error(name, &content);
        assert!(error.starts_with(&format!("{name} is {what}")), "{error}");
        assert!(error.contains(hint), "{error}");
    }
    for text in [
        "BZh",
        "PAR1 is a magic number",
        "%PDF",
        "PK",
        "a\0b",
        "ARROW1",
        "SQLite format 3",
    ] {
        assert_eq!(texts("a.txt", text.as_bytes()), [text]);
    }
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_named_with_its_target() {
    let folder = tempfile::tempdir().unwrap();
    for (name, target) in [("a.txt", "/nowhere/gone"), ("b.jsonl", "b.jsonl")] {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink(target, &path).unwrap();
        let error = documents(&path, TEXT_FIELD).map(drop).unwrap_err();
        let expected = format!(
            "{} is a link to {target}, which does not exist",
            path.display()
        );
        assert_eq!(error.to_string(), expected);
    }
}

/// Pieces of JSON lines, right and wrong.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        &b"{"[..],
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\"text\"",
        b"\"text\":\"a\"",
        b"{\"text\": \"a\"}\n",
        b"\"\\ud83d\"",
        b"\"",
        b"\\",
        b"\\u00",
        b"NaN",
        b"-",
        b"1",
        b"0",
        b".",
        b"e",
        b"Infinity",
        b"null",
        b"\n",
        b"\r\n",
        b" ",
        b"\0",
        b"\xEF\xBB\xBF",
        b"\xFF",
        b"\xC3\xA9",
        b"{\"a\": ",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Every line with content is a document or an error that says where.
    #[test]
    fn any_bytes_are_documents_or_errors_with_a_place(content in pieces()) {
        for result in results("a.jsonl", &content) {
            if let Err(error) = result {
                let has_place = error.contains("at column ") || error.contains("at byte ");
                prop_assert!(has_place || error.starts_with("a.jsonl is "), "{error}");
            }
        }
        let _ = results("a.json", &content);
    }

    /// What `serde_json` reads is read, and with the same result.
    #[test]
    fn what_serde_reads_is_read_alike(content in pieces()) {
        let Ok(line) = str::from_utf8(&content) else { return Ok(()) };
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(line) {
            let expected = value.get("text").and_then(serde_json::Value::as_str);
            let found = json::string_field(line, "text");
            prop_assert_eq!(found.as_deref().ok(), expected);
            let inner = value.get("a").and_then(|inner| inner.get("text"));
            let found = json::string_field(line, "a.text");
            prop_assert_eq!(found.as_deref().ok(), inner.and_then(serde_json::Value::as_str));
        }
    }
}
