use std::fs;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use firebox_console::advice::Advise;
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::device;
use firebox_runtime::testing::values;

use super::*;
use crate::InferError;
use crate::engine::Engine;
use crate::testing::{TinyCheckpoint, tiny_config};

fn engine() -> Engine {
    let checkpoint = TinyCheckpoint::new(&tiny_config(), 3);
    Engine::open(
        checkpoint.path(),
        &[],
        device::default_name(),
        WeightDtype::F32,
    )
    .unwrap()
}

fn scored(engine: &Engine, text: &str, batch: usize) -> Result<Report, InferError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.jsonl");
    fs::write(&path, text).unwrap();
    let items = read(&path)?;
    score(
        engine,
        &mut *engine.network(),
        (&path, &items),
        batch,
        |_| (),
    )
}

/// Log-likelihood of the bytes after `before` ones by a forward pass, and whether each is the likeliest.
fn by_forward(engine: &Engine, text: &str, before: usize) -> (f64, bool) {
    let ids = engine.prompt(text).unwrap();
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    let count = ids.len();
    let device = engine.model.device();
    let tokens = Tensor::<1, Int>::from_data(TensorData::new(ids.clone(), [count]), &device);
    let logits = engine
        .model
        .forward(tokens.reshape([1, count as i32]))
        .logits
        .reshape([count as i32, -1]);
    let likely = values(log_softmax(logits, 1));
    let vocabulary = likely.len() / count;
    let mut found = (0.0, true);
    for place in before..count {
        let row = &likely[(place - 1) * vocabulary..place * vocabulary];
        let own = row[ids[place] as usize];
        found.0 += f64::from(own);
        found.1 &= row.iter().all(|&other| other <= own);
    }
    found
}

const TASKS: &str = r#"{"id": 7, "question": "two and two", "choices": ["four", "a fish", "no"], "answer": "A"}
{"question": "one ", "choices": ["x", "y"], "answer": 1}

{"context": "Once upon a", "continuation": " time"}
"#;

#[test]
fn scores_are_those_of_a_forward_pass() {
    let engine = engine();
    let report = scored(&engine, TASKS, 1).unwrap();
    let expected = [
        ("two and two four", 11),
        ("two and two a fish", 11),
        ("two and two no", 11),
        // The space at the end of the question and the one before the choice.
        ("one  x", 3),
        ("one  y", 3),
        ("Once upon a time", 11),
    ];
    let found = report
        .items
        .iter()
        .flat_map(|item| item.log_likelihoods.iter().zip(&item.is_greedy));
    for ((nats, is_greedy), (text, before)) in found.zip(expected) {
        let (of_forward, greedy) = by_forward(&engine, text, before);
        // Sums of up to seven numbers in f32.
        assert!(
            (nats - of_forward).abs() < 1e-4,
            "{text}: {nats}, {of_forward}"
        );
        assert_eq!(*is_greedy, greedy, "{text}");
    }
    let lines: Vec<usize> = report.items.iter().map(|item| item.line).collect();
    assert_eq!(lines, [1, 2, 4]);
    assert_eq!(report.items[0].answer, Some(0));

    let first = &report.items[0];
    let by_length = first
        .log_likelihoods
        .iter()
        .zip([4.0, 6.0, 2.0])
        .map(|(nats, length)| nats / length);
    let best = by_length
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(place, _)| place);
    assert_eq!(first.chosen_by_length, best);
    let choices = report.choices.as_ref().unwrap();
    let right = report
        .items
        .iter()
        .filter(|item| item.answer.is_some() && item.chosen == item.answer);
    assert_eq!(choices.accuracy.value, right.count() as f64 / 2.0);
    assert!((choices.chance - (1.0 / 3.0 + 0.5) / 2.0).abs() < 1e-12);

    let together = scored(&engine, TASKS, 4).unwrap();
    for (one, other) in report.items.iter().zip(&together.items) {
        for (one, other) in one.log_likelihoods.iter().zip(&other.log_likelihoods) {
            assert!((one - other).abs() < 1e-4);
        }
    }
}

#[test]
fn a_context_may_be_empty_or_too_long() {
    let engine = engine();
    let context = "x".repeat(100);
    let lines = format!(
        "{{\"context\": \"\", \"continuation\": \"ab\"}}\n{{\"context\": \"{context}\", \"continuation\": \"yz\"}}\n"
    );
    let report = scored(&engine, &lines, 2).unwrap();
    assert_eq!(
        (&report.items[0].tokens, &report.items[1].tokens),
        (&vec![2], &vec![2])
    );
    assert_eq!(report.cut, 1);
    // Of the long text, the model reads what fits.
    let most = engine.model.config().context_length;
    let (nats, _) = by_forward(&engine, &format!("{}yz", &context[..most - 2]), most - 2);
    assert!((report.items[1].log_likelihoods[0] - nats).abs() < 1e-4);
}

#[test]
fn a_choice_that_does_not_fit_is_an_error() {
    let long = "ab".repeat(50);
    let line =
        format!("{{\"question\": \"q\", \"choices\": [\"{long}\", \"b\"], \"answer\": 1}}\n");
    let error = scored(&engine(), &line, 1).unwrap_err().to_string();
    assert!(
        error.ends_with("tasks.jsonl:1: choice 0 has 101 tokens, and the model's context 32"),
        "{error}"
    );
}

#[test]
fn standard_errors_are_those_of_a_sample() {
    let fraction = Fraction::of(&[true, false, true, true]);
    // √(0.75 · 0.25 ÷ 3)
    assert_eq!(
        fraction,
        Fraction {
            value: 0.75,
            standard_error: Some(0.25)
        }
    );
}

#[test]
fn what_is_no_item_is_said() {
    let engine = engine();
    for (line, expected) in [
        (
            "{\"question\": \"q\"}",
            "needs `question`, `choices` and `answer`",
        ),
        (
            "{\"question\": \"q\", \"choices\": [\"a\"], \"answer\": 0}",
            "two or more texts",
        ),
        (
            "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 2}",
            "`answer` is 2, and must be a number from 0 to 1",
        ),
        (
            "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": \"C\"}",
            "`answer` is \"C\"",
        ),
        (
            "{\"context\": \"a\", \"continuation\": \"\"}",
            "`continuation` is empty",
        ),
        (
            "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": true}",
            "`answer` is true, and must be",
        ),
        ("not", "expected"),
    ] {
        let error = scored(
            &engine,
            &format!("{{\"context\": \"a\", \"continuation\": \"b\"}}\n{line}\n"),
            1,
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("tasks.jsonl:2: ") && error.to_string().contains(expected),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("an item is a line such as"));
    }
    assert!(
        scored(&engine, "\n", 1)
            .unwrap_err()
            .to_string()
            .ends_with("has no items")
    );
}
