//! A run that is cut off anywhere and resumed ends as if nothing had happened.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use firebox_checkpoint::TensorFile;
use firebox_runtime::control::Control;
use firebox_runtime::on_every_device;
use firebox_tests::binaries;
use firebox_tests::runs::{TestRun, copy_at};
use firebox_tests::tensors::relative_error;
use firebox_train::ranks::Team;
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

/// What is seen of a run's folder when the run is killed. Steps are counted from its start or resume; what an earlier
/// kill left behind is of the first one at most.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// Training is about to begin.
    Begun,
    /// This step is in the metrics.
    Logged(u64),
    /// The checkpoint of this step is being written, and has come to this file.
    Writing(u64, &'static str),
    /// The checkpoint of this step has its name.
    Complete(u64),
}

impl Moment {
    /// A run that starts or resumes after the step `from`, when its configuration was `written`.
    fn has_come(self, run: &Path, from: u64, written: Option<SystemTime>) -> bool {
        let checkpoint =
            |prefix: &str, step: u64| run.join(format!("checkpoints/{prefix}{:07}", from + step));
        match self {
            Self::Begun => time_of(&run.join("config.toml")) != written,
            Self::Logged(step) => fs::read_to_string(run.join("metrics.jsonl")).is_ok_and(|text| {
                text.contains(&format!(r#""kind":"train","step":{},"#, from + step))
            }),
            Self::Writing(step, file) => checkpoint(".writing-step-", step).join(file).exists(),
            Self::Complete(step) => checkpoint("step-", step).exists(),
        }
    }
}

/// When a file was written last, if it is there.
fn time_of(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// The step of a run's newest checkpoint.
fn newest(run: &Path) -> Option<u64> {
    let entries = fs::read_dir(run.join("checkpoints"))
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .max()
}

#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    const STEPS: u64 = 60;
    let test = TestRun::new();
    let config = test.argument("run.toml");
    // A checkpoint after every step, so that a kill falls into the writing of one or close to it.
    // One command for the first start and for all that follow.
    let start = |name: &str| -> Child {
        let out = test.argument(name);
        let steps = format!("train.steps={STEPS}");
        let mut arguments = vec!["run", &config, "--out", &out, "--device", "flex"];
        arguments.extend([
            "--set",
            "checkpoint.every=1",
            "--set",
            &steps,
            "--resume=auto",
        ]);
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

    let killed = test.path("killed");
    let moments = [
        Moment::Begun,
        Moment::Writing(2, "config.json"),
        Moment::Logged(3),
        Moment::Begun,
        Moment::Writing(2, "model.safetensors"),
        Moment::Complete(2),
        Moment::Writing(2, "train_state.safetensors"),
        Moment::Logged(2),
        Moment::Writing(2, "train_state.json"),
        Moment::Complete(4),
    ];
    for moment in moments {
        let (before, written) = (newest(&killed), time_of(&killed.join("config.toml")));
        let mut child = start("killed");
        let started = Instant::now();
        // A moment is short, and may pass while this process does not run: some steps later, any other will do.
        let missed = || newest(&killed).is_some_and(|newest| newest > before.unwrap_or(0) + 4);
        while !moment.has_come(&killed, before.unwrap_or(0), written) && !missed() {
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(60), "{moment:?} has not come");
            std::thread::yield_now();
        }
        child.kill().expect("a kill"); // SIGKILL
        let output = child.wait_with_output().expect("an end");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            None,
            "{moment:?} came too late: {text}"
        );
        println!("{moment:?}: from {before:?} to {:?}", newest(&killed));
    }
    finish(start("killed"));
    assert_same_end("killed", STEPS, &killed, &test.path("whole"));
}

/// A start that died before its first checkpoint leaves nothing to resume, and does not restrict a new start.
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
    fs::create_dir_all(test.path("died/checkpoints/.writing-step-0000002")).unwrap();
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
    assert!(!test.path("died/checkpoints/.writing-step-0000002").exists());

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

on_every_device!(
    a_resume_from_any_checkpoint_ends_the_same,
    a_resume_with_quantile_balancing_and_muon_ends_the_same,
);

fn a_resume_from_any_checkpoint_ends_the_same(device: &str) {
    resumes(&[], device);
}

fn a_resume_with_quantile_balancing_and_muon_ends_the_same(device: &str) {
    let muon = [
        "optimizer.muon=all",
        "optimizer.expert_interval=3",
        "train.zero_outputs=true",
    ];
    resumes(&[&QUANTILE[..], &muon].concat(), device);
}

/// The run of [`TestRun`] with quantile balancing.
const QUANTILE: [&str; 2] = [
    "model.router.balance=quantile",
    "model.router.bias_update_rate=0",
];

/// Evaluating more often changes nothing: neither weights nor selection biases.
#[test]
fn quantile_balancing_is_not_moved_by_evaluation() {
    let test = TestRun::new();
    let end = |every: u64| {
        let name = format!("every-{every}");
        let set = format!("train.validate_every={every}");
        let config = test.config(&[&QUANTILE[..], &[&set]].concat());
        let options = test.options(&name, "flex", Resume::Never);
        trainer::run(&config, &options, &Team::default(), &Control::default()).expect("a run");
        let folder = test.path(&name).join("checkpoints/step-0000012");
        let weights = TensorFile::open(&folder.join("model.safetensors")).expect("weights");
        let biases = weights
            .tensors()
            .keys()
            .filter(|name| name.ends_with("correction_bias"));
        assert_eq!(biases.count(), 2);
        fs::read(folder.join("model.safetensors")).expect("weights")
    };
    assert!(end(1) == end(12));
}

fn resumes(set: &[&str], device: &str) {
    let test = TestRun::new();
    let config = test.config(set);
    trainer::run(
        &config,
        &test.options("whole", device, Resume::Never),
        &Team::default(),
        &Control::default(),
    )
    .expect("a run");
    for step in [2, 6, 10] {
        let cut = format!("cut-{step}");
        copy_at(&test.path("whole"), &test.path(&cut), step);
        trainer::run(
            &config,
            &test.options(&cut, device, Resume::Required),
            &Team::default(),
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

/// Fifty steps of what other tests do not train, under the name of the family that computes it.
#[test]
fn what_each_family_has_of_its_own_is_trained_and_resumed() {
    let granite = [
        "model.multipliers.embedding=6.0",
        "model.multipliers.residual=0.5",
        "model.multipliers.attention=0.2",
        "model.multipliers.logits_divisor=2.0",
        "model.router.bias_update_rate=0.0",
    ];
    let qwen = [
        "model.attention_bias=qkv",
        "model.experts.shared_d_ff=20",
        "model.experts.shared_gate=true",
        "model.router.normalize=false",
        "model.router.bias_update_rate=0.0",
    ];
    let deepseek = [
        "model.rotary_dim=6",
        "model.latent.rank=12",
        "model.latent.query_rank=10",
        "model.dense.layers=[0]",
        "model.experts.shared_d_ff=32",
        "model.router.scores=sigmoid",
    ];
    for (family, keys) in [
        ("granitemoe", &granite[..]),
        ("qwen2_moe", &qwen),
        ("deepseek_v3", &deepseek),
    ] {
        let run = [
            "train.steps=50",
            "train.validate_every=25",
            "checkpoint.every=10",
        ];
        let test = TestRun::new();
        let config = test.config(&[keys, &run].concat());
        let train = |name: &str, resume| {
            let options = test.options(name, "flex", resume);
            trainer::run(&config, &options, &Team::default(), &Control::default()).expect("a run");
        };
        train("whole", Resume::Never);
        copy_at(&test.path("whole"), &test.path("cut"), 20);
        train("cut", Resume::Required);
        assert_same_end(family, 50, &test.path("cut"), &test.path("whole"));

        let written = test.path("whole/checkpoints/step-0000050/config.json");
        let written = fs::read_to_string(written).expect("a config.json");
        assert!(
            written.contains(&format!("\"model_type\": \"{family}\"")),
            "{written}"
        );
        let losses = metrics(&test.path("whole")).into_iter();
        let losses = losses.filter(|line| line["kind"] == "train");
        let losses: Vec<f64> = losses.filter_map(|line| line["loss"].as_f64()).collect();
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < first - 0.3, "{family}: from {first} to {last}");
    }
}

/// A longer run has the same data and batches, so that only the learning rate can tell them apart.
#[test]
fn more_steps_continue_as_a_run_of_that_length() {
    let test = TestRun::new();
    let config = test.argument("run.toml");
    let run = |name: &str, steps: &str, more: &[&str]| {
        let (out, steps) = (test.argument(name), format!("train.steps={steps}"));
        let set = ["--set", &steps, "--set", "schedule.decay=wsd"];
        let arguments = [&["run", &config, "--out", &out][..], &set, more].concat();
        let output = binaries::train(&arguments).output().expect("an end");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    assert_eq!(run("whole", "20", &[]).0, Some(0));
    // The cooldown begins at step 11 of 12, the first one below the peak.
    assert_eq!(run("run", "12", &[]).0, Some(0));
    copy_at(&test.path("run"), &test.path("before"), 10);
    copy_at(&test.path("run"), &test.path("after"), 12);

    let (code, text) = run("before", "20", &["--resume"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("continues to 20 steps instead of 12"),
        "{text}"
    );
    assert!(!text.contains("warning: the learning rate"), "{text}");
    assert_same_end("before", 20, &test.path("before"), &test.path("whole"));

    // From then on the run has 20 steps.
    let (code, text) = run("before", "12", &["--resume"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("train.steps: 20 → 12"), "{text}");
    let (code, text) = run("before", "20", &["--resume=auto"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("instead of"), "{text}");

    // A run that has cooled down goes on with another learning rate, and that is said.
    let (code, text) = run("after", "20", &["--resume"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains(
            "warning: the learning rate goes from 1.00e-3 at step 12 to 1.00e-2: since step 11 "
        ),
        "{text}"
    );
    let rates = |run: &str| -> Vec<f64> {
        let lines = metrics(&test.path(run)).into_iter();
        lines
            .filter_map(|line| line["learning_rate"].as_f64())
            .collect()
    };
    let (after, whole) = (rates("after"), rates("whole"));
    assert_eq!(after[12..], whole[12..]);
    assert_ne!(after, whole);
    assert!(!text.contains("from before the decay"), "{text}");
    let (code, text) = run("run", "20", &["--resume"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("the checkpoint of step 10 is from before the decay"),
        "{text}"
    );

    // There is no more text than the epochs give.
    let (code, text) = run("after", "200000", &["--resume"]);
    assert_eq!(code, Some(2), "{text}");
    for part in [
        "train.steps = 200000 needs",
        "--set train.init=",
        "optimizer moments",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

/// Two processes in one folder would write each other's checkpoints.
#[cfg(unix)]
#[test]
fn a_second_process_in_the_folder_is_refused() {
    let test = TestRun::new();
    let (config, out) = (test.argument("run.toml"), test.argument("run"));
    let epochs = ["data.source.0.epochs=40", "data.source.1.epochs=40"];
    let arguments = |more: &[&'static str]| {
        let mut arguments = vec!["run", &config, "--out", &out];
        let set = epochs.iter().chain(&["train.steps=5000"]);
        set.for_each(|set| arguments.extend(["--set", set]));
        arguments.extend(more);
        binaries::train(&arguments)
    };
    let start = || {
        let mut command = arguments(&["--resume=auto"]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the binary starts")
    };
    let wait_for = |step: u64| {
        let started = Instant::now();
        while newest(&test.path("run")).is_none_or(|newest| newest < step) {
            assert!(started.elapsed() < Duration::from_secs(60), "step {step}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut first = start();
    wait_for(2);
    for more in [&[][..], &["--resume"], &["--resume=auto"]] {
        let output = arguments(more).output().expect("an end");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let owner = format!("error: {out} is in use: process {} on ", first.id());
        assert!(text.contains(&owner), "{text}");
    }
    first.kill().expect("a kill"); // SIGKILL
    first.wait().expect("an end");
    let last = newest(&test.path("run")).expect("a checkpoint");
    let mut second = start();
    wait_for(last + 1);
    second.kill().expect("a kill");
    second.wait().expect("an end");
}

/// What a run needs whose device ran out of memory.
#[test]
fn a_resume_may_take_smaller_micro_batches() {
    let test = TestRun::new();
    trainer::run(
        &test.config(&[]),
        &test.options("whole", "flex", Resume::Never),
        &Team::default(),
        &Control::default(),
    )
    .expect("a run");
    copy_at(&test.path("whole"), &test.path("cut"), 6);
    let smaller = test.config(&["train.micro_batch=1"]);
    trainer::run(
        &smaller,
        &test.options("cut", "flex", Resume::Required),
        &Team::default(),
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
        fs::write(test.path(&format!("texts/{document}.txt")), words.join(" ")).unwrap();
    }
    let config = test.argument("run.toml");
    let source = format!("data.source.0.files.0={}", test.argument("texts/*.txt"));
    let run = |name: &str, more: &[&str]| {
        let out = test.argument(name);
        let set = ["--set", &source];
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
        &Team::default(),
        &Control::default(),
    )
    .expect("a run");
    let often = test.config(&["train.validate_every=1", "train.log_every=5"]);
    trainer::run(
        &often,
        &test.options("often", "flex", Resume::Never),
        &Team::default(),
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
        "data.source.0.epochs=20",
        "--set",
        "data.source.1.epochs=20",
    ];
    let mut arguments = vec!["run", &config, "--out", &out, "--set", steps];
    arguments.extend(more);
    let child = binaries::train(&arguments)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
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
