//! The loss of a validation is that of all held-out text, whichever source it comes from.

use std::fs;

use firebox_tests::binaries;
use firebox_tests::runs::TestRun;
use serde_json::Value;

/// What differs from the usual small run, but for the sources.
const SET: [&str; 7] = [
    "model.layers=1",
    "tokenizer={ kind = 'bytes' }",
    "train.steps=40",
    "train.validate_every=20",
    "train.validation_tokens=3000",
    "schedule.batch_tokens=256",
    "checkpoint.every=20",
];

/// A folder with a source that is one sentence over and over, and one of random letters.
fn test() -> TestRun {
    let test = TestRun::new();
    let mut state = 1u64;
    let mut letter = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        char::from(b'a' + (state >> 40) as u8 % 26)
    };
    let lines = |text: &mut dyn FnMut() -> String| -> String {
        let lines = (0..100).map(|number| format!("{{\"text\": \"{number} {}\"}}\n", text()));
        lines.collect()
    };
    let easy = lines(&mut || "the kettle sings upon the hob. ".repeat(12));
    let hard = lines(&mut || (0..370).map(|_| letter()).collect());
    fs::write(test.path("easy.jsonl"), easy).unwrap();
    fs::write(test.path("hard.jsonl"), hard).unwrap();
    test
}

/// A source of a file in the test's folder, in TOML.
fn source(test: &TestRun, name: &str) -> String {
    let file = test.argument(&format!("{name}.jsonl"));
    format!("{{ name = '{name}', jsonl = ['{file}'] }}")
}

fn train(test: &TestRun, name: &str, set: &[&str]) -> (String, Vec<Value>) {
    let (config, out) = (test.argument("run.toml"), test.argument(name));
    let sources = ["easy", "hard"].map(|name| source(test, name)).join(", ");
    let sources = format!("data.source=[{sources}]");
    let mut arguments = vec!["run", &config, "--out", &out, "--set", &sources];
    for set in SET.iter().chain(set) {
        arguments.extend(["--set", set]);
    }
    let output = binaries::train(&arguments).output().expect("an end");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let metrics = fs::read_to_string(test.path(name).join("metrics.jsonl")).unwrap();
    let lines = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let validations = lines.filter(|line: &Value| line["kind"] == "validation");
    (text, validations.collect())
}

/// The loss of the last checkpoint on a file, in nats per token.
fn eval(test: &TestRun, run: &str, file: &str) -> f64 {
    let (run, file) = (test.argument(run), test.argument(file));
    let output = binaries::infer(&["eval", &run, "--data", &file, "--json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    report["nats_per_token"].as_f64().unwrap()
}

/// The prepared held-out text, by its path in the test's folder.
fn held_out(test: &TestRun) -> String {
    let folders = fs::read_dir(test.path("cache")).unwrap().flatten();
    let mut files = folders.map(|entry| entry.path().join("validation.jsonl"));
    let file = files.find(|path| path.exists()).expect("held-out text");
    file.to_str().unwrap().to_owned()
}

fn nats(value: &Value) -> f64 {
    value["nats_per_token"].as_f64().expect("a number")
}

#[test]
fn a_sample_is_of_all_sources_and_near_the_loss_of_all() {
    let test = test();
    let (log, sampled) = train(&test, "run", &[]);
    let last = sampled.last().unwrap();
    assert!(last["tokens"].as_u64().unwrap() <= 3000);
    let sources = last["sources"].as_array().unwrap();
    let names: Vec<&Value> = sources.iter().map(|source| &source["name"]).collect();
    assert_eq!(names, ["easy", "hard"]);
    // Halves, but for what the hash decides.
    for source in sources {
        let tokens = source["tokens"].as_u64().unwrap();
        assert!((1000..2000).contains(&tokens), "{source}");
    }
    let [easy, hard] = [0, 1].map(|source| nats(&sources[source]));
    assert!(easy + 1.0 < hard, "{easy} and {hard}");
    assert!(
        log.contains(&format!("(easy {easy:.4}, hard {hard:.4})")),
        "{log}"
    );

    let all = eval(&test, "run", &held_out(&test));
    assert!(
        (nats(last) - all).abs() < 0.05,
        "{} of a sample, {all} of all",
        nats(last)
    );
    // The best checkpoint is that of the whole.
    let best = sampled[1..]
        .iter()
        .min_by(|a, b| nats(a).total_cmp(&nats(b)))
        .unwrap();
    let state = fs::read_to_string(test.path("run/checkpoints/latest")).unwrap();
    let state = test
        .path("run/checkpoints")
        .join(state.trim())
        .join("train_state.json");
    let state: Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
    assert_eq!(state["best"]["step"], best["step"]);
    assert_eq!(nats(&state["best"]), nats(best));

    // With everything the sources are evaluated as files of their own.
    let (_, whole) = train(&test, "whole", &["train.validation_tokens=1000000"]);
    let last = whole.last().unwrap();
    assert!((nats(last) - all).abs() < 2e-3, "{} and {all}", nats(last));
}

#[test]
fn a_file_of_ones_own_is_validated_on_and_not_trained_on() {
    let test = test();
    let sources = [("data.source", "easy"), ("data.validation.source", "hard")];
    let [training, own] = sources.map(|(key, name)| format!("{key}=[{}]", source(&test, name)));
    let set = [training.as_str(), &own, "data.validation.fraction=0"];
    let (log, validations) = train(&test, "run", &set);
    assert!(
        log.contains("source \"easy\": 100 training document(s)"),
        "{log}"
    );
    let last = validations.last().unwrap();
    assert_eq!(last["sources"][0]["name"], "hard");
    assert_eq!(last["sources"].as_array().unwrap().len(), 1);
    let whole = [&set[..], &["train.validation_tokens=1000000"]].concat();
    let (_, whole) = train(&test, "whole", &whole);
    let (found, expected) = (
        nats(whole.last().unwrap()),
        eval(&test, "whole", "hard.jsonl"),
    );
    assert!((found - expected).abs() < 1e-9, "{found} and {expected}");
}
