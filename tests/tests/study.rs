//! A study and a report through the binary: the same steps for all, what is interrupted or added continues, and the numbers are
//! those of the runs.

use std::fs;

use serde_json::Value;

use firebox_tests::binaries;
use firebox_tests::runs::TestRun;

/// Two variants of the small run for 600 tokens each: batches of 64, 64, 96, 96, … tokens.
fn study(test: &TestRun, seeds: &str) -> String {
    let text = format!(
        "config = '{}'\nseeds = {seeds}\ntokens = 600\nset = ['train.validate_every=2']\n\
         [[variant]]\nname = 'mixture'\n\
         [[variant]]\nname = 'dense'\nset = ['model.feed_forward=dense']\n",
        test.argument("run.toml")
    );
    fs::write(test.path("study.toml"), text).unwrap();
    test.argument("study.toml")
}

fn train(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = binaries::train(arguments)
        .output()
        .expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// The last held-out loss that a run has written.
fn last_loss(test: &TestRun, run: &str) -> f64 {
    let text = fs::read_to_string(test.path(run).join("metrics.jsonl")).unwrap();
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let validation = lines.rfind(|line| line["kind"] == "validation");
    validation.unwrap()["nats_per_token"].as_f64().unwrap()
}

#[test]
fn variants_are_compared_seed_by_seed() {
    let test = TestRun::new();
    let (file, out, page) = (
        study(&test, "[0, 1]"),
        test.argument("study"),
        test.argument("study.html"),
    );
    let (code, text, log) = train(&["study", &file, "--out", &out, "--json", "--html", &page]);
    assert_eq!(code, Some(0), "{log}");
    let result: Value = serde_json::from_str(&text).unwrap();
    let [mixture, dense] = &result["compared"].as_array().unwrap()[..] else {
        panic!("{text}")
    };
    for (variant, name) in [(mixture, "mixture"), (dense, "dense")] {
        let losses = [0, 1].map(|seed| last_loss(&test, &format!("study/{name}-{seed}")));
        assert_eq!(variant["loss"]["values"], serde_json::json!(losses));
        let tokens = variant["tokens"].as_u64().unwrap();
        assert!((500..=600).contains(&tokens), "{tokens}");
    }
    assert_eq!(mixture["difference"], Value::Null);
    let [first, second] = [0, 1].map(|seed| {
        let of = |variant: &Value| variant["loss"]["values"][seed].as_f64().unwrap();
        of(dense) - of(mixture)
    });
    assert_eq!(
        dense["difference"]["values"],
        serde_json::json!([first, second])
    );
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("Held-out loss over seconds") && page.contains("mixture-1, layer 0"));

    // What is there is not trained again, a seed more is, and another study does not take its place.
    let metrics = || fs::read(test.path("study/dense-1/metrics.jsonl")).unwrap();
    let before = metrics();
    let (code, text, log) = train(&["study", &study(&test, "[0, 1, 2]"), "--out", &out]);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(metrics(), before);
    assert!(
        text.contains("3 seeds") && text.contains("dense is "),
        "{text}"
    );
    let (code, _, log) = train(&["study", &file, "--out", &out, "--tokens", "900"]);
    assert_eq!(code, Some(2), "{log}");
    assert!(
        log.contains("begun with other values of tokens") && log.contains("--out DIR"),
        "{log}"
    );

    // The report has the same runs.
    let [run, other] = ["study/mixture-0", "study/dense-0"].map(|run| test.argument(run));
    let (code, text, log) = train(&["report", &run, &other]);
    assert_eq!(code, Some(0), "{log}");
    let loss = format!("{:.4}", last_loss(&test, "study/dense-0"));
    assert!(
        text.contains(&loss) && text.contains("dense-0 differs from mixture-0"),
        "{text}"
    );
}

#[test]
fn a_variant_that_diverges_is_a_result() {
    let test = TestRun::new();
    let file = study(&test, "[0, 1]");
    let wild = "[[variant]]\nname = 'wild'\nset = ['optimizer.learning_rate=1e30']\n";
    fs::write(&file, fs::read_to_string(&file).unwrap() + wild).unwrap();
    let out = test.argument("study");
    let (code, text, log) = train(&["study", &file, "--out", &out]);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("wild, seed 0: step"), "{log}");
    assert!(log.contains("the study goes on"), "{log}");
    assert!(text.contains("wild diverged with seeds 0, 1"), "{text}");
    assert!(text.contains("dense is "), "{text}");
    // When it is asked for again, runs that diverged do so again.
    let (code, text, log) = train(&["study", &file, "--out", &out, "--json"]);
    assert_eq!(code, Some(0), "{log}");
    let result: Value = serde_json::from_str(&text).unwrap();
    let [mixture, _, wild] = &result["compared"].as_array().unwrap()[..] else {
        panic!("{text}")
    };
    assert_eq!(mixture["diverged"], serde_json::json!([]));
    assert_eq!(wild["diverged"], serde_json::json!([0, 1]));
    for key in ["loss", "difference", "speed_up"] {
        assert_eq!(wild[key], Value::Null, "{key}");
    }
}

#[test]
fn what_a_study_cannot_do_is_said_before_it_trains() {
    let test = TestRun::new();
    let file = study(&test, "[0]");
    let out = test.argument("study");
    let fails = |file: &str, more: &[&str], expected: &str| {
        let (code, _, log) = train(&[&["study", file, "--out", &out][..], more].concat());
        assert_eq!(code, Some(2), "{log}");
        assert!(log.contains(expected), "{log}");
        assert!(!test.path("study/mixture-0").exists());
    };
    fails(
        &file,
        &["--tokens", "10"],
        "10 tokens are too few for a step",
    );
    fails(
        &file,
        &["--tokens", "9", "--seconds", "1"],
        "cannot be used with",
    );
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("=dense", "=thick")).unwrap();
    fails(&file, &[], "variant \"dense\"");
}
