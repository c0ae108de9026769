//! `cargo infer compare` through the binary: exit codes, rows, and what goes where.

use std::fs;
use std::process::Output;

use firebox_checkpoint::{Accept, SaveOptions, load, save};
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::device;
use firebox_tests::{binaries, fixtures};
use serde_json::Value;

fn compare(arguments: &[&str]) -> Output {
    let fixture = fixtures::folder("mixtral-mqa");
    let mut command = binaries::infer(&["compare"]);
    command
        .arg(fixture)
        .args(["--tokens", "64"])
        .args(arguments);
    command.output().expect("the binary runs")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", errors(output)))
}

#[test]
fn a_checkpoint_is_itself_on_every_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("page.html");
    let output = compare(&[
        "--gradients",
        "--json",
        "--html",
        page.to_str().expect("UTF-8"),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let json = json(&output);
    let default = device::default_name();
    assert_eq!(
        (&json["reference"], &json["tokens"]),
        (&default.into(), &64.into())
    );
    let rows = json["rows"].as_array().expect("rows");
    let devices: usize = device::backends()
        .iter()
        .map(|backend| backend.devices.len())
        .sum();
    assert_eq!(rows.len(), devices);
    for row in rows {
        let measured = &row["measured"];
        assert!(
            measured["peak_memory"]
                .as_u64()
                .is_none_or(|bytes| bytes > 1 << 20),
            "{row}"
        );
        assert!(
            measured["first_result_seconds"].as_f64() > measured["load_seconds"].as_f64(),
            "{row}"
        );
        let differences = &measured["differences"];
        assert_eq!(differences.is_null(), row["name"] == default, "{row}");
        if !differences.is_null() {
            assert_eq!(
                differences["faults"].as_array().map(Vec::len),
                Some(0),
                "{row}"
            );
            assert_eq!(
                differences["gradients"].as_array().map(Vec::len),
                Some(21),
                "{row}"
            );
        }
    }
    let page = fs::read_to_string(page).expect("a page");
    assert!(
        page.contains("Gradients") && page.contains("agrees with"),
        "{page}"
    );
}

/// No machine has so many GPUs. A build without GPUs knows no such name, which is an error of usage.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn a_device_that_is_not_there_is_a_row_and_the_others_stand() {
    let missing = if cfg!(feature = "wgpu") {
        "wgpu:999"
    } else {
        "cuda:999"
    };
    let devices = format!("flex,{missing},ndarray");
    let output = compare(&["--devices", &devices, "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let json = json(&output);
    assert!(
        json["rows"][1]["failed"]["reason"]
            .as_str()
            .expect("a reason")
            .contains(missing),
        "{json}"
    );
    assert!(
        json["rows"][2]["measured"]["differences"]["faults"].is_array(),
        "{json}"
    );
    assert!(
        errors(&output).contains(&format!("error: {missing} failed: ")),
        "{}",
        errors(&output)
    );
}

#[test]
fn a_reference_that_fails_is_replaced_by_the_next_device() {
    let fixture = fixtures::folder("mixtral-mqa");
    let folder = tempfile::tempdir().expect("a folder");
    let flex = device::select("flex").expect("flex");
    let mut model = load(&fixture, Accept::Nothing, &flex, WeightDtype::F32)
        .expect("a fixture")
        .model;
    // Beyond what f16 can hold.
    model.embedding = model
        .embedding
        .clone()
        .map(|table| table.map(|weights| weights.mul_scalar(1e8)));
    save(&model, folder.path(), &SaveOptions::default(), |_| ()).expect("a checkpoint");
    let output = binaries::infer(&["compare"])
        .arg(folder.path())
        .args([
            "--tokens",
            "64",
            "--devices",
            "flex",
            "--dtype",
            "f16,f32",
            "--json",
        ])
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let json = json(&output);
    assert_eq!(json["reference"], "flex", "{json}");
    assert!(json["rows"][0]["failed"].is_object(), "{json}");
}

#[test]
fn what_exceeds_the_tolerance_is_named_and_fails() {
    let output = compare(&[
        "--devices",
        "flex",
        "--dtype",
        "f32,bf16",
        "--tolerance",
        "1e-7",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let errors = errors(&output);
    assert!(
        errors.contains("error: flex·bf16 differs from flex in embedding: relative difference "),
        "{errors}"
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("flex·bf16, by layer"), "{text}");
}

#[test]
fn usage_is_checked_before_anything_runs() {
    for (arguments, reason) in [
        (&["--devices", "flex,gpu"][..], "device = gpu: unknown"),
        (&["--data", "nowhere.txt"], "nowhere.txt does not exist"),
        (&["--tolerance", "0"], "must be a number greater than 0"),
        (&["--dtype", "f8"], "f8"),
    ] {
        let output = compare(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(errors(&output).contains(reason), "{}", errors(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_place_that_cannot_be_written_to_shows_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("absent/page.html");
    let output = compare(&["--html", page.to_str().expect("UTF-8")]);
    let errors = errors(&output);
    assert!(
        !output.status.success() && output.stdout.is_empty(),
        "{errors}"
    );
    assert!(
        errors.contains("absent") && !errors.contains("flex"),
        "{errors}"
    );
}
