//! `infer plan` as a user runs it.

#[path = "../src/testing.rs"]
mod testing;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testing::{TinyCheckpoint, tiny_config};

/// The exit code, standard output and standard error of a plan, in the repository's folder.
fn plan(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firebox-infer"));
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    command.current_dir(repository).arg("plan").args(arguments);
    let output = command.env_remove("RUST_LOG").stdin(Stdio::null()).output();
    let output = output.expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("it ends by itself");
    (code, text(output.stdout), text(output.stderr))
}

fn stdout(arguments: &[&str]) -> String {
    let (code, stdout, stderr) = plan(arguments);
    assert_eq!(code, 0, "{stderr}");
    stdout
}

fn json(arguments: &[&str]) -> Value {
    let output = stdout(&[arguments, &["--json"]].concat());
    serde_json::from_str(&output).expect("JSON")
}

/// The message of a plan that fails for its usage, and prints nothing else.
fn usage_error(arguments: &[&str]) -> String {
    let (code, stdout, stderr) = plan(arguments);
    assert_eq!((code, &*stdout), (2, ""), "{stderr}");
    assert!(!stderr.contains("internal error"), "{stderr}");
    stderr
}

const GPT4: [&str; 5] = ["configs/gpt4.toml", "--tensor", "8", "--pipeline", "16"];

#[test]
fn the_described_model_in_tables_and_json() {
    let beside = [
        "--beside",
        "configs/dense-175b.toml",
        "--draft-acceptance",
        "0.8",
    ];
    let arguments = [&GPT4[..], &beside].concat();
    let text = stdout(&arguments);
    for part in [
        "16 pipeline stages × 8 tensor ranks, on A100 80 GB",
        "wrong by a factor of 1000",
        "memory of the fullest rank",
        "time per output token",
        "cost of 1 M tokens",
        "communication per token (one rank per stage)",
        "all-reduces of layers      240",
        "sends between stages        15",
        "activations are sent as 2 bytes a value",
        "ranks of configs/dense-175b.toml",
        "cost ratio 3 at a batch of ",
        "speculative decoding",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let report = json(&arguments);
    assert_eq!(report["plan"]["ranks"], 128);
    assert_eq!(report["plan"]["traffic"]["hops"]["bytes"], 15 * 21_504);
    assert_eq!(report["by_batch"].as_array().map(Vec::len), Some(7));
    assert_eq!(report["speculation"].as_array().map(Vec::len), Some(13));
    let wide = json(&[&GPT4[..], &["--message-dtype", "f32"]].concat());
    assert_eq!(wide["plan"]["traffic"]["hops"]["bytes"], 2 * 15 * 21_504);
    assert_eq!(wide["plan"]["weight_bytes"], report["plan"]["weight_bytes"]);
    assert!(wide.get("beside").is_none() && wide.get("speculation").is_none());
}

#[test]
fn what_does_not_fit_is_marked_and_what_is_not_there_is_left_out() {
    let alone = stdout(&["configs/quickstart.toml", "--batch", "4"]);
    for part in [
        "* does",
        "communication",
        "cost ratio",
        "speculative",
        "factor of 1000",
    ] {
        assert!(!alone.contains(part), "{part} is in\n{alone}");
    }
    let full = stdout(&["configs/gpt4.toml", "--tensor", "8", "--pipeline", "4"]);
    assert!(full.contains("* does not fit into memory"), "{full}");
    assert!(full.contains("does not fit into 74.5 GiB"), "{full}");
    // The dense model on one rank of a laptop.
    let beside = [
        "--hardware",
        "laptop",
        "--beside",
        "configs/dense-175b.toml",
    ];
    let text = stdout(&[&["configs/quickstart.toml"][..], &beside].concat());
    assert!(
        text.contains("–  ") && text.contains("– where none fit"),
        "{text}"
    );
}

#[test]
fn a_model_that_sees_is_planned_with_its_pictures() {
    let vision = [
        "configs/gpt4-vision.toml",
        "--tensor",
        "8",
        "--pipeline",
        "16",
    ];
    let found = json(&vision);
    assert_eq!(found["workload"]["pictures"], 1);
    let tower = &found["model"]["parameters"]["tower"];
    assert!(tower.as_u64() > Some(800_000_000), "{tower}");
    let total = found["model"]["total"].as_f64().expect("a number");
    assert!((1.87e12..1.89e12).contains(&total), "{total}");
    assert!(found["plan"]["picture_bytes"].as_f64() > Some(0.0));
    // Two sums for each of 150 layers.
    assert_eq!(found["plan"]["traffic"]["layer_sums"]["count"], 300);
    let blind = json(&[&vision[..], &["--pictures", "0"]].concat());
    assert_eq!(blind["plan"]["traffic"]["layer_sums"]["count"], 240);
    assert_eq!(blind["plan"]["weight_bytes"], found["plan"]["weight_bytes"]);
    let first = |of: &Value| of["plan"]["first_token_seconds"].as_f64();
    assert!(first(&blind) < first(&found));
    let text = stdout(&vision);
    for part in ["a picture", "and 1 picture, ", "of them of pictures"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    // Its text model is trained first.
    let small = json(&["configs/vision.toml", "--hardware", "laptop"]);
    assert_eq!(small["model"]["parameters"]["embedding"], 608 * 96);
    let error = usage_error(&["configs/gpt4.toml", "--pictures", "2"]);
    assert!(
        error.contains("configs/gpt4.toml sees no pictures"),
        "{error}"
    );
    let many = ["configs/vision.toml", "--prompt", "4", "--pictures", "5"];
    let error = usage_error(&many);
    assert!(error.contains("no room for a token for each"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let circle = folder.path().join("circle.toml");
    fs::write(&circle, format!("[train]\ninit = {circle:?}\n")).expect("written");
    let error = usage_error(&[circle.to_str().expect("UTF-8")]);
    assert!(error.contains("leads back to itself"), "{error}");
}

#[test]
fn texts_are_as_long_as_the_context_allows() {
    let workload = |arguments: &[&str]| {
        let report = json(&[&["configs/quickstart.toml"], arguments].concat());
        let tokens = |key: &str| report["workload"][key].as_u64().expect("a number");
        (tokens("prompt"), tokens("output"))
    };
    assert_eq!(workload(&[]), (192, 64));
    assert_eq!(workload(&["--output", "200"]), (56, 200));
    assert_eq!(workload(&["--prompt", "250"]), (250, 6));
    let beside = ["configs/gpt4.toml", "--beside", "configs/quickstart.toml"];
    let report = json(&beside);
    assert_eq!(report["workload"]["prompt"], 192);
    let largest = u64::MAX.to_string();
    for prompt in ["256", &largest] {
        let error = usage_error(&["configs/quickstart.toml", "--prompt", prompt]);
        let expected = format!(
            "a prompt of {prompt} and an output of 1 tokens exceed the context of 256 of configs/quickstart.toml"
        );
        assert!(error.contains(&expected), "{error}");
        assert!(error.contains("lower --prompt or --output"), "{error}");
    }
}

#[test]
fn a_search_stays_within_its_bounds() {
    let search = ["configs/dense-175b.toml", "--search", "--batch", "16"];
    let found = json(&[&search[..], &["--max-ranks", "16"]].concat());
    assert!(found["plan"]["ranks"].as_u64() <= Some(16));
    assert_eq!(found["plan"]["fits"], true);
    let error = usage_error(&[&search[..], &["--max-ranks", "2"]].concat());
    assert!(
        error.contains("do not fit on 2 ranks in any layout"),
        "{error}"
    );
    assert!(error.contains("--max-ranks"), "{error}");
    let error = usage_error(&[&search[..], &["--tensor", "2"]].concat());
    assert!(error.contains("--tensor"), "{error}");
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mine.toml");
    let laptop = fs::read_to_string("../configs/hardware/laptop.toml").expect("a file");
    fs::write(&file, laptop.replace("node = ", "nodes = ")).expect("written");
    let (file, dense) = (file.to_str().expect("UTF-8"), "configs/dense-175b.toml");
    for (arguments, expected) in [
        (vec!["configs/gpt4.toml", "--hardware", file], "(line "),
        (
            vec!["configs/gpt4.toml", "--hardware", "b900"],
            "a100, h100, laptop",
        ),
        (
            vec!["configs/gpt4.toml", "--pipeline", "121"],
            "the model's 120 layers",
        ),
        (
            vec![
                dense,
                "--tensor",
                "64",
                "--beside",
                "configs/quickstart.toml",
                "--prompt",
                "9",
            ],
            "configs/quickstart.toml cannot have the 64 tensor ranks of the model that it is beside",
        ),
        (
            vec!["configs/gpt4.toml", "--draft-acceptance", "1.5"],
            "must be a number from 0 to 1",
        ),
        (
            vec!["configs/gpt4.toml", "--search", "--latency", "0"],
            "must be a number greater than 0",
        ),
        (vec!["configs/nothing.toml"], "configs/nothing.toml"),
    ] {
        let error = usage_error(&arguments);
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
}

#[test]
fn a_fallible_layout_beside_gives_no_panic() {
    let beside = ["--hardware", "laptop", "--tensor", "64", "--beside"];
    let arguments = [
        &["configs/gpt4.toml"][..],
        &beside,
        &["configs/dense-175b.toml"],
    ]
    .concat();
    assert!(stdout(&arguments).contains("by batch"));
}

#[test]
fn an_accepted_field_is_warned_of() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 1);
    let path = tiny.path().join("config.json");
    let text = fs::read_to_string(&path).expect("a file");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["lab_notes"] = "none".into();
    fs::write(&path, config.to_string()).expect("written");
    let checkpoint = tiny.path().to_str().expect("UTF-8");
    let (code, _, stderr) = plan(&[checkpoint, "--accept", "lab_notes"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("lab_notes = \"none\" is accepted"),
        "{stderr}"
    );
    let (code, _, stderr) = plan(&[checkpoint]);
    assert_ne!(code, 0);
    assert!(stderr.contains("lab_notes"), "{stderr}");
}

#[test]
fn predicted_and_measured_times_of_every_layout_and_batch() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 1);
    let checkpoint = tiny.path().to_str().expect("UTF-8");
    let file = tiny.path().join("here.toml");
    let file = file.to_str().expect("UTF-8");
    let measure = ["--measure", "--layouts", "1x1,2x1,1x2", "--batches", "1,3"];
    let arguments = [&[checkpoint][..], &measure, &["--hardware-out", file]].concat();
    let found = json(&arguments);
    let rows = found["rows"].as_array().expect("rows");
    let mut expected = Vec::new();
    for (pipeline, tensor) in [(1, 1), (2, 1), (1, 2)] {
        for (phase, batch) in [("first_token", 1), ("token", 1), ("token", 3)] {
            expected.push((pipeline, tensor, phase, batch));
        }
    }
    assert_eq!(rows.len(), expected.len());
    for (row, (pipeline, tensor, phase, batch)) in rows.iter().zip(expected) {
        assert_eq!(row["layout"]["pipeline"], pipeline);
        assert_eq!(row["layout"]["tensor"], tensor);
        assert_eq!(row["phase"], phase);
        assert_eq!(row["batch"], batch);
        for seconds in ["predicted_seconds", "measured_seconds"] {
            let seconds = row[seconds].as_f64().expect("a time");
            assert!(seconds > 0.0 && seconds.is_finite(), "{row}");
        }
    }
    // The file that it wrote is hardware like any other.
    let planned = json(&[checkpoint, "--hardware", file, "--dtype", "f32"]);
    assert_eq!(planned["hardware"], found["hardware"]);

    let text = stdout(&[
        checkpoint,
        "--measure",
        "--layouts",
        "1x2",
        "--batches",
        "2",
    ]);
    for part in [
        "predicted ÷ measured",
        "to first token",
        "per output token",
        "of 2 predictions",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    for (more, expected) in [
        (vec!["--measure", "--batch", "4"], "--batch"),
        (vec!["--layouts", "1x1"], "--measure"),
        (
            vec!["--measure", "--layouts", "3x1"],
            "the model's 2 layers",
        ),
        (
            vec!["--measure", "--prompt", "40"],
            "exceed the context of 32",
        ),
    ] {
        let error = usage_error(&[&[checkpoint][..], &more].concat());
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
}
