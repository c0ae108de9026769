//! The binary on many ranks, as a user runs it.

#[path = "../src/testing.rs"]
mod testing;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testing::{TinyCheckpoint, seeing_config, tiny_config};

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
fn captions_are_evaluated_as_on_one_rank() {
    let tiny = TinyCheckpoint::new(&seeing_config(), 5);
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/pictures");
    let names = ["opaque.png", "palette.png", "transparent.png"];
    let lines = (0..18).map(|number| {
        let image = pictures.join(names[number % 3]);
        let group = if number == 17 { "alone" } else { "others" };
        format!("{{\"image\": {image:?}, \"caption\": \"fire {number}\", \"kind\": \"{group}\"}}\n")
    });
    let data = tiny.path().join("pairs.jsonl");
    fs::write(&data, lines.collect::<String>()).unwrap();
    let data = data.to_str().unwrap();
    let arguments = ["eval", "--json", "--image", "image", "--group", "kind"];
    let arguments = [&arguments[..], &["--data", data, "--batch", "5"]].concat();
    let page = tiny.path().join("page.html");
    let html = ["--html", page.to_str().unwrap()];
    let evaluated = |checkpoint: &Path, ranks: &[&str]| {
        let output = stdout(checkpoint, &arguments, &[ranks, &html].concat());
        let report: Value = serde_json::from_str(&output).expect("JSON");
        (report, fs::read_to_string(&page).unwrap())
    };
    let (alone, page_alone) = evaluated(tiny.path(), &[]);
    let [all, many, one] = [&alone, &alone["groups"][0], &alone["groups"][1]];
    let loss = |of: &Value, behind: &str| of["nats_per_token"][behind].as_f64();
    assert_ne!(loss(many, "right"), loss(many, "other"));
    assert_eq!((loss(one, "other"), loss(all, "other")), (None, None));
    assert_eq!(
        (alone["alone"].as_u64(), many["tried"].as_u64()),
        (Some(1), Some(17))
    );
    let divided = tiny.path().join("divided");
    let output = ["--output", divided.to_str().unwrap()];
    stdout(
        tiny.path(),
        &["shard", "--pipeline", "2", "--tensor", "2"],
        &output,
    );
    for (checkpoint, ranks) in RANKS
        .map(|ranks| (tiny.path(), ranks))
        .into_iter()
        .chain([(&*divided, &[][..])])
    {
        let (among, page) = evaluated(checkpoint, ranks);
        assert!(!page.contains("Twemoji"));
        for (found, expected) in [(&among, all), (&among["groups"][0], many)] {
            for behind in ["right", "other", "none"] {
                let (Some(found), Some(expected)) = (loss(found, behind), loss(expected, behind))
                else {
                    assert_eq!(loss(found, behind), loss(expected, behind));
                    continue;
                };
                assert!((found / expected - 1.0).abs() < 1e-6, "{ranks:?}, {behind}");
            }
            assert_eq!(found["found"], expected["found"], "{ranks:?}");
        }
        assert_eq!(among["expert_load"], alone["expert_load"], "{ranks:?}");
        assert_eq!(
            page.matches("<img").count(),
            page_alone.matches("<img").count()
        );
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
