//! The binary on many ranks, as a user runs it.

#[path = "../src/testing.rs"]
mod testing;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use testing::{TinyCheckpoint, tiny_config};

/// The exit code, standard output and standard error of a command with a checkpoint.
fn infer(checkpoint: &Path, arguments: &[&str], more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firebox-infer"));
    command.arg(arguments[0]).arg(checkpoint);
    command.args(&arguments[1..]).args(more);
    let output = command.env_remove("RUST_LOG").stdin(Stdio::null()).output();
    let output = output.expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("it ends by itself");
    (code, text(output.stdout), text(output.stderr))
}

fn stdout(checkpoint: &Path, arguments: &[&str], more: &[&str]) -> String {
    let (code, stdout, stderr) = infer(checkpoint, arguments, more);
    assert_eq!(code, 0, "{stderr}");
    stdout
}

const RANKS: [&[&str]; 3] = [
    &["--tensor", "2"],
    &["--pipeline", "2"],
    &["--pipeline", "2", "--tensor", "2", "--expert", "2"],
];

#[test]
fn texts_are_those_of_one_rank() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let file = tiny.path().join("prompts.jsonl");
    let texts = ["fire", "a b c", "", "fire and ash", "coal"];
    let lines = texts.map(|text| format!("{{\"prompt\": \"{text}\", \"max_tokens\": 12}}\n"));
    fs::write(&file, lines.concat()).unwrap();
    let many = ["generate", "--prompts", file.to_str().unwrap()];
    let one = ["generate", "--prompt", "fire", "--max-tokens", "40"];
    for arguments in [&many[..], &one] {
        let alone = stdout(tiny.path(), arguments, &[]);
        assert!(alone.len() > 20, "{alone}");
        for ranks in RANKS {
            assert_eq!(stdout(tiny.path(), arguments, ranks), alone, "{ranks:?}");
        }
    }
    let alone = stdout(tiny.path(), &many, &[]);
    for in_flight in ["1", "4", "16"] {
        let draft = ["--draft", "prompt-lookup", "--draft-tokens", "3"];
        let ranks = [&["--pipeline", "2", "--in-flight", in_flight], &draft[..]].concat();
        assert_eq!(stdout(tiny.path(), &many, &ranks), alone, "{in_flight}");
    }
}

#[test]
fn a_divided_checkpoint_runs_as_it_is_divided() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let divided = tiny.path().join("divided");
    let output = ["--output", divided.to_str().unwrap()];
    let ranks = ["shard", "--pipeline", "2", "--tensor", "2"];
    stdout(tiny.path(), &ranks, &output);
    let generate = ["generate", "--prompt", "fire", "--max-tokens", "12"];
    let alone = stdout(tiny.path(), &generate, &[]);
    assert_eq!(stdout(&divided, &generate, &[]), alone);
    let same = ["--pipeline", "2", "--tensor", "2"];
    assert_eq!(stdout(&divided, &generate, &same), alone);
    let (code, _, stderr) = infer(&divided, &generate, &["--tensor", "2"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.contains("is divided among 2 pipeline stages × 2 tensor ranks"),
        "{stderr}"
    );
}

#[test]
fn losses_are_those_of_one_rank() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let data = tiny.path().join("text.txt");
    fs::write(&data, "The fire burns in the box.\n".repeat(30)).unwrap();
    let arguments = ["eval", "--json", "--data", data.to_str().unwrap()];
    let loss = |ranks: &[&str]| {
        let output = stdout(tiny.path(), &arguments, ranks);
        let json: serde_json::Value = serde_json::from_str(&output).expect("JSON");
        json["nats_per_token"].as_f64().expect("a loss")
    };
    let alone = loss(&[]);
    for ranks in RANKS {
        let among = loss(ranks);
        assert!((among / alone - 1.0).abs() < 1e-6, "{among}, {alone}");
    }
}

#[test]
fn layouts_are_compared_part_by_part() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let layouts = "1x1,2x1,1x2,2x2x2";
    let compare = [
        "compare",
        "--devices",
        "flex",
        "--layouts",
        layouts,
        "--json",
    ];
    let found = stdout(tiny.path(), &compare, &["--tokens", "48"]);
    let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
    let rows = found["rows"].as_array().expect("a row for each");
    let names: Vec<&str> = rows
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["flex", "flex·2x1", "flex·1x2", "flex·2x2x2"]);
    for row in &rows[1..] {
        let parts = row["measured"]["differences"]["parts"].as_array();
        assert!(parts.is_some_and(|parts| parts.len() > 10), "{row}");
    }
}

#[test]
fn what_ranks_cannot_do_is_refused_in_words() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let refused = |arguments: &[&str]| {
        let (code, stdout, stderr) = infer(tiny.path(), arguments, &[]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains("hint: "), "{stderr}");
        stderr
    };
    let generate = |option| refused(&["generate", "--prompt", "a", option, "99"]);
    let said = generate("--tensor");
    assert!(said.contains("--tensor 99 is more ranks than"), "{said}");
    let said = generate("--pipeline");
    assert!(said.contains("--pipeline 99 is more stages than"), "{said}");
    let said = generate("--expert");
    assert!(said.contains("--expert 99 must divide"), "{said}");
    let trace = [
        "trace",
        "--input",
        "a",
        "--output",
        "b",
        "--gradients",
        "--tensor",
        "2",
    ];
    let said = refused(&trace);
    assert!(
        said.contains("--gradients works only on a single rank"),
        "{said}"
    );
}

#[test]
fn what_is_wrong_with_a_rank_s_files_is_told_once() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let weights = tiny.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let arguments = ["generate", "--prompt", "a", "--pipeline", "2"];
    let (code, stdout, stderr) = infer(tiny.path(), &arguments, &[]);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert_eq!(stderr.matches("model.safetensors").count(), 1, "{stderr}");
}
