//! `cargo train compare` through the binary.

use std::fs;
use std::process::Output;

use firebox_runtime::device;
use firebox_tests::binaries;
use firebox_tests::runs::TestRun;
use serde_json::Value;

fn compare(test: &TestRun, more: &[&str]) -> Output {
    let config = test.argument("run.toml");
    let arguments = [&["compare", &config, "--steps", "5"], more].concat();
    binaries::train(&arguments)
        .output()
        .expect("the binary starts")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON object on standard output")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every step's loss of a device of a comparison.
fn losses(device: &Value) -> Vec<f64> {
    numbers(device, "loss")
}

/// Every step's value of one field.
fn numbers(device: &Value, field: &str) -> Vec<f64> {
    let steps = device["steps"].as_array().expect("steps");
    steps
        .iter()
        .map(|step| step[field].as_f64().expect("a number"))
        .collect()
}

#[test]
fn every_backend_of_the_build_trains_the_steps_of_a_run() {
    let test = TestRun::new();
    let page = test.argument("page.html");
    let output = compare(&test, &["--json", "--html", &page]);
    assert!(output.status.success(), "{}", said(&output));
    let report = json(&output);
    let devices = report["devices"].as_array().expect("devices");
    let compiled = device::backends()
        .into_iter()
        .filter(|backend| backend.compiled);
    let names: Vec<&str> = compiled.map(|backend| backend.name).collect();
    let found: Vec<&str> = devices
        .iter()
        .filter_map(|device| device["device"].as_str())
        .collect();
    assert_eq!(found, names);
    for device in devices.iter().chain([&report["perturbed"]]) {
        assert_eq!(losses(device).len(), 5, "{device}");
        assert!(device["tokens_per_second"].as_f64() > Some(0.0), "{device}");
    }

    // The perturbed run starts from weights that differ by a relative 1e-6 only.
    let runs = [&devices[0], &report["perturbed"]];
    let [first, perturbed] = runs.map(|run| numbers(run, "gradient_norm"));
    assert_ne!(first, perturbed);
    let [first, perturbed] = runs.map(losses);
    assert!(
        (first[0] - perturbed[0]).abs() < 1e-5 * first[0],
        "{first:?} and {perturbed:?}"
    );

    // The losses equal those of `run` bit for bit, which also validates and writes checkpoints between the steps.
    let (config, out) = (test.argument("run.toml"), test.argument("run"));
    let run = binaries::train(&["run", &config, "--out", &out, "--device", names[0]]).output();
    assert!(run.expect("the binary starts").status.success());
    let metrics = fs::read_to_string(test.path("run/metrics.jsonl")).expect("metrics");
    let lines = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let trained = lines.filter(|line| line["kind"] == "train");
    let trained: Vec<f64> = trained
        .filter_map(|line| line["loss"].as_f64())
        .take(5)
        .collect();
    assert_eq!(losses(&devices[0]), trained);

    let page = fs::read_to_string(page).expect("a page");
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.contains("agrees with"),
        "{page}"
    );
}

#[test]
fn an_unavailable_device_is_reported_in_its_row() {
    let test = TestRun::new();
    let output = compare(&test, &["--devices", "flex,wgpu:99,ndarray"]);
    let (text, table) = (
        said(&output),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: device = wgpu:99: "), "{text}");
    assert!(
        table.contains("ndarray agrees with flex: over 5 steps"),
        "{table}"
    );
    assert!(table.contains("0/5"), "{table}");
}

#[test]
fn invalid_options_are_refused() {
    let test = TestRun::new();
    for (more, word) in [
        (["--devices", "flex"], "lists only flex"),
        (["--devices", "flex,flex"], "flex twice"),
        (["--devices", "flex,abacus"], "device = abacus: unknown"),
        (["--steps", "13"], "exceeds train.steps = 12"),
        (["--tolerance", "0"], "above 0"),
    ] {
        let mut arguments = vec!["compare"];
        let config = test.argument("run.toml");
        arguments.push(&config);
        arguments.extend(more);
        let output = binaries::train(&arguments)
            .output()
            .expect("the binary starts");
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(word), "{word:?} is missing from {text}");
    }
}
