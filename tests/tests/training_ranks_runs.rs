//! Whole runs of many ranks, through the binary: in bf16, of a model that sees pictures, one run after another, and interrupted.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use firebox_tests::binaries;
use firebox_tests::runs::TestRun;
use serde_json::Value;

/// A text model, and then one that sees some emoji, whose text stays as it is.
const SEEING: &str = include_str!("../../train/src/testing/seeing.toml");

/// Runs to the end; gives back what was said.
fn finish(arguments: &[&str]) -> String {
    let output = binaries::train(arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Losses of training and validation, by step.
fn losses(run: &Path) -> Vec<(u64, String, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let loss = line["loss"].as_f64().or(line["nats_per_token"].as_f64())?;
        let kind = line["kind"].as_str()?.to_owned();
        Some((line["step"].as_u64()?, kind, loss))
    });
    lines.collect()
}

fn near(what: &str, found: &Path, expected: &Path, tolerance: f64) {
    let (found, expected) = (losses(found), losses(expected));
    assert!(!expected.is_empty());
    assert_eq!(found.len(), expected.len(), "{what}");
    for ((step, kind, loss), (same_step, same_kind, other)) in found.iter().zip(&expected) {
        assert_eq!((step, kind), (same_step, same_kind), "{what}");
        let error = (loss / other - 1.0).abs();
        let said = format!("{what}: {kind} of step {step}: {loss}, {other}");
        assert!(error < tolerance, "{said}");
    }
}

// Sums of the same products in another order round some weights to a neighbour in bf16, which is 2⁻⁸ away.
#[test]
fn a_run_in_bf16_is_near_that_of_one_rank() {
    let test = TestRun::new();
    let config = test.argument("run.toml");
    let set = ["train.precision=bf16", "schedule.batch_tokens=128"];
    let run = |out: &str, ranks: &[&str]| {
        let out = test.argument(out);
        let set = set.iter().flat_map(|set| ["--set", set]);
        let arguments = ["run", &config, "--out", &out].into_iter();
        let arguments = arguments.chain(ranks.iter().copied()).chain(set);
        finish(&arguments.collect::<Vec<_>>());
    };
    run("alone", &[]);
    for (out, ranks) in [("data", ["--data", "2"]), ("expert", ["--expert", "2"])] {
        run(out, &ranks);
        near(out, &test.path(out), &test.path("alone"), 5e-3);
    }
}

/// Rounding, over a few steps.
const ROUNDING: f64 = 2e-5;

#[test]
fn a_model_learns_to_see_with_many_ranks_as_with_one() {
    let test = TestRun::new();
    let seeing = SEEING
        .replace("FOLDER", &test.argument("."))
        .replace("batch_tokens = 120", "batch_tokens = 240");
    let write = |name: &str, text: String| {
        fs::write(test.path(name), text).expect("a file");
        test.argument(name)
    };
    let run = |config: &str, out: &str, ranks: &[&str]| {
        finish(&[&["run", config, "--out", &test.argument(out)], ranks].concat());
        test.path(out)
    };
    // The text model is trained on files of this project.
    let (model, rest) = seeing.split_once("[model.vision]").expect("a tower");
    let (vision, rest) = rest.split_once("[tokenizer]").expect("a tokenizer");
    let (_, data) = rest.split_once("[data]").expect("data");
    let text = format!("{model}[tokenizer]{rest}")
        .replace("[data.pictures]\nshift = 1\n", "")
        .replace(r#"cargo = "twemoji-assets""#, "files = ['*.md']")
        .replace("gate_rate = 10.0\n", "")
        .replace("fraction = 0.3", "fraction = 0.3\nby = 'tail'");
    run(&write("text.toml", text), "text", &[]);

    let init = format!("[train]\ninit = '{}'", test.argument("text"));
    for frozen in ["text", "nothing"] {
        let start = format!("{init}\nfrozen = '{frozen}'\n");
        let config = format!("[model.vision]{vision}[data]{data}").replace("[train]\n", &start);
        let config = write(&format!("{frozen}.toml"), config);
        let alone = run(&config, &format!("{frozen}-alone"), &[]);
        let several: [&[&str]; 3] = [
            &["--data", "2"],
            &["--expert", "2"],
            &["--data", "2", "--expert", "2"],
        ];
        for (number, ranks) in several.into_iter().enumerate() {
            let found = run(&config, &format!("{frozen}-{number}"), ranks);
            near(&format!("{frozen}, {ranks:?}"), &found, &alone, ROUNDING);
        }
    }
}

/// A run that starts from that of `run.toml`.
const SECOND: &str = r#"
[train]
init = "run.toml"
steps = 4
micro_batch = 3
validate_every = 2
validation_tokens = 512
[optimizer]
learning_rate = 5e-3
[schedule]
batch_tokens = 128
"#;

#[test]
fn a_run_that_starts_from_another_has_that_trained_by_many_ranks_too() {
    let test = TestRun::new();
    test.write("second.toml", SECOND);
    let run = |out: &str, ranks: &[&str]| {
        let arguments = [&["run", "second.toml", "--out", out], ranks].concat();
        let mut command = binaries::train(&arguments);
        let output = command.current_dir(test.path(".")).output();
        let output = output.expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let first = test.path(&format!("first-of-{out}"));
        fs::rename(test.path("runs/run"), &first).expect("the run of run.toml");
        (first, test.path(out))
    };
    let (first, second) = run("alone", &[]);
    let (first_of_many, second_of_many) = run("many", &["--data", "2"]);
    near("the first run", &first_of_many, &first, ROUNDING);
    near("the second run", &second_of_many, &second, ROUNDING);
}

/// Interrupts a run as Ctrl-C does when it has a checkpoint that is later than this step, and gives back the last one.
#[cfg(unix)]
fn interrupted(test: &TestRun, arguments: &[&str], after: u64) -> u64 {
    let log = fs::File::create(test.path("log")).expect("a file");
    let mut run = binaries::train(arguments);
    let mut run = run.stderr(log).spawn().expect("it starts");
    let said = || fs::read_to_string(test.path("log")).expect("a log");
    let latest = || {
        let name = fs::read_to_string(test.path("run/checkpoints/latest")).ok()?;
        name.trim().strip_prefix("step-")?.parse().ok()
    };
    let begun = Instant::now();
    while latest().is_none_or(|step: u64| step <= after) {
        let ended = run.try_wait().expect("its state");
        assert!(ended.is_none(), "{}", said());
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut kill = Command::new("kill");
    let sent = kill.args(["-INT", &run.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    let ended = run.wait().expect("an end");
    assert_eq!(ended.code(), Some(130), "{}", said());
    assert!(!said().contains("panicked"), "{}", said());
    latest().expect("a checkpoint")
}

#[test]
#[cfg(unix)]
fn an_interrupt_ends_all_ranks_with_a_checkpoint() {
    let test = TestRun::new();
    let (config, out) = (test.argument("run.toml"), test.argument("run"));
    let set = [
        "schedule.batch_tokens=128",
        "data.source.0.epochs=100000",
        "data.source.1.epochs=100000",
        "train.steps=100000",
    ];
    let set = set.iter().flat_map(|set| ["--set", set]);
    let run = ["run", &config, "--out", &out].into_iter();
    let run: Vec<&str> = run.chain(set).collect();
    let ranks = ["--data", "2", "--expert", "2"];
    let step = interrupted(&test, &[&run, &ranks[..]].concat(), 0);
    // One rank goes on from there.
    let later = interrupted(&test, &[&run, &["--resume"][..]].concat(), step);
    let steps: Vec<u64> = losses(&test.path("run"))
        .into_iter()
        .filter(|(_, kind, _)| kind == "train")
        .map(|(step, ..)| step)
        .collect();
    assert_eq!(steps, (1..=later).collect::<Vec<u64>>());
}
