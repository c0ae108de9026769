//! Small runs on the text of `fixtures/corpus`.

use std::fs;
use std::path::{Path, PathBuf};

use firebox_train::config::{RunConfig, load};
use firebox_train::trainer::{Resume, RunOptions};

use crate::fixtures;

/// A folder that is removed in the end, with a configuration of a run that takes seconds.
#[derive(Debug)]
pub struct TestRun {
    folder: tempfile::TempDir,
}

/// Two layers of four experts, twelve steps of a growing batch in micro-batches, checkpoints all along.
const CONFIG: &str = r#"
[model]
layers = 2
d_model = 32
heads = 2
context_length = 32
[model.experts]
count = 4
top_k = 2
d_ff = 32
[model.router]
bias_update_rate = 0.001
[tokenizer]
kind = "bpe"
vocab_size = 300
[train]
steps = 12
micro_batch = 3
log_every = 1
validate_every = 3
validation_tokens = 512
[optimizer]
learning_rate = 1e-2
[schedule]
warmup_steps = 2
batch_tokens = { start = 64, end = 160, ramp_steps = 8 }
[checkpoint]
every = 2
keep_last = 100
"#;

/// A run that starts from the one of `run.toml`.
pub const SECOND: &str = r#"
[train]
init = "run.toml"
steps = 4
micro_batch = 3
validate_every = 2
validation_tokens = 512
[optimizer]
learning_rate = 5e-3
[schedule]
batch_tokens = 128
"#;

/// The text of every run.
const DATA: &str = r#"
[data]
cache = "CACHE"
[data.validation]
fraction = 0.2
[[data.source]]
name = "plays"
files = ['CORPUS/plays/*.txt']
epochs = 2
[[data.source]]
name = "notes"
jsonl = ['CORPUS/notes.jsonl']
"#;

impl TestRun {
    /// A fresh folder.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn new() -> Self {
        let test = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        test.write("run.toml", CONFIG);
        test
    }

    /// Writes another configuration, on the same text, and gives back where it is.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> String {
        let data = DATA
            .replace("CACHE", &self.argument("cache"))
            .replace("CORPUS", &fixtures::folder("corpus").to_string_lossy());
        fs::write(self.path(name), format!("{text}{data}")).expect("a file");
        self.argument(name)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text, for a command line.
    ///
    /// # Panics
    ///
    /// When the path is not UTF-8.
    pub fn argument(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// The configuration with some values set, as `--set` does.
    ///
    /// # Panics
    ///
    /// When a value is not allowed.
    pub fn config(&self, overrides: &[&str]) -> RunConfig {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        load(&self.path("run.toml"), &overrides).expect("a configuration")
    }

    /// Options of a run into a folder of this name.
    pub fn options(&self, name: &str, device: &str, resume: Resume) -> RunOptions {
        RunOptions {
            out: self.path(name),
            device: device.to_owned(),
            resume,
        }
    }
}

impl Default for TestRun {
    fn default() -> Self {
        Self::new()
    }
}

/// Copies a run with the checkpoint of one step alone, as if it had been cut off there.
///
/// # Panics
///
/// When a file cannot be copied.
pub fn copy_at(from: &Path, to: &Path, step: u64) {
    let name = format!("checkpoints/step-{step:07}");
    fs::create_dir_all(to.join(&name)).expect("a folder");
    for file in ["config.toml", "metrics.jsonl"] {
        fs::copy(from.join(file), to.join(file)).expect("a copy");
    }
    for entry in fs::read_dir(from.join(&name)).expect("a checkpoint") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(&name).join(entry.file_name())).expect("a copy");
    }
}

/// Losses of training and validation of a run, with their steps and the kind of their lines.
///
/// # Panics
///
/// When the run has no metrics.
pub fn losses(run: &Path) -> Vec<(u64, String, f64)> {
    let losses = metrics(run).into_iter().filter_map(|line| {
        let loss = line["loss"].as_f64().or(line["nats_per_token"].as_f64())?;
        let kind = line["kind"].as_str()?.to_owned();
        Some((line["step"].as_u64()?, kind, loss))
    });
    losses.collect()
}

/// What a run has recorded.
///
/// # Panics
///
/// When the run has no metrics.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().expect("JSON")
}

/// Checks that two runs have the same losses, relative to their size.
///
/// # Panics
///
/// When they differ by more.
pub fn same_losses(what: &str, found: &Path, expected: &Path, tolerance: f64) {
    let (found, expected) = (losses(found), losses(expected));
    assert!(!expected.is_empty(), "{what}");
    assert_eq!(found.len(), expected.len(), "{what}");
    for ((step, kind, loss), (same_step, same_kind, other)) in found.iter().zip(&expected) {
        assert_eq!((step, kind), (same_step, same_kind), "{what}");
        let error = (loss / other - 1.0).abs();
        assert!(
            error < tolerance,
            "{what}: {kind} of step {step}: {loss}, {other}"
        );
    }
}
