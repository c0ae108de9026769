//! A run that is cut off anywhere and resumed ends as if nothing had happened.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use firebox_checkpoint::TensorFile;
use firebox_runtime::control::Control;
use firebox_runtime::on_every_device;
use firebox_tests::binaries;
use firebox_tests::runs::{TestRun, copy_at};
use firebox_tests::tensors::relative_error;
use firebox_train::trainer::{self, Resume};

const FILES: [&str; 2] = ["model.safetensors", "train_state.safetensors"];

/// What a line of the metrics says, without what depends on the clock.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(|line| {
        let mut value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        for key in ["tokens_per_second", "flops_per_second", "seconds"] {
            value.as_object_mut().expect("an object").remove(key);
        }
        value
    });
    lines.collect()
}

fn assert_same_end(what: &str, step: u64, found: &Path, expected: &Path) {
    let folder = format!("checkpoints/step-{step:07}");
    for file in FILES {
        let [found, expected] =
            [found, expected].map(|run| fs::read(run.join(&folder).join(file)).expect(file));
        assert!(found == expected, "{what}: {file} differs");
    }
    assert_eq!(metrics(found), metrics(expected), "{what}: metrics");
}

#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    let test = TestRun::new();
    let config = test.argument("run.toml");
    // A checkpoint after every step, so that many kills fall into the writing of one. One command for the first
    // start and for all that follow: some of the kills come before the first checkpoint.
    let start = |name: &str| -> Child {
        let out = test.argument(name);
        let arguments = [
            "run",
            &config,
            "--out",
            &out,
            "--device",
            "flex",
            "--set",
            "checkpoint.every=1",
            "--set",
            "train.steps=150",
            "--resume=auto",
        ];
        let mut command = binaries::train(&arguments);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts")
    };
    let finish = |child: Child| {
        let output = child.wait_with_output().expect("an end");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    finish(start("whole"));

    let last = test.path("killed/checkpoints/step-0000150");
    let mut kills = 0;
    for attempt in 0..60u64 {
        let mut child = start("killed");
        // Spread over the whole life of a process, from its first milliseconds on.
        std::thread::sleep(Duration::from_millis(20 + attempt * 37 % 150));
        if child.try_wait().expect("a state").is_none() {
            child.kill().expect("a kill"); // SIGKILL
            kills += 1;
        }
        finish_quietly(child);
        if last.exists() {
            break;
        }
    }
    assert!(
        kills >= 5,
        "only {kills} kills: the run is too short for this test"
    );
    // Where it is done already, this changes nothing.
    finish(start("killed"));
    println!("{kills} kills");
    assert_same_end("killed", 150, &test.path("killed"), &test.path("whole"));
}

/// What a start leaves that dies before its first checkpoint is nothing to go on from, and nothing that a new start
/// is held to.
#[test]
fn a_start_without_a_checkpoint_is_started_again() {
    let test = TestRun::new();
    let config = test.argument("run.toml");
    let run = |name: &str, more: &[&str]| {
        let out = test.argument(name);
        let arguments = [&["run", &config, "--out", &out][..], more].concat();
        let output = binaries::train(&arguments).output().expect("an end");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    assert_eq!(run("died", &["--resume=auto"]).0, Some(0));
    fs::remove_dir_all(test.path("died/checkpoints")).unwrap();
    fs::create_dir_all(test.path("died/checkpoints/.writing-0000002")).unwrap();
    let metrics = fs::read(test.path("died/metrics.jsonl")).unwrap();
    fs::write(
        test.path("died/metrics.jsonl"),
        &metrics[..metrics.len() / 2],
    )
    .unwrap();

    let (code, text) = run("died", &["--resume"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("no checkpoint to resume from") && text.contains("--resume=auto"),
        "{text}"
    );

    // The configuration may be another one by now.
    let changed = ["--set", "optimizer.learning_rate=0.005"];
    let (code, text) = run("died", &[&changed[..], &["--resume=auto"]].concat());
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(run("fresh", &changed).0, Some(0));
    assert_same_end("again", 12, &test.path("died"), &test.path("fresh"));
    assert!(!test.path("died/checkpoints/.writing-0000002").exists());

    // A finished run ends at once, so that a loop of restarts ends too; and it is still not overwritten.
    let before = fs::read(test.path("died/metrics.jsonl")).unwrap();
    let (code, text) = run("died", &[&changed[..], &["--resume=auto"]].concat());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("resuming after step 12 of 12"), "{text}");
    assert_eq!(fs::read(test.path("died/metrics.jsonl")).unwrap(), before);
    let (code, text) = run("died", &changed);
    assert_eq!(code, Some(2), "{text}");
    // With a checkpoint, another configuration is refused in either spelling.
    let (code, text) = run("died", &["--resume=auto"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("optimizer.learning_rate: 0.005 → 0.01"),
        "{text}"
    );
}

/// Waits for a process that may have been killed. One that ended by itself must have ended well: no kill
/// may leave a run that cannot go on.
fn finish_quietly(child: Child) {
    let output = child.wait_with_output().expect("an end");
    let killed = output.status.code().is_none();
    assert!(
        killed || output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

on_every_device!(a_resume_from_any_checkpoint_ends_the_same);

fn a_resume_from_any_checkpoint_ends_the_same(device: &str) {
    let test = TestRun::new();
    let config = test.config(&[]);
    trainer::run(
        &config,
        &test.options("whole", device, Resume::Never),
        &Control::default(),
    )
    .expect("a run");
    for step in [2, 6, 10] {
        let cut = format!("cut-{step}");
        copy_at(&test.path("whole"), &test.path(&cut), step);
        trainer::run(
            &config,
            &test.options(&cut, device, Resume::Required),
            &Control::default(),
        )
        .expect("a resume");
        if matches!(device, "flex" | "ndarray") {
            let what = format!("from {step}");
            assert_same_end(&what, 12, &test.path(&cut), &test.path("whole"));
        } else {
            assert_close(&test.path(&cut), &test.path("whole"));
        }
    }
}

/// What a run needs whose device ran out of memory.
#[test]
fn a_resume_may_take_smaller_micro_batches() {
    let test = TestRun::new();
    trainer::run(
        &test.config(&[]),
        &test.options("whole", "flex", Resume::Never),
        &Control::default(),
    )
    .expect("a run");
    copy_at(&test.path("whole"), &test.path("cut"), 6);
    let smaller = test.config(&["train.micro_batch=1"]);
    trainer::run(
        &smaller,
        &test.options("cut", "flex", Resume::Required),
        &Control::default(),
    )
    .expect("a resume");
    assert_close(&test.path("cut"), &test.path("whole"));
}

/// A GPU, or another cut into micro-batches, adds in an order of its own: the same to rounding, which ten steps of training make larger.
fn assert_close(found: &Path, expected: &Path) {
    let [found, expected] = [found, expected].map(|run| {
        TensorFile::open(&run.join("checkpoints/step-0000012/model.safetensors"))
            .expect("a checkpoint")
    });
    for name in expected.tensors().keys() {
        let [found, expected] = [&found, &expected].map(|file| file.read(name).expect("a tensor"));
        let error = relative_error(&found, &expected);
        assert!(error < 1e-3, "{name} is off by {error:.1e}");
    }
}

/// A resume uses the prepared text, whether or not the sources still exist.
#[test]
fn a_resume_without_the_sources_ends_with_the_same_bytes() {
    let test = TestRun::new();
    fs::create_dir(test.path("texts")).unwrap();
    for document in 0..60u32 {
        let words = (0..60u32).map(|word| (document * 61 + word * word * 7) % 997);
        let words: Vec<String> = words.map(|word| word.to_string()).collect();
        let name = format!("texts/{}{document}.txt", ["a", "b"][document as usize % 2]);
        fs::write(test.path(&name), words.join(" ")).unwrap();
    }
    let config = test.argument("run.toml");
    let sources = ["a", "b"].map(|name| test.argument(&format!("texts/{name}*.txt")));
    let sources = [0, 1].map(|index| format!("data.source.{index}.files.0={}", sources[index]));
    let run = |name: &str, more: &[&str]| {
        let out = test.argument(name);
        let set = ["--set", &sources[0], "--set", &sources[1]];
        let arguments = [&["run", &config, "--out", &out][..], &set, more].concat();
        let output = binaries::train(&arguments).output().expect("an end");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
    };
    run("whole", &[]);
    copy_at(&test.path("whole"), &test.path("cut"), 6);
    fs::remove_dir_all(test.path("texts")).unwrap();
    run("cut", &["--resume"]);
    assert_same_end("cut", 12, &test.path("cut"), &test.path("whole"));
}

#[test]
fn validation_changes_no_weight() {
    let test = TestRun::new();
    trainer::run(
        &test.config(&[]),
        &test.options("whole", "flex", Resume::Never),
        &Control::default(),
    )
    .expect("a run");
    let often = test.config(&["train.validate_every=1", "train.log_every=5"]);
    trainer::run(
        &often,
        &test.options("often", "flex", Resume::Never),
        &Control::default(),
    )
    .expect("a run");
    for file in FILES {
        let [a, b] = ["whole", "often"].map(|run| {
            fs::read(test.path(run).join("checkpoints/step-0000012").join(file)).expect(file)
        });
        assert!(a == b, "{file} depends on how often the run is validated");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_writes_a_checkpoint_and_says_how_to_go_on() {
    let test = TestRun::new();
    let (config, out) = (test.argument("run.toml"), test.argument("run"));
    let steps = "train.steps=5000";
    let more = [
        "--set",
        "data.source.0.epochs=2000",
        "--set",
        "data.source.1.epochs=2000",
    ];
    let mut arguments = vec!["run", &config, "--out", &out, "--set", steps];
    arguments.extend(more);
    let child = binaries::train(&arguments)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    while !test.path("run/checkpoints/latest").exists() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "no checkpoint within a minute"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(
        text.contains("error: interrupted after step ") && text.contains("--resume"),
        "{text}"
    );
    let step: u64 = text
        .split("interrupted after step ")
        .nth(1)
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        test.path(&format!("run/checkpoints/step-{step:07}/train_state.json"))
            .exists()
    );
}
