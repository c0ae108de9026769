//! The binary as a user runs it: exit codes, standard output and standard error.

#[path = "../src/testing.rs"]
mod testing;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use testing::{TinyCheckpoint, seeing_config, tiny_config};

fn infer<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firebox-infer"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn output<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Output {
    infer(arguments).output().unwrap()
}

fn words(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The text on standard output of a command that succeeds.
fn succeed<'a>(arguments: impl IntoIterator<Item = &'a str>) -> String {
    let output = output(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The text on standard error of a command that fails with this code and prints nothing on standard output.
fn fail<'a>(code: i32, arguments: impl IntoIterator<Item = &'a str>) -> String {
    let output = output(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    errors
}

#[test]
fn eval_of_captions_prints_tables_and_writes_a_page() {
    let tiny = TinyCheckpoint::new(&seeing_config(), 1);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/pictures");
    let fixtures = fixtures.canonicalize().unwrap();
    let lines = |count: usize| -> String {
        let line = |number: usize| {
            let name = ["opaque.png", "palette.png", "transparent.png"][number % 3];
            let image = fixtures.join(name);
            let kind = ["even", "odd"][number % 2];
            let line = serde_json::json!({ "image": image, "caption": format!("fire <{number}>"), "kind": kind });
            format!("{line}\n")
        };
        (0..count).map(line).collect()
    };
    let data = tiny.path().join("pairs.jsonl");
    fs::write(&data, lines(40)).unwrap();
    let html = tiny.path().join("page.html");
    let arguments = [
        "eval",
        words(tiny.path()),
        "--data",
        words(&data),
        "--image",
        "image",
    ];
    let more = ["--group", "kind", "--tried", "3", "--html", words(&html)];
    let table = succeed(arguments.into_iter().chain(more));
    for part in [
        "Nats per token",
        "even",
        "odd",
        "right of 16",
        "Bits per byte",
        "dead experts",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let page = fs::read_to_string(&html).unwrap();
    for part in [
        "Random pictures",
        "Highest loss",
        "Lowest loss",
        "of 16",
        "fire &lt;",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // It loads nothing, and every picture is a file of its own.
    assert!(!page.contains("http") && !page.contains("<script"));
    assert_eq!(page.matches("<article").count(), 24);
    assert_eq!(
        page.matches("--picture:url(data:image/png;base64,").count(),
        24
    );

    let json = succeed(
        arguments
            .into_iter()
            .chain(["--json", "--max-captions", "5"]),
    );
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&report["captions"], &report["found"]),
        (&5.into(), &Value::Null)
    );

    // A caption by itself has no other picture.
    assert!(table.contains("another"), "{table}");
    let one = succeed(arguments.into_iter().chain(["--max-captions", "1"]));
    assert!(
        one.contains("right picture") && !one.contains("another"),
        "{one}"
    );

    // What cannot be evaluated.
    let blind = TinyCheckpoint::new(&tiny_config(), 1);
    let path = words(blind.path());
    let errors = fail(
        2,
        ["eval", path, "--data", words(&data), "--image", "image"],
    );
    assert!(
        errors.contains("--image: ") && errors.contains("sees no pictures"),
        "{errors}"
    );
    let empty = tiny.path().join("empty.jsonl");
    fs::write(&empty, "\n").unwrap();
    let checkpoint = words(tiny.path());
    let errors = fail(
        2,
        [
            "eval",
            checkpoint,
            "--data",
            words(&empty),
            "--image",
            "image",
        ],
    );
    assert!(errors.contains("no pictures with captions in"), "{errors}");
    let errors = fail(
        1,
        [
            "eval",
            checkpoint,
            "--data",
            words(&data),
            "--image",
            "picture",
        ],
    );
    assert!(
        errors.contains("pairs.jsonl:1") && errors.contains("picture"),
        "{errors}"
    );
    let long =
        serde_json::json!({ "image": fixtures.join("opaque.png"), "caption": "fire ".repeat(9) });
    fs::write(&data, long.to_string()).unwrap();
    let errors = fail(1, arguments);
    assert!(
        errors.contains("pairs.jsonl:1: the caption has 46 tokens")
            && errors.contains("context of 32"),
        "{errors}"
    );
    let errors = fail(2, arguments.into_iter().chain(["--on-error", "skip"]));
    assert!(errors.contains("(1 pair left out)"), "{errors}");
    fail(
        2,
        [
            "eval",
            checkpoint,
            "--data",
            words(&data),
            "--group",
            "kind",
        ],
    );
}

#[test]
fn eval_prints_a_table_or_json() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 1);
    let data = tiny.path().join("text.txt");
    fs::write(&data, "The fire burns in the box.\n".repeat(30)).unwrap();
    let arguments = ["eval", words(tiny.path()), "--data", words(&data)];

    let table = succeed(arguments);
    assert!(
        table.contains("bits per byte") && table.contains("dead experts"),
        "{table}"
    );

    let json: Value =
        serde_json::from_str(&succeed(arguments.into_iter().chain(["--json"]))).unwrap();
    let keys: Vec<&str> = json
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "tokens",
            "bytes",
            "nats_per_token",
            "perplexity",
            "bits_per_byte",
            "balance",
            "balance_mean",
            "expert_load",
            "router_entropy",
            "router_z",
            "tokens_per_second",
            "device",
        ]
    );
    assert_eq!(json["tokens"], 27 * 30);
    let nats = format!("{:.6}", json["nats_per_token"].as_f64().unwrap());
    assert!(table.contains(&nats), "{nats} is not in {table}");
}

#[test]
fn a_text_sees_the_pictures_that_are_given() {
    let seeing = TinyCheckpoint::new(&seeing_config(), 1);
    let blind = TinyCheckpoint::new(&tiny_config(), 1);
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/pictures");
    let [opaque, palette, none] =
        ["opaque.png", "palette.png", "settings.json"].map(|name| pictures.join(name));
    let generate = |checkpoint: &TinyCheckpoint, more: &[&str]| {
        let prompt = [
            "--prompt",
            "fire",
            "--temperature",
            "0",
            "--max-tokens",
            "9",
        ];
        let start = ["generate".to_owned(), words(checkpoint.path()).to_owned()];
        let all = prompt.iter().chain(more).map(|&word| word.to_owned());
        start.into_iter().chain(all).collect::<Vec<String>>()
    };
    let text = |more: &[&str]| {
        let arguments = generate(&seeing, more);
        succeed(arguments.iter().map(String::as_str))
    };
    let one = text(&["--image", words(&opaque)]);
    assert!(one.starts_with("fire"), "{one:?}");
    assert_ne!(one, text(&[]));
    assert_ne!(one, text(&["--image", words(&palette)]));
    let lookup = ["--image", words(&opaque), "--draft", "prompt-lookup"];
    assert_eq!(one, text(&lookup));
    let error = |code, checkpoint, more: &[&str]| {
        let arguments = generate(checkpoint, more);
        fail(code, arguments.iter().map(String::as_str))
    };
    let image = ["--image", words(&opaque)];
    let found = error(2, &blind, &image);
    assert!(
        found.contains("sees no pictures") && found.contains("hint: "),
        "{found}"
    );
    let found = error(1, &seeing, &["--image", words(&none)]);
    assert!(found.contains("settings.json"), "{found}");
    let draft = [&image[..], &["--draft", words(blind.path())]].concat();
    let found = error(2, &seeing, &draft);
    assert!(found.contains("a draft model sees no pictures"), "{found}");
    for ranks in [["--tensor", "2"], ["--pipeline", "2"]] {
        assert_eq!(one, text(&[&image[..], &ranks].concat()), "{ranks:?}");
    }
    // The text of a comparison fills the context, in which the token of a picture needs a place too.
    let checkpoint = words(seeing.path());
    let compared = ["compare", checkpoint, "--devices", "flex", "--json"];
    let compared = succeed(compared.into_iter().chain(image));
    let compared: Value = serde_json::from_str(&compared).unwrap();
    let speed = &compared["rows"][0]["measured"]["decode_tokens_per_second"];
    assert!(speed.as_f64() > Some(0.0), "{compared}");
    // What is left of it without pictures writes what it writes without them.
    let left = seeing.path().join("left");
    succeed([
        "export",
        words(seeing.path()),
        "--output",
        words(&left),
        "--text-only",
    ]);
    let prompt = [
        "--prompt",
        "fire",
        "--temperature",
        "0",
        "--max-tokens",
        "9",
    ];
    let of_left = succeed(["generate", words(&left)].into_iter().chain(prompt));
    assert_eq!(of_left, text(&[]));
}

#[test]
fn text_beyond_the_context_is_warned_of() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 1);
    // Two bytes of a context of 32 tokens.
    let warning = |count: &str| {
        let mut arguments = vec!["generate", words(tiny.path()), "--prompt", "ab"];
        arguments.extend(["--temperature", "0", "--max-tokens", count]);
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(0));
        let errors = String::from_utf8(output.stderr).unwrap();
        let lines = errors.lines();
        let warnings: Vec<String> = lines
            .filter(|line| line.contains("warning"))
            .map(str::to_owned)
            .collect();
        warnings.concat()
    };
    // The 31st token follows the 32 that fit.
    assert_eq!(warning("31"), "");
    let text = warning("32");
    assert!(
        text.contains("after 31 generated tokens") && text.contains("context of 32 tokens"),
        "{text}"
    );
}

#[test]
fn generate_continues_standard_input() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 1);
    let arguments = [
        "generate",
        words(tiny.path()),
        "--prompt",
        "-",
        "--max-tokens",
        "20",
        "--seed",
        "3",
    ];
    let run = || {
        let mut child = infer(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all("Feuer für ".as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let first = run();
    assert_eq!(first.status.code(), Some(0));
    let text = String::from_utf8(first.stdout.clone()).unwrap();
    assert!(
        text.starts_with("Feuer für ") && text.ends_with('\n'),
        "{text:?}"
    );
    assert!(
        String::from_utf8(first.stderr)
            .unwrap()
            .contains("tokens/s")
    );
    assert_eq!(run().stdout, first.stdout);
}

#[test]
fn devices_are_listed() {
    let table = succeed(["devices"]);
    let json: Value = serde_json::from_str(&succeed(["devices", "--json"])).unwrap();
    for backend in json.as_array().unwrap() {
        assert!(table.contains(backend["name"].as_str().unwrap()), "{table}");
        assert_eq!(
            backend["hint"].is_null(),
            !backend["devices"].as_array().unwrap().is_empty()
        );
        let devices = backend["devices"].as_array().unwrap();
        let adapters = backend["adapters"].as_array().unwrap();
        assert_eq!(adapters.len(), devices.len());
        for (adapter, device) in adapters.iter().zip(devices) {
            assert_eq!(&adapter["device"], device);
            let dtypes = adapter["dtypes"].as_array().unwrap();
            assert!(dtypes.contains(&"f32".into()), "{adapter}");
        }
    }
    let known = firebox_runtime::device::backends().len();
    assert_eq!(json.as_array().unwrap().len(), known);
}

#[test]
fn wrong_usage_exits_with_2() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 1);
    let checkpoint = words(tiny.path());
    let with = |arguments: &[&'static str]| {
        let line = ["generate", checkpoint, "--prompt", "a"]
            .into_iter()
            .chain(arguments.iter().copied());
        fail(2, line.collect::<Vec<_>>())
    };
    let errors = with(&["--device", "tpu"]);
    assert!(
        errors.starts_with("error: device = tpu: unknown"),
        "{errors}"
    );
    assert!(errors.contains("\nhint: `cargo infer devices`"), "{errors}");
    assert!(with(&["--top-p", "2"]).contains("greater than 0 and at most 1"));

    let absent = tiny.path().join("absent");
    let errors = fail(2, ["generate", words(&absent), "--prompt", "a"]);
    let missing = "absent does not exist\nhint: use a run folder";
    assert!(errors.contains(missing), "{errors}");
    let errors = fail(2, ["eval", checkpoint, "--data", words(&absent)]);
    let missing = "absent does not exist\nhint: name files of text";
    assert!(errors.contains(missing), "{errors}");
    let errors = fail(2, ["bench", checkpoint, "--dtype", "q8_0"]);
    assert!(
        errors.contains("int8, which keeps the weights of q8_0"),
        "{errors}"
    );
    let errors = fail(2, ["eval", checkpoint, "--data", checkpoint]);
    assert!(
        errors.contains("is a folder; --data takes files"),
        "{errors}"
    );

    let foreign = tempfile::tempdir().unwrap();
    let errors = fail(2, ["generate", words(foreign.path()), "--prompt", "a"]);
    assert!(
        errors.contains("is not a checkpoint: config.json is missing"),
        "{errors}"
    );
}

#[test]
fn a_damaged_checkpoint_exits_with_1() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 1);
    let generate = ["generate", words(tiny.path()), "--prompt", "a"];

    let weights = tiny.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for length in [0, 5, 100, whole.len() / 2] {
        fs::write(&weights, &whole[..length]).unwrap();
        let errors = fail(1, generate);
        assert!(
            errors.contains("model.safetensors is damaged"),
            "at {length} bytes: {errors}"
        );
        assert!(errors.contains("\nhint: "), "{errors}");
    }
    fs::write(&weights, &whole).unwrap();

    let config = tiny.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"mixtral\"", "\"gpt2\"")).unwrap();
    let errors = fail(1, generate);
    assert!(
        errors.contains("model_type = \"gpt2\": Firebox reads llama"),
        "{errors}"
    );
}

#[test]
fn a_checkpoint_is_divided_checked_and_made_again() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 1);
    let target = tempfile::tempdir().unwrap();
    let [sharded, again] = ["sharded", "again"].map(|name| target.path().join(name));
    let divide = [
        "shard",
        words(tiny.path()),
        "--tensor",
        "2",
        "--pipeline",
        "2",
        "--output",
        words(&sharded),
    ];
    let table = succeed(divide);
    assert!(
        table.contains("stage") && table.contains("mean / max"),
        "{table}"
    );
    assert_eq!(succeed(divide), table, "the same again");
    let json: Value =
        serde_json::from_str(&succeed(["verify", words(&sharded), "--json"])).unwrap();
    assert_eq!(json["faults"], serde_json::json!([]));
    assert_eq!(json["summary"]["ranks"].as_array().unwrap().len(), 4);
    succeed(["unshard", words(&sharded), "--output", words(&again)]);
    for entry in fs::read_dir(tiny.path()).unwrap() {
        let path = entry.unwrap().path();
        let copy = again.join(path.file_name().unwrap());
        assert!(
            fs::read(&path).unwrap() == fs::read(copy).unwrap(),
            "{path:?}"
        );
    }

    let errors = fail(
        2,
        [
            "shard",
            words(tiny.path()),
            "--tensor",
            "99",
            "--output",
            "x",
        ],
    );
    assert!(
        errors.contains("--tensor 99 is more ranks than the model's"),
        "{errors}"
    );
    let errors = fail(2, ["unshard", words(tiny.path()), "--output", "x"]);
    assert!(errors.contains("is not a sharded checkpoint"), "{errors}");
    fs::remove_dir_all(sharded.join("rank-001")).unwrap();
    let output = output(["verify", words(&sharded), words(tiny.path())]);
    assert_eq!(output.status.code(), Some(1));
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(found.contains("rank-001: "), "{found}");
}
