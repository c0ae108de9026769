//! Bad input ends in one sentence, a hint and an exit code, through the real binaries; nothing is lost.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use firebox_tests::binaries;
use firebox_tests::fixtures;
use firebox_tests::runs::TestRun;

/// What a command printed for people, once it is certain that it failed well.
fn failure(mut command: Command, code: i32) -> String {
    let output: Output = command
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(
        output.stdout.is_empty(),
        "data on stdout: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    text
}

/// Runs the small configuration with more arguments, and expects this exit code and these words.
fn rejects(test: &TestRun, more: &[&str], code: i32, words: &[&str]) {
    let (config, out) = (test.argument("run.toml"), test.argument("run"));
    let mut arguments = vec!["run", config.as_str(), "--out", out.as_str()];
    arguments.extend(more);
    let text = failure(binaries::train(&arguments), code);
    for word in words {
        assert!(text.contains(word), "{more:?}: no {word:?} in {text}");
    }
}

/// Trains the small configuration.
fn train(test: &TestRun, name: &str, more: &[&str]) {
    let (config, out) = (test.argument("run.toml"), test.argument(name));
    let mut arguments = vec!["run", config.as_str(), "--out", out.as_str()];
    arguments.extend(more);
    let output = binaries::train(&arguments)
        .output()
        .expect("the binary starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_configuration_that_cannot_be_used() {
    let test = TestRun::new();
    let cases: [(&[&str], &[&str]); 8] = [
        (
            &["--set", "model.layer=2"],
            &["model.layer = 2", "not a known key", "hint: ", "layers"],
        ),
        (
            &["--set", "model.layers=\"two\""],
            &["model.layers", "two", "--set"],
        ),
        (
            &["--set", "model.heads=5"],
            &["model.heads", "32", "hint: "],
        ),
        (
            &["--set", "model.heads=4", "--set", "model.kv_heads=3"],
            &["kv_heads", "must divide", "1, 2, 4"],
        ),
        (
            &["--set", "model.experts.top_k=5"],
            &["experts.top_k", "5", "experts.count = 4"],
        ),
        (
            &["--set", "schedule.cooldown_fraction=0.5"],
            &["cooldown_fraction", "hint: "],
        ),
        (&["--set", "train.steps=0"], &["train.steps", "0"]),
        (&["--set", "nonsense"], &["--set nonsense", "hint: "]),
    ];
    for (more, words) in cases {
        rejects(&test, more, 2, words);
    }
    assert!(
        !test.path("run").exists(),
        "a configuration that is refused leaves nothing behind"
    );
}

#[test]
fn text_that_cannot_be_used() {
    let test = TestRun::new();
    rejects(
        &test,
        &["--set", "data.source.0.files.0=nowhere/*.rs"],
        2,
        &["nowhere/*.rs", "matches no file"],
    );

    fs::write(test.path("empty.txt"), "").unwrap();
    let empty = format!("data.source.0.files.0={}", test.argument("empty.txt"));
    rejects(&test, &["--set", &empty], 2, &["\"plays\" is empty"]);

    fs::write(test.path("latin.txt"), b"caf\xe9 au lait").unwrap();
    let latin = format!("data.source.0.files.0={}", test.argument("latin.txt"));
    rejects(
        &test,
        &["--set", &latin],
        1,
        &["latin.txt", "UTF-8", "byte 3", "on_error"],
    );

    for (name, head, expected) in [
        (
            "a.txt.bz2",
            &b"BZh91AY&SY"[..],
            ["is compressed with bzip2", "hint: `bzcat "],
        ),
        (
            "a.txt.gz",
            b"\x1f\x8b\x08\0",
            ["its gzip data is damaged or cut off", "on_error"],
        ),
    ] {
        fs::write(test.path(name), head).unwrap();
        let compressed = format!("data.source.0.files.0={}", test.argument(name));
        rejects(&test, &["--set", &compressed], 1, &expected);
    }

    let long = [
        "--set",
        "model.context_length=2000000",
        "--set",
        "schedule.batch_tokens=2000000",
    ];
    rejects(&test, &long, 2, &["2000000", "hint: "]);
    let many = ["--set", "train.steps=100000"];
    rejects(&test, &many, 2, &["sequences", "hint: "]);
}

#[test]
fn a_device_that_is_not_there() {
    let test = TestRun::new();
    rejects(
        &test,
        &["--device", "abacus"],
        2,
        &["device = abacus: unknown", "flex", "hint: "],
    );
    if cfg!(not(feature = "cuda")) {
        rejects(
            &test,
            &["--device", "cuda:1"],
            2,
            &["no `cuda` backend", "hint: ", "--features cuda"],
        );
    }
}

#[test]
fn a_folder_that_cannot_be_written() {
    let test = TestRun::new();
    fs::write(test.path("file"), "").unwrap();
    let (config, out) = (test.argument("run.toml"), test.argument("file/run"));
    let text = failure(binaries::train(&["run", &config, "--out", &out]), 1);
    assert!(
        text.contains("cannot create") && text.contains("file/run"),
        "{text}"
    );
}

/// A limit on the size of files stands in for a full disk: both let a write fail half-way.
#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let test = TestRun::new();
    train(&test, "run", &["--set", "checkpoint.every=1"]);
    for step in 7..=12 {
        fs::remove_dir_all(test.path(&format!("run/checkpoints/step-{step:07}"))).unwrap();
    }
    let (config, out) = (test.argument("run.toml"), test.argument("run"));
    let resume = binaries::train(&[
        "run",
        &config,
        "--out",
        &out,
        "--set",
        "checkpoint.every=1",
        "--resume",
    ]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"]);
    limited.arg(resume.get_program()).args(resume.get_args());
    limited.current_dir(binaries::workspace());
    let text = failure(limited, 1);
    assert!(
        text.contains("cannot write") && text.contains("safetensors"),
        "{text}"
    );
    let names: Vec<String> = fs::read_dir(test.path("run/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name == "step-0000006"), "{names:?}");
    assert!(
        !names
            .iter()
            .any(|name| name == "step-0000007" || name.starts_with(".writing")),
        "{names:?}"
    );
    train(&test, "run", &["--set", "checkpoint.every=1", "--resume"]);
}

#[test]
fn a_run_that_is_there_is_neither_overwritten_nor_mixed_up() {
    let test = TestRun::new();
    rejects(
        &test,
        &["--resume"],
        2,
        &["no checkpoint to resume from", "hint: "],
    );
    train(&test, "run", &[]);
    let before = fs::read(test.path("run/metrics.jsonl")).unwrap();
    rejects(
        &test,
        &[],
        2,
        &["already contains a run, at step 12", "--resume", "--out"],
    );
    let changed = ["--resume", "--set", "optimizer.learning_rate=0.5"];
    rejects(
        &test,
        &changed,
        2,
        &["optimizer.learning_rate: 0.01 → 0.5", "hint: "],
    );
    let other_text = ["--resume", "--set", "data.validation.fraction=0.3"];
    rejects(&test, &other_text, 2, &["data.validation.fraction"]);
    assert_eq!(fs::read(test.path("run/metrics.jsonl")).unwrap(), before);

    // The same configuration, but the text behind it has changed: the run continues with its own, and says so.
    let text = fs::read_to_string(test.path("run.toml")).unwrap();
    fs::write(test.path("more.txt"), "one more document".repeat(20)).unwrap();
    let more = format!("files = ['{}', ", test.argument("more.txt"));
    fs::write(test.path("run.toml"), text.replace("files = [", &more)).unwrap();
    train(&test, "other", &[]);
    let (config, out) = (test.argument("run.toml"), test.argument("other"));
    let resume = ["run", &config, "--out", &out, "--resume"];
    let continues = |words: &str| {
        let output = binaries::train(&resume).output().expect("an end");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        let told = text.contains(words) && text.contains("continues with the text it started with");
        assert!(told, "no {words:?} in {text}");
    };
    fs::remove_file(test.path("more.txt")).unwrap();
    continues("more.txt\" matches no file");
    fs::write(
        test.path("more.txt"),
        "other words of the same document".repeat(20),
    )
    .unwrap();
    continues("source \"plays\" has changed");

    // Its own text is gone as well.
    fs::remove_dir_all(test.path("cache")).unwrap();
    let text = failure(binaries::train(&resume), 2);
    assert!(text.contains("changed since"), "{text}");
}

#[test]
fn a_checkpoint_that_cannot_be_used() {
    let test = TestRun::new();
    train(
        &test,
        "run",
        &["--set", "model.router.bias_update_rate=0.0"],
    );
    let checkpoint = test.path("run/checkpoints/step-0000012");
    let eval = |folder: &Path, code: i32| {
        let data = binaries::workspace().join("README.md");
        failure(
            binaries::infer(&[
                "eval",
                folder.to_str().unwrap(),
                "--data",
                data.to_str().unwrap(),
            ]),
            code,
        )
    };
    let copy = |name: &str| {
        let to = test.path(name);
        fs::create_dir(&to).unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(checkpoint.join(file), to.join(file)).unwrap();
        }
        to
    };
    let weights = fs::read(checkpoint.join("model.safetensors")).unwrap();
    let config = fs::read_to_string(checkpoint.join("config.json")).unwrap();

    let cut = copy("cut");
    for length in [0, 7, 200, weights.len() / 2, weights.len() - 1] {
        fs::write(cut.join("model.safetensors"), &weights[..length]).unwrap();
        let text = eval(&cut, 1);
        assert!(
            text.contains("model.safetensors is damaged") && text.contains("hint: "),
            "{text}"
        );
    }
    let other = copy("other");
    for (from, to, words) in [
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "missing (model.layers.2.",
        ),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            "not part of the model (model.layers.1.",
        ),
        (
            "\"hidden_size\": 32",
            "\"hidden_size\": 30",
            "[16, 32], expected [16, 30]",
        ),
        (
            "\"hidden_act\": \"silu\"",
            "\"hidden_act\": \"gelu\"",
            "hidden_act = \"gelu\"",
        ),
        (
            "\"model_type\": \"mixtral\"",
            "\"model_type\": \"bert\"",
            "model_type = \"bert\"",
        ),
        ("\"rms_norm_eps\"", "\"other\"", "other"),
        // An absent size is the family's own.
        ("\"vocab_size\"", "\"_other\"", "expected [32000, 32]"),
    ] {
        assert!(config.contains(from), "{from} in {config}");
        fs::write(other.join("config.json"), config.replace(from, to)).unwrap();
        let text = eval(&other, 1);
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    // An end-of-text token that the model has no embedding for.
    let smaller = copy("smaller");
    let text = fs::read_to_string(smaller.join("config.json")).unwrap();
    fs::write(
        smaller.join("config.json"),
        text.replace("\"eos_token_id\": 0", "\"eos_token_id\": 300"),
    )
    .unwrap();
    let text = eval(&smaller, 1);
    assert!(text.contains("300"), "{text}");
}

#[test]
fn prompts_that_cannot_be_used() {
    let test = TestRun::new();
    let (prompts, output) = (test.path("prompts.jsonl"), test.path("texts.jsonl"));
    let generate = |more: &[&str]| {
        // Files are looked at before a checkpoint is.
        let mut arguments = vec!["generate", "no-checkpoint"];
        arguments.extend(more);
        failure(binaries::infer(&arguments), 2)
    };
    let from_file = ["--prompts", prompts.to_str().unwrap()];
    fs::write(&prompts, "{\"prompt\": \"a\"}\n{\"prompt\": 3}\n").unwrap();
    let text = generate(&from_file);
    for words in ["prompts.jsonl:2: column", "expected a string", "hint: "] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    fs::write(&prompts, "{\"prompt\": \"a\"}\n").unwrap();
    fs::write(&output, "my notes\n").unwrap();
    let text = generate(&[&from_file[..], &["--output", output.to_str().unwrap()]].concat());
    for words in ["texts.jsonl:1 is not an answer of this command", "hint: "] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    assert_eq!(fs::read_to_string(&output).unwrap(), "my notes\n");
    for (more, words) in [
        (
            &["--prompt", "a", "--batch", "2"][..],
            "cannot be used with",
        ),
        (&["--prompt", "a", "--output", "b"], "cannot be used with"),
        (&["--prompt", "a", "--draft-tokens", "2"], "--draft"),
        (
            &["--prompt", "a", "--draft", "b", "--draft-tokens", "many"],
            "auto",
        ),
        (&[], "--prompt"),
    ] {
        let text = generate(more);
        assert!(text.contains(words), "{more:?}: no {words:?} in {text}");
    }
}

#[test]
fn no_output_takes_the_place_of_what_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = fixtures::folder("llama-f16");
    for (name, content) in fixtures::files(&source) {
        fs::write(folder.path().join(name), content).expect("written");
    }
    let checkpoint = folder.path().to_str().expect("a path");
    let file = |name: &str| format!("{checkpoint}/{name}");
    let (weights, input) = (file("model.safetensors"), file("expected.safetensors"));
    let before = fs::read(&weights).expect("weights");
    for (output, words) in [
        (&input, "is the input"),
        (&weights, "is a file of the checkpoint"),
    ] {
        let arguments = ["trace", checkpoint, "--input", &input, "--output", output];
        let text = failure(binaries::infer(&arguments), 2);
        assert!(text.contains(words) && text.contains("hint: "), "{text}");
    }
    let arguments = ["compare", checkpoint, "--html", &weights];
    let text = failure(binaries::infer(&arguments), 2);
    assert!(text.contains("must end in .html"), "{text}");
    assert_eq!(fs::read(&weights).expect("weights"), before);
}
