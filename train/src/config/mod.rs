//! What a run does: the resolved configuration, every default filled in and every rule checked.
//!
//! [`load`] reads a TOML file (`raw`: what may be written), lays `--set` values over it (`overrides`), fills in
//! defaults and checks every rule (`resolve`), and says in one sentence what is wrong (`error`). Where a run
//! starts from a checkpoint (`train.init`), the checkpoint decides what the file leaves out of `[model]` and
//! `[tokenizer]`. A run writes down what it resolved, so that its resume needs no checkpoint but its own:
//! [`load_saved`], [`load_resumed`].

mod error;
mod load;
mod overrides;
mod raw;
mod resolve;
mod saved;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use firebox_model::config::ModelConfig;
use serde::{Serialize, Serializer, ser::SerializeStruct};

pub use error::{ConfigError, KeyError};
pub use load::load;
pub use saved::{load_resumed, load_saved};

/// Ids of the `bytes` tokenizer: one a byte, and end of text.
pub const BYTES_VOCABULARY: usize = 257;

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunConfig {
    /// `[model]`; its `vocabulary` is that of the tokenizer (an upper bound until a `bpe` one is trained), or of
    /// the checkpoint that the run starts from.
    pub model: ModelConfig,
    /// `[tokenizer]`
    pub tokenizer: TokenizerConfig,
    /// `[data]`
    pub data: DataConfig,
    /// `[train]`
    pub train: TrainConfig,
    /// `[optimizer]`
    pub optimizer: OptimizerConfig,
    /// `[schedule]`
    pub schedule: ScheduleConfig,
    /// `[checkpoint]`
    pub checkpoint: CheckpointConfig,
    /// `[plan]`: the accelerators that `check` costs the run on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanConfig>,
}

impl RunConfig {
    /// Sequences that the whole run takes.
    pub fn sequences(&self) -> u64 {
        let context = self.model.context;
        let tokens = self
            .schedule
            .batch_tokens
            .total_tokens(self.train.steps, context);
        (tokens / context as u128) as u64
    }
}

/// `[tokenizer]`: how text becomes token ids.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TokenizerConfig {
    /// One token a byte, and one for end of text: 257 ids.
    Bytes,
    /// A byte-level byte-pair encoding trained on this run's training text.
    Bpe {
        /// Number of ids, end of text included; at least 257.
        vocabulary: usize,
    },
    /// A `tokenizer.json` of the Hugging Face kind.
    File {
        /// Where it is.
        path: PathBuf,
        /// The token that ends a document, such as `<|endoftext|>`.
        end_of_text: String,
    },
}

/// `[data]`: which text, how often, and what is held out of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataConfig {
    /// Where prepared tokens are kept; the user's cache folder when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// `[data.validation]`
    pub validation: ValidationConfig,
    /// `[[data.source]]`, at least one.
    pub source: Vec<SourceConfig>,
}

/// `[data.validation]`: what is held out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValidationConfig {
    /// The share of documents (`hash`) or of each document's bytes (`tail`) that is held out; above 0, below 1.
    pub fraction: f64,
    /// How it is chosen.
    pub by: SplitKind,
}

/// How validation text is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitKind {
    /// By the hash of a document's text: the same text always falls on the same side.
    Hash,
    /// The last part of every document, for corpora with a customary split.
    Tail,
}

/// `[[data.source]]`: one stream of documents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceConfig {
    /// What it is called in messages; unique within the run.
    pub name: String,
    /// Where its documents come from (flattened: exactly one of the keys `files`, `cargo`, `jsonl`, `url`).
    #[serde(flatten)]
    pub kind: SourceKind,
    /// How much of it is seen.
    #[serde(flatten)]
    pub share: Share,
    /// Stop reading after the document that reaches this many bytes of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// What to do with a document that cannot be read as UTF-8.
    pub on_error: OnError,
}

/// Where documents come from. Relative paths are taken from the working directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum SourceKind {
    /// Globs of plain-text files, one document a file.
    Files {
        /// Such as `["texts/**/*.txt"]`.
        files: Vec<String>,
    },
    /// The sources of the packages in this workspace's Cargo.lock, one document a file.
    Cargo {
        /// File extensions to read, such as `["rs"]` or `["md"]`.
        cargo: Vec<String>,
    },
    /// One document a line of JSON.
    Jsonl {
        /// Globs of the files.
        jsonl: Vec<String>,
        /// Which field of the line's object holds the text.
        field: String,
    },
    /// One document, downloaded once and verified; a local path is verified the same way.
    Url {
        /// `http(s)://…` or a path.
        url: String,
        /// The SHA-256 of its bytes, 64 hexadecimal digits.
        sha256: String,
    },
}

/// How much of a source is seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Every document exactly this many times.
    Epochs(u32),
    /// This part of the tokens, relative to the other sources' weights, repeating as needed.
    Weight(f64),
}

/// What to do with a document that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// End with an error that names it.
    Fail,
    /// Leave it out, and say so.
    Skip,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainConfig {
    /// The checkpoint that the run starts from, or a run whose newest one it is; random weights where there is
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Optimizer steps.
    pub steps: u64,
    /// Decides the initial weights (after an upcycling, the routers') and the order of the data.
    pub seed: u64,
    /// Sequences of `model.context` tokens that go through the model at once.
    pub micro_batch: usize,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between validations; the last step is always validated.
    pub validate_every: u64,
    /// Upper bound of the tokens of one validation.
    pub validation_tokens: u64,
    /// `[train.sample]`: text to continue at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleConfig>,
}

/// `[train.sample]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleConfig {
    /// The text to continue.
    pub prompt: String,
    /// How many tokens to add.
    pub tokens: usize,
    /// Temperature of the sampling; 0 takes the likeliest.
    pub temperature: f64,
}

/// `[optimizer]`: AdamW (arXiv 1711.05101) without decay on norms and embeddings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OptimizerConfig {
    /// The highest learning rate of the schedule.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 clips nothing.
    pub clip_norm: f64,
}

/// `[schedule]`: learning rate and batch over the steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScheduleConfig {
    /// Steps of linear warm-up from 0.
    pub warmup_steps: u64,
    /// What follows.
    pub decay: DecayKind,
    /// The last learning rate, as a share of the highest.
    pub final_ratio: f64,
    /// For `wsd`: the last share of the steps, in which the rate falls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_fraction: Option<f64>,
    /// Tokens a step.
    pub batch_tokens: BatchRamp,
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecayKind {
    /// Half a cosine down to the final ratio.
    Cosine,
    /// Warm-up, stable, decay: constant, then linear over the cooldown.
    Wsd,
}

/// Tokens a step: from `start` to `end` in `ramp_steps` steps, then `end`.
/// Written in a file as one number where both are equal, otherwise as a table with these keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRamp {
    /// Tokens of the first step.
    pub start: u64,
    /// Tokens of the steps after the ramp.
    pub end: u64,
    /// Length of the ramp; 0 exactly where `start` equals `end`.
    pub ramp_steps: u64,
}

impl BatchRamp {
    /// Sequences of `context` tokens that make up the batch of `step`, counted from 0.
    ///
    /// The tokens grow linearly, `start + (end − start) · step / ramp_steps`, and are rounded to the nearest
    /// whole number of sequences, at least 1.
    pub fn sequences_at(&self, step: u64, context: usize) -> u64 {
        let context = context.max(1) as u128;
        let tokens = if step < self.ramp_steps {
            let growth = self.end.saturating_sub(self.start) as u128;
            self.start as u128 + growth * step as u128 / self.ramp_steps as u128
        } else {
            self.end as u128
        };
        // No larger than `tokens` rounded up, which came from 64-bit ends.
        ((tokens + context / 2) / context).max(1) as u64
    }

    /// Tokens of the first `steps` steps, in whole sequences of `context` tokens.
    pub fn total_tokens(&self, steps: u64, context: usize) -> u128 {
        let ramp = steps.min(self.ramp_steps);
        let growing: u128 = (0..ramp)
            .map(|step| self.sequences_at(step, context) as u128)
            .sum();
        let level = self.sequences_at(self.ramp_steps, context) as u128 * (steps - ramp) as u128;
        (growing + level) * context as u128
    }
}

impl Serialize for BatchRamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.start == self.end {
            return serializer.serialize_u64(self.end);
        }
        let mut table = serializer.serialize_struct("BatchRamp", 3)?;
        table.serialize_field("start", &self.start)?;
        table.serialize_field("end", &self.end)?;
        table.serialize_field("ramp_steps", &self.ramp_steps)?;
        table.end()
    }
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; the last step always has one.
    pub every: u64,
    /// How many of the newest are kept; at least 1.
    pub keep_last: usize,
    /// Whether the one with the lowest validation loss is kept as well.
    pub keep_best: bool,
}

/// `[plan]`: what `cargo train check` costs the run on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanConfig {
    /// What the accelerator is called.
    pub accelerator: String,
    /// How many.
    pub count: u64,
    /// Peak of one, in FLOP/s.
    pub peak_flops: f64,
    /// Lowest and highest model FLOPs utilisation to assume.
    pub utilization: [f64; 2],
    /// Price of one for an hour, in dollars.
    pub dollars_per_hour: f64,
}
