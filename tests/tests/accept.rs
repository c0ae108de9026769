//! A field of config.json that Firebox does not know and that is accepted: by every command, and remembered by what is
//! written from the checkpoint.

use std::fs;
use std::path::Path;
use std::process::Command;

use firebox_checkpoint::{CONFIG_FILE, checkpoint_folder};
use firebox_tests::binaries;
use firebox_tests::fixtures;
use firebox_tests::runs::TestRun;
use serde_json::{Value, json};

/// Runs a command; gives back what it said on standard error.
fn said(mut command: Command, code: i32) -> String {
    let output = command.output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

fn config(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join(CONFIG_FILE)).expect("a configuration");
    serde_json::from_str(&text).expect("JSON")
}

/// Checks that a checkpoint has the field, and the list that accepts it.
fn remembers(folder: &Path) {
    let config = config(folder);
    assert_eq!(config["lab_notes"], json!({ "run": 7 }), "{config}");
    assert_eq!(config["firebox_accepted"], json!(["lab_notes"]), "{config}");
}

const WARNING: &str = "lab_notes = {\"run\":7} is accepted, and ignored in what is computed";

#[test]
fn an_accepted_field_goes_through_every_command_into_what_is_written() {
    let test = TestRun::new();
    let dense = test.argument("dense");
    let run = test.argument("run.toml");
    let few = [
        "--device",
        "flex",
        "--set",
        "train.steps=2",
        "--set",
        "schedule.warmup_steps=0",
    ];
    let mut first = binaries::train(&["run", &run, "--out", &dense]);
    first.args(few).args(["--set", "model.feed_forward=dense"]);
    first.args(["--set", "model.router.bias_update_rate=0"]);
    said(first, 0);
    let folder = checkpoint_folder(Path::new(&dense)).expect("a checkpoint");
    let mut fields = config(&folder);
    fields["lab_notes"] = json!({ "run": 7 });
    fs::write(folder.join(CONFIG_FILE), fields.to_string()).expect("a file");

    // What reads text, what does not, and what runs others that do.
    let text = fixtures::folder("corpus/plays/01.txt");
    let text = text.to_str().expect("UTF-8");
    let (exported, input) = (
        test.argument("exported"),
        fixtures::folder("qwen3/expected.safetensors"),
    );
    let (input, trace) = (input.to_str().expect("UTF-8"), test.argument("trace"));
    let commands: [&[&str]; 6] = [
        &["eval", &dense, "--data", text],
        &["generate", &dense, "--prompt", "a", "--max-tokens", "2"],
        &[
            "bench",
            &dense,
            "--prompt-tokens",
            "4",
            "--new-tokens",
            "2",
            "--repeats",
            "1",
        ],
        &["trace", &dense, "--input", input, "--output", &trace],
        &[
            "compare",
            &dense,
            "--devices",
            "flex",
            "--tokens",
            "32",
            "--gradients",
        ],
        &["export", &dense, "--output", &exported],
    ];
    for arguments in commands {
        let text = said(binaries::infer(arguments), 1);
        for words in [
            "lab_notes = {\"run\":7}: llama has no such field",
            "--accept lab_notes",
        ] {
            assert!(text.contains(words), "no {words:?} in {text}");
        }
        let mut accepting = binaries::infer(arguments);
        accepting.args(["--accept", "lab_notes"]);
        let text = said(accepting, 0);
        assert!(text.contains(WARNING), "{arguments:?}: {text}");
    }
    let exported = Path::new(&exported);
    remembers(exported);
    let text = said(
        binaries::infer(&["eval", exported.to_str().expect("UTF-8"), "--data", text]),
        0,
    );
    assert!(text.contains(WARNING), "{text}");

    // A run that starts from it, here by upcycling, and its resume.
    let from = test.write(
        "from.toml",
        &format!(
            "[train]\ninit = '{dense}'\nsteps = 1\n[optimizer]\nlearning_rate = 1e-3\n[schedule]\nbatch_tokens = 32\n\
             [model]\nfeed_forward = 'moe'\nexperts = {{ count = 2, top_k = 1 }}\n"
        ),
    );
    let mixture = test.argument("mixture");
    let start = |more: &[&str]| {
        let mut command = binaries::train(&["run", &from, "--out", &mixture, "--device", "flex"]);
        command.args(more);
        command
    };
    let text = said(start(&[]), 2);
    assert!(text.contains("train.accept = [\"lab_notes\"]"), "{text}");
    let accept = ["--set", "train.accept=[\"lab_notes\"]"];
    let text = said(start(&accept), 0);
    assert!(text.contains(WARNING), "{text}");
    let folder = checkpoint_folder(Path::new(&mixture)).expect("a checkpoint");
    assert_eq!(config(&folder)["model_type"], "mixtral");
    remembers(&folder);
    let further = [&accept[..], &["--resume", "--set", "train.steps=2"]].concat();
    let text = said(start(&further), 0);
    assert!(text.contains(WARNING), "{text}");
    remembers(&checkpoint_folder(Path::new(&mixture)).expect("a checkpoint"));

    // Only what is there, and what Firebox does not know.
    for (field, words) in [
        ("lab_note", "config.json has no such field"),
        (
            "vocab_size",
            "which Firebox knows and which therefore cannot be accepted",
        ),
    ] {
        let mut command = binaries::infer(commands[0]);
        command.args(["--accept", "lab_notes", "--accept", field]);
        let text = said(command, 2);
        assert!(
            text.contains(&format!("--accept {field}: ")) && text.contains(words),
            "{text}"
        );
        let text = said(
            start(&["--set", &format!("train.accept=['lab_notes', '{field}']")]),
            2,
        );
        assert!(
            text.contains("train.accept = [") && text.contains(words),
            "{text}"
        );
    }
}
