//! Every field of each family's config.json, beside `transformers`: the same losses, or a refusal that names the field.

use std::fs;

use firebox_checkpoint::{NamedTensor, write_tensors};
use firebox_infer::trace::trace;
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::device;
use firebox_tests::fixtures;
use serde::Deserialize;
use serde_json::{Map, Value};
use tempfile::TempDir;

/// A line of `fixtures/sweep.json`, which `fixtures/sweep.py` writes.
#[derive(Deserialize)]
struct Line {
    case: String,
    /// New values of fields; `remove` names a field that is left out.
    change: Map<String, Value>,
    /// Present where `transformers` finds other tensors in the file than the field asks for.
    tensors: Option<String>,
    /// In nats per token; absent where `transformers` refuses the file or finds other tensors in it.
    cross_entropy: Option<f64>,
    total: Option<f64>,
}

#[test]
fn a_field_changes_what_it_changes_in_transformers_or_is_refused_by_name() {
    let text = fs::read_to_string(fixtures::folder("sweep.json")).expect("a fixture");
    let lines: Vec<Line> = serde_json::from_str(&text).expect("lines");
    let (mut same, mut refused, mut wrong) = (0, 0, Vec::new());
    for line in &lines {
        let fields: Vec<&str> = match line.change.get("remove") {
            Some(field) => vec![field.as_str().expect("a name")],
            None => line.change.keys().map(String::as_str).collect(),
        };
        let what = format!("{}: {}", line.case, Value::Object(line.change.clone()));
        match (losses(line), line.cross_entropy.zip(line.total)) {
            (Ok(ours), Some(theirs)) => {
                let close = |a: f64, b: f64| (a - b).abs() <= 2e-5;
                match close(ours.0, theirs.0) && close(ours.1, theirs.1) {
                    true => same += 1,
                    false => wrong.push(format!("{what}: {ours:?}, expected {theirs:?}")),
                }
            }
            // The tokens are more than the context that the field sets.
            (Err(error), Some(_)) if error.contains("exceed the model's context of 32") => {
                assert_eq!(fields, ["max_position_embeddings"]);
                refused += 1;
            }
            (Err(error), Some(_)) => match fields.iter().any(|field| error.contains(field)) {
                true => refused += 1,
                false => wrong.push(format!("{what}: not named: {error}")),
            },
            (Ok(_), None) if line.tensors.is_some() => wrong.push(format!("{what}: accepted")),
            // Where transformers refuses, whatever does no harm may pass.
            (Err(_), None) => refused += 1,
            (Ok(_), None) => same += 1,
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{same} the same or harmless, {refused} refused");
    assert!(
        lines.len() > 3200 && same > 1900,
        "{same} of {}",
        lines.len()
    );
}

/// Cross-entropy and total loss, in nats per token; or why the checkpoint is refused.
fn losses(line: &Line) -> Result<(f64, f64), String> {
    let source = fixtures::folder(&line.case);
    let folder = TempDir::new().expect("a folder");
    for (name, content) in fixtures::files(&source) {
        if name.starts_with("model") {
            fs::write(folder.path().join(name), content).expect("written");
        }
    }
    let text = fs::read_to_string(source.join("config.json")).expect("a fixture");
    let mut config: Map<String, Value> = serde_json::from_str(&text).expect("JSON");
    for (key, value) in &line.change {
        match key.as_str() {
            "remove" => _ = config.remove(value.as_str().expect("a name")),
            key => _ = config.insert(key.to_owned(), value.clone()),
        }
    }
    let text = serde_json::to_string(&config).expect("JSON");
    fs::write(folder.path().join("config.json"), text).expect("written");

    let input = folder.path().join("input.safetensors");
    let tokens = (0..48_i64).map(|i| (17 * i * i + 5 * i + 3) % 61).collect();
    let tokens = NamedTensor::int("input_ids", [1, 48], tokens);
    write_tensors(&input, &[tokens], WeightDtype::F32).expect("written");
    let output = folder.path().join("trace.safetensors");
    let device = device::default_name();
    match trace(folder.path(), &[], device, &input, &output, false) {
        Ok(losses) => Ok((losses.cross_entropy, losses.total)),
        Err(error) => Err(error.to_string()),
    }
}
