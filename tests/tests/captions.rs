//! What evaluation says of held-out captions and their pictures is what the run's validation has said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use firebox_tests::binaries;
use serde_json::Value;

/// A model that sees some of the emoji.
const CONFIG: &str = include_str!("../../train/src/testing/seeing.toml");

/// More of them, in tokens of several letters, and fast gates, so that it looks after four steps.
const SET: [&str; 9] = [
    "model.d_model=16",
    "model.context_length=48",
    "tokenizer={ kind = 'bpe', vocab_size = 300 }",
    "data.source.0.max_bytes=12000",
    "data.source.0.epochs=1",
    "train.validation_tokens=1_000_000",
    "optimizer.gate_rate=200.0",
    "schedule.warmup_steps=1",
    "schedule.batch_tokens=240",
];

/// Rounding: evaluation has the products of validation, in the same batches.
const ROUNDING: f64 = 1e-9;

fn run(folder: &Path) -> Value {
    let config = folder.join("run.toml");
    let text = CONFIG.replace("FOLDER", &folder.display().to_string());
    fs::write(&config, text).unwrap();
    let [config, out] = [config, folder.join("run")].map(|path| path.display().to_string());
    let mut command = binaries::train(&["run", &config, "--out", &out]);
    for set in SET {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let metrics = fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(serde_json::from_str);
    let lines: Vec<Value> = lines.collect::<Result<_, _>>().unwrap();
    let last = lines.into_iter().rfind(|line| line["kind"] == "validation");
    last.expect("a validation")
}

/// The prepared held-out captions.
fn held_out(folder: &Path) -> PathBuf {
    let folders = fs::read_dir(folder.join("cache")).unwrap().flatten();
    let mut files = folders.map(|entry| entry.path().join("validation.jsonl"));
    files.find(|path| path.exists()).expect("held-out text")
}

fn eval(folder: &Path, data: &Path, more: &[&str]) -> Output {
    let run = folder.join("run").display().to_string();
    let data = data.display().to_string();
    let arguments = [
        "eval", &run, "--data", &data, "--field", "text", "--image", "image",
    ];
    binaries::infer(&[&arguments, more].concat())
        .output()
        .unwrap()
}

fn close(what: &str, found: &Value, expected: &Value) {
    let [found, expected] = [found, expected].map(|value| value.as_f64().expect(what));
    assert!(
        (found - expected).abs() < ROUNDING,
        "{what}: {found} and {expected}"
    );
}

#[test]
fn evaluation_of_held_out_captions_is_the_validation_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let validation = run(folder.path());
    let data = held_out(folder.path());
    let output = eval(folder.path(), &data, &["--group", "held_out", "--json"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let kinds = validation["captions"].as_array().unwrap();
    assert_eq!(kinds.len(), 2);
    for kind in kinds {
        let name = kind["held_out"].as_str().unwrap();
        let groups = report["groups"].as_array().unwrap();
        let group = groups.iter().find(|group| group["group"] == name);
        let group = group.expect(name);
        for count in ["captions", "tokens", "bytes", "tried"] {
            assert_eq!(group[count], kind[count], "{name}, {count}");
        }
        for loss in ["right", "other", "none"] {
            close(loss, &group["nats_per_token"][loss], &kind[loss]);
        }
        if kind["tried"].as_u64() > Some(0) {
            close("found", &group["found"], &kind["found"]);
        }
        // The picture is looked at, so that all of this could differ.
        let [right, other] = ["right", "other"].map(|loss| kind[loss].as_f64().unwrap());
        assert!(
            (right - other).abs() > 1e3 * ROUNDING,
            "{right} and {other}"
        );
    }
    assert!(kinds.iter().any(|kind| kind["tried"].as_u64() > Some(0)));
    for count in ["tokens", "bytes"] {
        assert_eq!(report[count], validation[count]);
    }
    for loss in ["nats_per_token", "bits_per_byte"] {
        close(loss, &report[loss]["right"], &validation[loss]);
    }
    assert_eq!(report["expert_load"].as_array().unwrap().len(), 1);

    // A page that shows the pictures says whose they are.
    let page = folder.path().join("page.html");
    let html = ["--tried", "0", "--html", page.to_str().unwrap()];
    let output = eval(folder.path(), &data, &html);
    assert!(output.status.success(), "{output:?}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("Pictures of Twemoji, by Twitter and other contributors, CC BY 4.0"));

    // Pairs that cannot be used.
    let mut lines = fs::read_to_string(&data).unwrap();
    let long = "word ".repeat(60);
    let image = folder.path().join("absent.png");
    for (text, image) in [("gone", image.clone()), (&long, image)] {
        lines += &serde_json::json!({ "text": text, "image": image }).to_string();
        lines += "\n";
    }
    let more = folder.path().join("more.jsonl");
    fs::write(&more, lines).unwrap();
    let output = eval(folder.path(), &more, &["--json"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(output.stdout.is_empty());
    assert!(
        log.contains("absent.png")
            && log.contains("more.jsonl:")
            && log.contains("--on-error skip"),
        "{log}"
    );
    let output = eval(
        folder.path(),
        &more,
        &["--on-error", "skip", "--tried", "0", "--json"],
    );
    let skipped: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(skipped["left_out"], 2);
    assert_eq!(skipped["captions"], report["captions"]);
    assert_eq!(skipped["found"], Value::Null);
    close(
        "all",
        &skipped["nats_per_token"]["right"],
        &report["nats_per_token"]["right"],
    );
}
