use std::fs;
use std::path::{Path, PathBuf};

use firebox_console::advice::Advise;

use super::*;
use crate::config::{load, load_saved};
use crate::ranks::TrainLayout;

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

/// A step of two ranks, of which each sends so many bytes of gradients and weights.
fn step_of_ranks(step_number: u64, computing: [f64; 2], bytes: u64) -> String {
    let rank = |computing: f64, communicating: f64, exchanging: f64| {
        format!(
            r#"{{"sequences":16,"computing":{computing},"communicating":{communicating},"exchanging":{exchanging},"bytes":{bytes},"token_bytes":0,"sum_bytes":0}}"#
        )
    };
    let ranks = [rank(computing[0], 0.1, 0.7), rank(computing[1], 0.2, 1.0)];
    let ranks = format!(
        r#""layout":{{"data":2,"expert":1,"tensor":1}},"ranks":[{}],"layers""#,
        ranks.join(",")
    );
    step(step_number, EVEN).replace(r#""layers""#, &ranks)
}

/// Bytes of gradients and weights that each of two ranks sends in a step.
fn planned(root: &Path) -> u64 {
    let folder = run(root, "planned", &[], &[]);
    let config = load_saved(&folder.join("config.toml")).unwrap();
    let layout = TrainLayout {
        data: 2,
        ..TrainLayout::default()
    };
    let all = RankPlan::of(&config, layout).unwrap().bytes_per_step;
    u64::try_from(all / 2).unwrap()
}

#[test]
fn a_slow_rank_and_what_ranks_send_are_seen() {
    let root = tempfile::tempdir().unwrap();
    let bytes = planned(root.path());
    // The first step counts for no mean.
    let lines = [
        step_of_ranks(1, [30.0, 50.0], bytes / 2),
        step_of_ranks(2, [1.0, 0.5], bytes),
        step_of_ranks(3, [1.0, 0.5], bytes),
    ];
    let slow = run(root.path(), "slow", &[], &lines);
    let lines = [
        step_of_ranks(1, [0.5, 0.5], bytes / 2),
        step_of_ranks(2, [0.5, 0.5], bytes + 4),
        step_of_ranks(3, [0.5, 0.5], bytes + 4),
    ];
    let other = run(root.path(), "other", &[], &lines);

    let report = Report::read(&[slow, other]).unwrap();
    let text = report.to_string();
    let row = |name: &str, place: usize| {
        let rows = text.lines().filter(|line| line.starts_with(name));
        let cells = rows.map(|row| {
            row.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
        });
        let row = cells.map(Iterator::collect::<Vec<&str>>).nth(place);
        row.unwrap_or_else(|| panic!("row {place} of {name} in {text}"))
    };
    // Rank 1 is ready 1.1 − 0.7 seconds before rank 0, and what it spends in messages of gradients begins with that.
    let seconds = |row: &[&str]| row[1..8].join(" ");
    assert_eq!(seconds(&row("slow", 2)), "0 16.0 1.00 2.00 0.100 0 0.700");
    assert_eq!(
        seconds(&row("slow", 3)),
        "1 16.0 0.500 1.00 0.200 0.400 0.600"
    );
    let sent = |row: &[&str]| (row[1].to_owned(), row.last().copied().unwrap().to_owned());
    assert_eq!(
        sent(&row("slow", 4)),
        ("--data 2".to_owned(), "1.0000".to_owned())
    );
    assert_ne!(sent(&row("other", 4)).1, "1.0000");
    for expected in [
        "slow: 2 ranks wait for the slowest one for 11.4 % of their time; at 2 of 2 logged steps, last at step 3, rank 0 is slow",
        "other: no rank is slow: 2 ranks wait",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }

    let page = report.page().render();
    for expected in [
        "slow: where the time of a step goes</h3>",
        "<title>rank 1, waiting for the slowest rank: 0.400</title>",
        "rank 0 is slow",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    // A rank that is slow stands out of the heat map, in one cell, and in the table; so do bytes that were not predicted.
    let map = page.find("slow: computing time of each rank").unwrap();
    let map = page[map..].split("</figure>").next().unwrap();
    assert!(
        map.contains(r#"class="heat6" d="M64.0 0.0h680.0v16.0h-680.0z""#),
        "{map}"
    );
    assert!(page.contains(r#"<td class="number bad">2.00</td>"#));
    assert_eq!(page.matches(r#"<td class="number bad">1.0"#).count(), 1);
    assert!(!page.contains("NaN"));

    let folder = root.path().join("events");
    report.write_events(&folder).unwrap();
    let events = fs::read(folder.join("slow/events.out.tfevents.firebox")).unwrap();
    let tag = b"rank 1/seconds of waiting for the slowest";
    let found = events.windows(tag.len()).filter(|window| window == tag);
    assert_eq!(found.count(), 3);
}

/// The first step of a process gives no weights away, which is no fault.
#[test]
fn the_first_step_after_a_resume_is_not_judged() {
    let root = tempfile::tempdir().unwrap();
    let bytes = planned(root.path());
    let lines = [
        step_of_ranks(1, [0.5, 0.5], bytes / 2),
        step_of_ranks(2, [0.5, 0.5], bytes),
        step_of_ranks(3, [0.5, 0.5], bytes / 2),
    ];
    let resumed = run(root.path(), "resumed", &[], &lines);
    let begun = run(root.path(), "begun", &[], &lines[2..]);
    let page = Report::read(&[resumed, begun]).unwrap().page().render();
    assert!(page.contains("1.0000"));
    assert!(!page.contains(r#"<td class="number bad">0"#), "{page}");
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
