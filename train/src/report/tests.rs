use std::fs;
use std::path::{Path, PathBuf};

use firebox_console::advice::Advise;

use super::*;
use crate::config::load;

const CONFIG: &str = r#"
    [model]
    layers = 1
    d_model = 8
    heads = 2
    context_length = 8
    [model.experts]
    count = 4
    top_k = 1
    d_ff = 8
    [tokenizer]
    kind = "bytes"
    [[data.source]]
    name = "notes"
    files = ["notes/*.md"]
    [train]
    steps = 40
    [optimizer]
    learning_rate = 1e-3
    [schedule]
    warmup_steps = 10
    batch_tokens = 256
"#;

const START: &str = r#"{"kind":"start","step":0,"parameters":1000,"active_parameters":400,"sources":[{"name":"notes","tokens":5000,"part":1.0}]}"#;

/// A step of 256 tokens with the given load of four experts.
fn step(step: u64, load: [f64; 4]) -> String {
    let experts = load.len() as f64;
    let most = load.into_iter().fold(0.0, f64::max) * experts;
    let dead = load.iter().filter(|&&share| share * experts < 0.05).count();
    let (tokens, seconds) = (256 * step, step as f64);
    format!(
        r#"{{"kind":"train","step":{step},"tokens":{tokens},"loss":2.5,"total_loss":2.6,"learning_rate":0.001,"gradient_norm":1.0,"batch_tokens":256,"tokens_per_expert":64.0,"tokens_per_second":256.0,"flops_per_second":1e9,"seconds":{seconds},"layers":[{{"layer":0,"load":{load:?},"max_over_mean":{most},"dead_experts":{dead},"entropy":1.0,"balance":1.0,"z":0.1}}]}}"#
    )
}

fn validation(step: u64, loss: f64) -> String {
    let (tokens, seconds, bits) = (256 * step, step as f64, loss / 2.0);
    format!(
        r#"{{"kind":"validation","step":{step},"trained_tokens":{tokens},"seconds":{seconds},"tokens":100,"bytes":300,"nats_per_token":{loss},"perplexity":2.0,"bits_per_byte":{bits},"layers":[],"sources":[]}}"#
    )
}

/// A run's folder with these lines, and an unfinished one.
fn run(root: &Path, name: &str, set: &[&str], lines: &[String]) -> PathBuf {
    let (folder, file) = (root.join(name), root.join(format!("{name}.toml")));
    fs::create_dir(&folder).unwrap();
    fs::write(&file, CONFIG).unwrap();
    let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
    let config = load(&file, &set).unwrap().to_toml().unwrap();
    fs::write(folder.join("config.toml"), config).unwrap();
    let text = format!("{START}\n{}\n{{\"kind\":\"tr", lines.join("\n"));
    fs::write(folder.join("metrics.jsonl"), text).unwrap();
    folder
}

const EVEN: [f64; 4] = [0.25; 4];
const COLLAPSED: [f64; 4] = [1.0, 0.0, 0.0, 0.0];

#[test]
fn two_runs_are_compared_and_a_collapse_is_seen() {
    let root = tempfile::tempdir().unwrap();
    let sample = r#"{"kind":"sample","step":40,"text":"<once>"}"#.to_owned();
    let lines = [
        validation(0, 5.0),
        step(5, COLLAPSED),
        step(20, EVEN),
        validation(20, 3.0),
        step(40, EVEN),
        validation(40, 2.0),
        sample,
    ];
    let first = run(root.path(), "first", &[], &lines);
    let lines = [validation(0, 5.0), step(20, COLLAPSED), validation(20, 3.5)];
    let second = run(
        root.path(),
        "second",
        &["optimizer.learning_rate=0.002"],
        &lines,
    );

    let report = Report::read(&[first, second]).unwrap();
    let [first, second] = &report.runs[..] else {
        panic!()
    };
    assert_eq!(first.warnings, [], "a collapse during the warm-up is none");
    assert_eq!(second.warnings.len(), 1);
    assert_eq!(
        second.differences,
        ["optimizer.learning_rate: 0.001 → 0.002"]
    );
    assert_eq!(first.tokens_per_second(), Some(256.0));
    assert_eq!(first.best().map(|best| best.step), Some(40));

    let text = report.to_string();
    for expected in [
        "20 of 40",
        "3.5000",
        "experts are collapsing",
        "second differs from first",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let page = report.page().render();
    assert_eq!(page.matches("share of each expert</h3>").count(), 2);
    for expected in [
        "experts are collapsing",
        "&lt;once&gt;",
        "no expert collapsed",
        "class=\"heat6\"",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(!page.contains("NaN"));
}

#[test]
fn a_run_that_has_just_begun_is_reported() {
    let root = tempfile::tempdir().unwrap();
    let folder = run(root.path(), "young", &[], &[validation(0, 5.0)]);
    let report = Report::read(&[folder]).unwrap();
    assert!(report.to_string().contains("0 of 40"), "{report}");
    assert!(!report.page().render().contains("NaN"));
}

#[test]
fn what_is_no_run_is_said() {
    let root = tempfile::tempdir().unwrap();
    let error = |folders: &[PathBuf]| {
        let error = Report::read(folders).unwrap_err();
        (error.to_string(), error.exit_code())
    };
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let (text, code) = error(&[empty]);
    assert!(
        text.contains("is not the folder of a run: it has no config.toml") && code == 2,
        "{text}"
    );

    let folder = run(
        root.path(),
        "damaged",
        &[],
        &["{\"kind\":\"train\"}".to_owned()],
    );
    let (text, code) = error(std::slice::from_ref(&folder));
    assert!(
        text.contains("metrics.jsonl, line 2") && text.contains("step") && code == 1,
        "{text}"
    );
    let (text, code) = error(&[folder.clone(), folder.clone()]);
    assert!(code == 2 && text.contains("named twice"), "{text}");

    fs::write(folder.join("metrics.jsonl"), format!("{}\n", step(1, EVEN))).unwrap();
    assert!(
        error(&[folder])
            .0
            .contains("does not begin with what is trained")
    );
}
