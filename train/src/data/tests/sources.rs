//! Sources: their shares, and what is wrong with them.

use firebox_console::advice::Advise as _;
use firebox_console::durable::FileError;

use super::super::*;
use super::{TEXTS, Workplace};

#[test]
fn two_sources_are_seen_in_proportion_to_their_weights() {
    let workplace = Workplace::new(&TEXTS);
    workplace.write("other.md", "One document more, in Markdown.");
    let pattern = workplace.path().join("*.md").display().to_string();
    let mut config = workplace.config(&["data.source.0.weight=3.0", "data.validation.by=\"tail\""]);
    let mut other = config.data.source[0].clone();
    other.text.name = "other".to_owned();
    other.text.kind = crate::config::SourceKind::Files {
        files: vec![pattern],
    };
    other.share = Share::Weight(1.0);
    config.data.source.push(other);
    let prepared = prepare(&config, false).unwrap();
    assert_eq!(
        prepared
            .sources
            .iter()
            .map(|source| source.part)
            .collect::<Vec<_>>(),
        [0.75, 0.25]
    );
    assert!(prepared.training_stream(8, 0, 10_000).is_ok());
}

#[test]
fn a_field_that_is_missing_is_named_with_those_that_are_there() {
    let workplace = Workplace::new(&[]);
    workplace.write("lines.jsonl", "{\"id\": 1, \"content\": \"a text\"}\n");
    let lines = format!(
        "data.source=[{{ name = 'lines', jsonl = ['{}/*.jsonl'] }}]",
        workplace.path().display()
    );
    let error = prepare(&workplace.config(&[&lines]), false).unwrap_err();
    assert_eq!(
        error.hint().unwrap(),
        "field = \"NAME\" in the source names the field with the text; this line has \"id\", \"content\"; \
         on_error = \"skip\" leaves such documents out"
    );
}

#[test]
fn faults_of_the_configuration_are_told_apart() {
    let one = Workplace::new(&["a single document"]);
    let error = prepare(&one.config(&[]), false).unwrap_err();
    assert!(
        matches!(error, DataError::OneSided { .. }) && error.exit_code() == 2,
        "{error}"
    );
    assert!(error.hint().unwrap().contains("tail"), "{error}");

    let empty = Workplace::new(&["", ""]);
    let error = prepare(&empty.config(&[]), false).unwrap_err();
    assert!(
        matches!(error, DataError::EmptySource { .. }) && error.exit_code() == 2,
        "{error}"
    );

    let none = Workplace::new(&[]);
    let error = prepare(&none.config(&[]), false).unwrap_err();
    assert!(
        error.to_string().contains("*.txt\" matches no file"),
        "{error}"
    );

    let workplace = Workplace::new(&TEXTS);
    let prepared = prepare(&workplace.config(&[]), false).unwrap();
    let error = prepared.training_stream(8, 0, 1000).unwrap_err();
    assert!(
        matches!(error, DataError::TooLittle { needed: 1000, .. }),
        "{error}"
    );

    workplace.write("cache-file", "");
    let path = workplace
        .path()
        .join("cache-file")
        .join("below")
        .display()
        .to_string();
    let error = prepare(&workplace.config(&[&format!("data.cache='{path}'")]), false).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::Io(FileError {
                action: "create",
                ..
            })
        ) && error.exit_code() == 1,
        "{error}"
    );
}
