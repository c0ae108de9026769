use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;

use super::super::documents;
use super::*;

/// A text in its own column, one within another column, and a number.
const SCHEMA: &str = "message rows {
    required binary text (UTF8);
    optional group inner { optional binary text (UTF8); }
    required int64 number;
    repeated binary list (UTF8);
}";

const TEXTS: [&str; 3] = ["one", "", "drei ✓"];

/// Writes two groups of the same three rows, whose second one has no inner text.
fn write(path: &Path, compression: Compression) {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let bytes = |texts: &[&str]| {
        texts
            .iter()
            .map(|&text| ByteArray::from(text))
            .collect::<Vec<_>>()
    };
    for _ in 0..2 {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&bytes(&TEXTS), None, None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let (inner, levels) = (bytes(&["a", "c"]), [2, 1, 2]);
        column
            .typed::<ByteArrayType>()
            .write_batch(&inner, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int64Type>()
            .write_batch(&[1, 2, 3], None, None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&[], Some(&[0; 3]), Some(&[0; 3]))
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn texts(path: &Path, column: &str) -> Vec<Result<String, String>> {
    let rows = Rows::open(path, column).unwrap();
    rows.map(|row| row.map(|row| row.text).map_err(|error| error.to_string()))
        .collect()
}

#[test]
fn rows_are_documents() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
        write(&path, compression);
        let twice = [TEXTS, TEXTS].concat();
        let found: Vec<String> = texts(&path, "text")
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(found, twice);
        let inner = texts(&path, "inner.text");
        assert_eq!(
            (inner[0].as_deref(), inner[5].as_deref()),
            (Ok("a"), Ok("c"))
        );
        assert!(
            inner[4]
                .as_ref()
                .unwrap_err()
                .ends_with("a.parquet:5: no text"),
            "{inner:?}"
        );
    }
    let first = documents(&path, "text").unwrap().next().unwrap().unwrap();
    assert!(first.name.ends_with("a.parquet:1"), "{}", first.name);
}

#[test]
fn the_column_of_that_very_name_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let schema = "message rows { required group a { required binary t (UTF8); } required binary a.t (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for text in ["in", "own"] {
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&[ByteArray::from(text)], None, None)
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    assert_eq!(texts(&path, "a.t"), [Ok("own".to_owned())]);
}

#[test]
fn what_is_no_column_of_text_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, Compression::SNAPPY);
    for (column, expected) in [
        ("texts", "column \"texts\" does not exist"),
        ("number", "column \"number\" is not a column of text"),
        ("list", "column \"list\" is not a column of text"),
    ] {
        let error = Rows::open(&path, column).unwrap_err();
        assert!(error.to_string().ends_with(expected), "{error}");
        let fields = error.other_fields("--field NAME").unwrap();
        assert!(
            fields.ends_with("this file has \"text\", \"inner.text\""),
            "{fields}"
        );
    }
    fs::write(&path, b"PAR1").unwrap();
    let error = Rows::open(&path, "text").unwrap_err().to_string();
    assert!(error.contains("cannot be read as Parquet"), "{error}");
}

#[test]
fn a_panic_of_the_library_is_an_error() {
    assert_eq!(guarded(|| Ok(3)), Ok(3));
    assert_eq!(
        guarded::<()>(|| panic!("no pages")),
        Err("no pages".to_owned())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Damaged pages, and files that are cut off, give rows or an error, and end.
    #[test]
    fn damage_ends(place: prop::sample::Index, value: u8, cut: Option<prop::sample::Index>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, Compression::SNAPPY);
        let mut bytes = fs::read(&path).unwrap();
        // The pages come before the metadata, whose length stands before the last four bytes.
        let length = bytes.len();
        let of_metadata = u32::from_le_bytes(bytes[length - 8..length - 4].try_into().unwrap());
        let pages = length - 8 - of_metadata as usize;
        bytes[place.index(pages)] = value;
        if let Some(cut) = cut {
            bytes.truncate(cut.index(length));
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(rows) = Rows::open(&path, "text") {
            prop_assert!(rows.take(10_000).count() < 10_000);
        }
    }
}
