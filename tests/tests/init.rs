//! A run that starts from a checkpoint starts where the checkpoint stands, and is a run like any other.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use firebox_checkpoint::{Accept, TensorFile, checkpoint_folder, read_config};
use firebox_tests::binaries;
use firebox_tests::runs::{TestRun, copy_at};
use serde_json::{Value, json};

/// What a run from a checkpoint needs to say.
const FROM: &str = r#"
[train]
init = "INIT"
steps = 8
micro_batch = 3
log_every = 1
validate_every = 4
validation_tokens = 512
[optimizer]
learning_rate = 5e-3
[schedule]
batch_tokens = 128
[checkpoint]
every = 2
keep_last = 100
"#;

const DENSE: [&str; 2] = [
    "model.feed_forward=dense",
    "model.router.bias_update_rate=0",
];
const UPCYCLE: [&str; 3] = [
    "model.feed_forward=moe",
    "model.experts.count=4",
    "model.experts.top_k=2",
];

/// Writes a configuration that starts from `init`, and gives back where it is.
fn from(test: &TestRun, init: &str) -> String {
    test.write("from.toml", &FROM.replace("INIT", init))
}

fn command(config: &str, out: &str, set: &[&str], resume: bool) -> Command {
    let mut arguments = vec!["run", config, "--out", out, "--device", "flex"];
    arguments.extend(set.iter().flat_map(|argument| ["--set", argument]));
    arguments.extend(resume.then_some("--resume"));
    binaries::train(&arguments)
}

/// Runs to the end; gives back what was said.
fn finish(config: &str, out: &str, set: &[&str], resume: bool) -> String {
    let output = command(config, out, set, resume)
        .output()
        .expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// A dense run of twelve steps.
fn dense(test: &TestRun) -> String {
    let out = test.argument("dense");
    finish(&test.argument("run.toml"), &out, &DENSE, false);
    out
}

/// Losses of a run's validations, in nats per token, by step.
fn validations(run: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(Path::new(run).join("metrics.jsonl")).expect("metrics");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines
        .filter(|line| line["kind"] == "validation")
        .map(|line| {
            let loss = line["nats_per_token"].as_f64();
            (
                line["step"].as_u64().expect("a step"),
                loss.expect("a loss"),
            )
        })
        .collect()
}

#[test]
fn an_upcycled_model_begins_as_the_dense_one_and_its_experts_part() {
    let test = TestRun::new();
    let dense = dense(&test);
    let (config, out) = (from(&test, &dense), test.argument("mixture"));
    let said = finish(&config, &out, &UPCYCLE, false);
    assert!(said.contains("starting from "), "{said}");
    assert!(said.contains("llama, "), "{said}");
    assert!(
        said.contains("upcycled to 4 experts, 2 per token"),
        "{said}"
    );

    let (before, after) = (validations(&dense), validations(&out));
    let (expected, (step, found)) = (before.last().expect("a validation").1, after[0]);
    assert_eq!(step, 0);
    // The two weights of a token are p / (p + q) and q / (p + q), each rounded to f32: together they are off
    // from 1 by at most 2⁻²³ = 1.2e-7, in each of two layers.
    let error = (found - expected).abs() / expected;
    println!("dense {expected}, upcycled {found}, relative error {error:.1e}");
    assert!(error < 1e-6, "{found} is not {expected}");
    assert!(after.last().expect("a validation").1 < expected);

    let folder = checkpoint_folder(Path::new(&out)).expect("a checkpoint");
    let saved = read_config(&folder, Accept::Nothing).expect("a configuration");
    assert_eq!(saved.family.model_type, "mixtral");
    let experts = saved.model.moe.expect("a mixture").experts;
    assert_eq!((experts.count, experts.d_ff), (4, 64));
    let weights = TensorFile::open(&folder.join("model.safetensors")).expect("weights");
    for layer in 0..2 {
        let experts = (0..4).map(|expert| {
            let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight");
            weights.read(&name).expect("a tensor")
        });
        let experts: Vec<Vec<f32>> = experts.collect();
        for (index, expert) in experts.iter().enumerate() {
            let twin = experts[..index].contains(expert);
            assert!(
                !twin,
                "layer {layer}: expert {index} is still another's copy"
            );
        }
    }
}

#[test]
fn a_run_goes_on_from_another_ones_checkpoint() {
    let test = TestRun::new();
    let first = test.argument("first");
    finish(&test.argument("run.toml"), &first, &[], false);
    let (config, out) = (from(&test, &first), test.argument("second"));
    finish(&config, &out, &["optimizer.learning_rate=1e-3"], false);
    let (before, after) = (validations(&first), validations(&out));
    // The same weights and the same selection bias: the same number.
    assert_eq!(before.last().expect("a validation").1, after[0].1);
    assert_eq!(
        (before.last().expect("a validation").0, after[0].0),
        (12, 0)
    );

    // The run's own configuration is a configuration.
    let (own, again) = (format!("{out}/config.toml"), test.argument("again"));
    finish(&own, &again, &[], false);
    assert_eq!(validations(&again), after);
}

#[test]
fn a_resume_needs_nothing_of_where_the_run_started() {
    let test = TestRun::new();
    let dense = dense(&test);
    let (config, whole) = (from(&test, &dense), test.argument("whole"));
    finish(&config, &whole, &UPCYCLE, false);
    fs::remove_dir_all(&dense).expect("it was there");

    let cut = test.argument("cut");
    copy_at(Path::new(&whole), Path::new(&cut), 4);
    finish(&config, &cut, &UPCYCLE, true);
    for file in [
        "model.safetensors",
        "train_state.safetensors",
        "tokenizer.json",
    ] {
        let [a, b] = [&whole, &cut].map(|run| {
            fs::read(Path::new(run).join("checkpoints/step-0000008").join(file)).expect(file)
        });
        assert!(a == b, "{file} differs");
    }
    assert_eq!(validations(&whole), validations(&cut));
    let [a, b] = [&whole, &cut].map(|run| fs::read_to_string(format!("{run}/config.toml")));
    assert_eq!(a.expect("a file"), b.expect("a file"));

    let changed = [&UPCYCLE[..], &["model.context_length=16"]].concat();
    let text = refusal(&mut command(&config, &cut, &changed, true));
    assert!(text.contains("model.context_length: 32 → 16"), "{text}");
    let elsewhere = test.argument("elsewhere");
    let text = refusal(&mut command(&config, &elsewhere, &UPCYCLE, true));
    assert!(text.contains("does not exist"), "{text}");
}

/// What a run leaves out of its model is its origin's again where a start died before its first checkpoint, and not what
/// that start wrote down.
#[test]
fn a_start_without_a_checkpoint_is_not_looked_at() {
    let test = TestRun::new();
    let dense = dense(&test);
    let config = from(&test, &dense);
    let (died, fresh) = (test.argument("died"), test.argument("fresh"));
    finish(&config, &died, &["model.context_length=16"], false);
    fs::remove_dir_all(test.path("died/checkpoints")).expect("it was there");
    let output = command(&config, &died, &[], false)
        .arg("--resume=auto")
        .output()
        .expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    finish(&config, &fresh, &[], false);
    assert_eq!(validations(&died), validations(&fresh));
    let [a, b] = [&died, &fresh].map(|run| fs::read_to_string(format!("{run}/config.toml")));
    assert_eq!(a.expect("a file"), b.expect("a file"));
}

/// What a command says that is refused as wrong usage.
fn refusal(command: &mut Command) -> String {
    let output: Output = command.output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn what_cannot_start_from_a_checkpoint_says_why() {
    let test = TestRun::new();
    let dense = dense(&test);
    let out = test.argument("run");
    let missing = from(&test, "nowhere/at/all");
    let text = refusal(&mut command(&missing, &out, &[], false));
    for word in ["train.init = ", "nowhere/at/all does not exist", "hint: "] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }

    let config = from(&test, &dense);
    let upcycled = |more: &'static str| [&UPCYCLE[..], &[more]].concat();
    let cases = [
        (
            vec!["model.d_model=64"],
            vec!["model.d_model = 64", "must be 32", "step-0000012", "hint: "],
        ),
        (
            upcycled("model.router.normalize=false"),
            vec!["normalize = false", "weights sum to 1", "hint: "],
        ),
        (
            upcycled("tokenizer={ kind = \"bpe\", vocab_size = 301 }"),
            vec![
                "tokenizer.vocab_size = 301",
                "301 ids",
                "300 embeddings",
                "hint: ",
            ],
        ),
        (
            UPCYCLE[..1].to_vec(),
            vec!["model.experts.count is missing", "is dense", "hint: "],
        ),
    ];
    for (set, words) in cases {
        let text = refusal(&mut command(&config, &out, &set, false));
        for word in words {
            assert!(text.contains(word), "{set:?}: no {word:?} in {text}");
        }
    }
    assert!(!Path::new(&out).exists(), "a refused run leaves nothing");
}

/// Words as tokens, for the 61 ids of the fixtures.
fn words() -> Value {
    let mut vocabulary = json!({ "<unk>": 0, "<s>": 1, "</s>": 2 });
    let common = "pub fn let self the a of in if for Self match use mod impl where is and to = { } ( ) ; , . :";
    for (index, word) in common.split(' ').enumerate() {
        vocabulary[word] = (index + 3).into();
    }
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    })
}

#[test]
fn a_run_starts_from_every_family_and_stays_in_it() {
    let fixtures = binaries::workspace().join("tests/fixtures");
    let families: [(&str, &[&str], &str); 8] = [
        ("mixtral-mqa", &[], "mixtral"),
        ("mixtral-tied-fused", &[], "mixtral"),
        ("olmoe-bf16-shards", &[], "olmoe"),
        ("qwen3-moe", &[], "qwen3_moe"),
        ("qwen3", &[], "qwen3"),
        ("qwen3", &UPCYCLE, "qwen3_moe"),
        ("llama-f16", &[], "llama"),
        ("llama-f16", &UPCYCLE, "mixtral"),
    ];
    for (index, (name, set, family)) in families.into_iter().enumerate() {
        let test = TestRun::new();
        let origin = test.path("origin");
        fs::create_dir(&origin).expect("a folder");
        for entry in fs::read_dir(fixtures.join(name)).expect("a fixture") {
            let entry = entry.expect("an entry");
            if entry.file_name() != "expected.safetensors" {
                fs::copy(entry.path(), origin.join(entry.file_name())).expect("a copy");
            }
        }
        fs::write(origin.join("tokenizer.json"), words().to_string()).expect("a file");
        let (config, out) = (from(&test, &test.argument("origin")), test.argument("out"));
        let set = [set, &["train.steps=2", "schedule.batch_tokens=256"]].concat();
        finish(&config, &out, &set, false);
        let folder = checkpoint_folder(Path::new(&out)).expect("a checkpoint");
        let saved = read_config(&folder, Accept::Nothing).expect("a configuration");
        assert_eq!(saved.family.model_type, family, "{index}: {name}");
        assert_eq!(saved.eos_ids, [2]);
    }
}
