//! A run whose `train.init` names the configuration of another one does that first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use firebox_tests::binaries;
use firebox_tests::runs::{SECOND, TestRun, copy_at};

/// What a command says in the folder of a test, with its exit code.
fn say(test: &TestRun, arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(test, arguments).output();
    said(output.expect("the binary starts"))
}

fn command(test: &TestRun, arguments: &[&str]) -> Command {
    let mut command = binaries::train(arguments);
    command.current_dir(test.path("."));
    command
}

fn said(output: Output) -> (Option<i32>, String) {
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Runs to the end; gives back what was said.
fn finish(test: &TestRun, arguments: &[&str]) -> String {
    let (code, text) = say(test, arguments);
    assert_eq!(code, Some(0), "{text}");
    text
}

fn weights(run: &Path, step: u64) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/step-{step:07}/model.safetensors"))).expect("weights")
}

/// The losses of a run's validations.
fn validations(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let validations = lines.filter(|line| line["kind"] == "validation");
    validations
        .map(|line| line["nats_per_token"].as_f64().expect("a loss"))
        .collect()
}

/// The first run, by itself, and the folder that it has.
fn first(test: &TestRun) -> PathBuf {
    finish(test, &["run", "run.toml"]);
    test.path("runs/run")
}

#[test]
fn one_command_gives_what_two_do() {
    let (one, two) = (TestRun::new(), TestRun::new());
    one.write("second.toml", SECOND);
    two.write("second.toml", &SECOND.replace("run.toml", "runs/run"));
    let text = finish(&one, &["run", "second.toml"]);
    for part in [
        "first the run of run.toml, in runs/run",
        "now the run of second.toml, in runs/second",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let before = first(&two);
    finish(&two, &["run", "second.toml"]);
    assert_eq!(
        weights(&one.path("runs/run"), 12),
        weights(&before, 12),
        "the first run"
    );
    let [found, expected] = [&one, &two].map(|test| weights(&test.path("runs/second"), 4));
    assert!(found == expected, "the second run");
    let [first, second] = ["runs/run", "runs/second"].map(|run| validations(&one.path(run)));
    assert_eq!(first.last(), second.first());

    // The first run stays as it is.
    let written = |test: &TestRun| fs::metadata(test.path("runs/run/metrics.jsonl")).unwrap();
    let when = written(&one).modified().unwrap();
    let text = finish(&one, &["run", "second.toml", "--out", "again"]);
    assert!(
        text.contains("starting from the run of run.toml, finished in runs/run"),
        "{text}"
    );
    assert_eq!(written(&one).modified().unwrap(), when);
    assert!(weights(&one.path("again"), 4) == expected);
}

#[test]
fn a_first_run_that_was_cut_off_is_continued() {
    let whole = TestRun::new();
    let expected = weights(&first(&whole), 12);
    for arguments in [
        &["run", "second.toml"][..],
        &["run", "second.toml", "--resume"],
    ] {
        let test = TestRun::new();
        test.write("second.toml", SECOND);
        // The text and the tokens are those of the first folder, whose configuration the cut one has.
        finish(&test, &["run", "run.toml", "--out", "whole"]);
        copy_at(&test.path("whole"), &test.path("runs/run"), 6);
        let text = finish(&test, arguments);
        assert!(
            text.contains("first the run of run.toml, in runs/run, after step 6"),
            "{text}"
        );
        assert!(weights(&test.path("runs/run"), 12) == expected);
        assert!(test.path("runs/second/checkpoints/step-0000004").is_dir());
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_in_the_first_run_ends_both() {
    let test = TestRun::new();
    let steps = fs::read_to_string(test.path("run.toml")).expect("a configuration");
    let steps = steps
        .replace("steps = 12", "steps = 600")
        .replace("every = 2", "every = 1");
    fs::write(test.path("run.toml"), steps).expect("a file");
    test.write("second.toml", SECOND);
    let mut child = command(&test, &["run", "second.toml"]);
    child.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = child.spawn().expect("the binary starts");
    let begun = Instant::now();
    while !test.path("runs/run/checkpoints/step-0000002").exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.expect("kill").success());
    let (code, text) = said(child.wait_with_output().expect("an end"));
    assert_eq!(code, Some(130), "{text}");
    assert!(
        text.contains("checkpoint: runs/run/checkpoints/step-") && text.contains("with --resume"),
        "{text}"
    );
    assert!(!test.path("runs/second").exists());
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    let test = TestRun::new();
    test.write("second.toml", SECOND);
    test.write("circle.toml", &SECOND.replace("run.toml", "back.toml"));
    test.write("back.toml", &SECOND.replace("run.toml", "circle.toml"));
    test.write("itself.toml", &SECOND.replace("run.toml", "itself.toml"));
    test.write("nowhere.toml", &SECOND.replace("run.toml", "no.toml"));
    test.write(
        "faulty.toml",
        &SECOND.replace("[train]", "[model]\nlayers = 3\n[train]"),
    );
    fs::create_dir(test.path("other")).expect("a folder");
    test.write("other/run.toml", SECOND);
    let cases: [(&[&str], &[&str]); 8] = [
        (
            &["run", "circle.toml"],
            &["leads back to itself: circle.toml → back.toml → circle.toml"],
        ),
        (
            &["run", "itself.toml"],
            &["itself.toml → itself.toml", "hint: "],
        ),
        (
            &["run", "nowhere.toml"],
            &[
                "train.init = \"no.toml\" cannot be used",
                "cannot read no.toml",
            ],
        ),
        (
            &["run", "faulty.toml"],
            &["model.layers = 3 must be 2, as in the run planned in runs/run"],
        ),
        (
            &["run", "second.toml", "--resume"],
            &["runs/second contains no checkpoint to resume from"],
        ),
        (
            &["run", "second.toml", "--out", "runs/run"],
            &["the run of run.toml, which comes first, would have the same folder: runs/run"],
        ),
        (
            &["run", "other/run.toml"],
            &[
                "which comes first, would have the same folder: runs/run",
                "hint: ",
            ],
        ),
        (
            &["prepare", "second.toml"],
            &["cannot be used", "`cargo train run run.toml` does it alone"],
        ),
    ];
    for (arguments, words) in cases {
        let (code, text) = say(&test, arguments);
        assert_eq!(code, Some(2), "{text}");
        for word in words {
            assert!(text.contains(word), "{arguments:?}: no {word:?} in {text}");
        }
    }
    assert!(!test.path("runs").exists(), "a refused run leaves nothing");

    let text = finish(&test, &["check", "second.toml"]);
    for part in [
        "the run of run.toml, in runs/run, which `cargo train run` does first",
        "training FLOPs of the runs before",
        "in 12 steps",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!test.path("runs").exists(), "check does nothing");
}

#[test]
fn a_first_run_of_another_configuration_is_refused() {
    let test = TestRun::new();
    let saved = first(&test).join("config.toml");
    let text = fs::read_to_string(test.path("run.toml")).expect("a configuration");
    let changed = text.replace("learning_rate = 1e-2", "learning_rate = 2e-2");
    fs::write(test.path("run.toml"), changed).expect("a file");
    test.write("second.toml", SECOND);
    let (code, text) = say(&test, &["run", "second.toml"]);
    assert_eq!(code, Some(2), "{text}");
    for part in [
        "run.toml differs from the configuration that runs/run was started with: optimizer.learning_rate: 0.01 → 0.02",
        "--set train.init=runs/run starts from that run as it is",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!test.path("runs/second").exists());
    // As the hint says.
    finish(
        &test,
        &["run", "second.toml", "--set", "train.init=runs/run"],
    );
    assert!(saved.exists());

    // What a run has saved is no run to be done first.
    test.write(
        "third.toml",
        &SECOND.replace("run.toml", "runs/run/config.toml"),
    );
    let (code, text) = say(&test, &["run", "third.toml"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("write train.init = \"runs/run\" to start from the run"),
        "{text}"
    );
}
