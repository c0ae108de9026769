//! The resolved configuration of a run, with every default filled in and every rule checked.
//!
//! [`load`] reads a TOML file (`raw`: all keys that a file may contain), applies `--set` overrides (`overrides`),
//! fills in defaults and checks every rule (`resolve`), and reports a fault in one sentence (`error`). If a run
//! starts from a checkpoint (`train.init`), the checkpoint provides the keys of `[model]` and `[tokenizer]` that the
//! file omits; if `train.init` names the configuration of another run, the run's newest checkpoint does, or that
//! configuration itself ([`load_planned`]). A run saves its resolved configuration, so a resume does not need the checkpoint of `train.init`:
//! [`load_saved`], [`load_resumed`].

mod error;
mod load;
mod overrides;
mod raw;
mod resolve;
mod saved;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use firebox_image::Processor;
use firebox_kernels::Precision;
use firebox_model::config::{ModelConfig, VisionConfig};
use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::run_folder;

pub use error::{ConfigError, KeyError};
pub use load::{load, load_planned};
pub use saved::{load_resumed, load_saved};

/// Number of ids of the `bytes` tokenizer: one per byte, and end of text.
pub const BYTES_VOCABULARY: usize = 257;

/// The package whose pictures a source may read.
pub const EMOJI_PACKAGE: &str = "twemoji-assets";

/// The configuration of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunConfig {
    /// `[model]`; its `vocab_size` is the tokenizer's (an upper bound until a `bpe` tokenizer is trained), or that of
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
    /// `[plan]`: the accelerators for which `check` estimates time and price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanConfig>,
}

impl RunConfig {
    /// Number of sequences that the whole run trains on.
    pub fn sequences(&self) -> u64 {
        let context = self.model.context_length;
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
    /// One token per byte, and one for end of text: 257 ids.
    Bytes,
    /// A byte-level byte-pair encoding trained on this run's training text.
    Bpe {
        /// Number of ids, including end of text; at least 257.
        vocab_size: usize,
    },
    /// A Hugging Face `tokenizer.json`.
    File {
        /// Path of the file.
        path: PathBuf,
        /// The token that ends a document, such as `<|endoftext|>`.
        end_of_text: String,
    },
}

/// `[data]`: the text, its repetitions, and the validation split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataConfig {
    /// Folder of prepared tokens; the user's cache folder if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Whether text that spells a special token of the tokenizer becomes this token.
    pub special_tokens: bool,
    /// Whether a token attends to its own document alone, and positions begin again with each document.
    pub document_mask: bool,
    /// `[data.pictures]`
    #[serde(skip_serializing_if = "PicturesConfig::is_default")]
    pub pictures: PicturesConfig,
    /// `[data.validation]`
    pub validation: ValidationConfig,
    /// `[[data.source]]`, at least one.
    pub source: Vec<TrainingSource>,
}

impl DataConfig {
    /// All sources and what is held out of each: those of training, then those of validation.
    pub fn texts(&self) -> impl Iterator<Item = (&SourceConfig, Split)> {
        let training = self.source.iter();
        let training = training.map(|source| (&source.text, self.validation.split));
        let validation = self.validation.source.iter();
        training.chain(validation.map(|source| (source, Split::EVERYTHING)))
    }
}

/// `[data.pictures]`: how a model that sees pictures is shown those of the sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PicturesConfig {
    /// Pixels by which a training picture is moved at most, right or left and up or down, at the size that it has in its
    /// tiles; another distance each time that it is seen.
    pub shift: u32,
    /// The part of the training captions that are shown without their pictures, each time chosen anew; 1 for a run that sees
    /// none, to compare others with.
    pub withheld: f64,
}

impl PicturesConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `[data.validation]`: the held-out text, split off the training sources, of sources of its own, or both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValidationConfig {
    /// What is held out of each training source (flattened).
    #[serde(flatten)]
    pub split: Split,
    /// `[[data.validation.source]]`: sources of which everything is held out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<SourceConfig>,
}

/// What is held out of a source.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Split {
    /// The fraction of documents (`hash`) or of each document's bytes (`tail`) that is held out: below 1, and 0 only with
    /// validation sources.
    pub fraction: f64,
    /// How validation text is chosen; `None` if the fraction is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<SplitKind>,
}

impl Split {
    /// Holds out everything, as of a validation source.
    pub const EVERYTHING: Self = Self {
        fraction: 1.0,
        by: None,
    };
}

/// How validation text is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitKind {
    /// By the hash of a document's text, so that equal documents are in the same split. Of captions of pictures, by the
    /// hash of the concept; and where concepts have several pictures, the same fraction again of single ones of them.
    Hash,
    /// The last part of every document, for corpora with a customary split; no choice for captions of pictures.
    Tail,
}

/// `[[data.source]]`: text to train on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingSource {
    /// Its documents (flattened).
    #[serde(flatten)]
    pub text: SourceConfig,
    /// How often it is repeated, or its weight in the mixture (flattened).
    #[serde(flatten)]
    pub share: Share,
}

/// One stream of documents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceConfig {
    /// Its name in messages; unique within the run.
    pub name: String,
    /// The origin of its documents (flattened: exactly one of the keys `files`, `cargo`, `jsonl`,
    /// `parquet`, `tokens`, `url`).
    #[serde(flatten)]
    pub kind: SourceKind,
    /// Reading stops after the document that reaches this many bytes of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// What to do with a document that cannot be read as text, or whose picture cannot be read.
    pub on_error: OnError,
    /// The tiles of the model, if it sees pictures and the documents are captions of pictures: these are then read too.
    /// They follow from `[model.vision]`.
    #[serde(skip)]
    pub tiles: Option<TileLimits>,
}

/// The tiles in which a model sees a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TileLimits {
    /// Pixels of a tile's side.
    pub tile_size: usize,
    /// The most tiles of a picture.
    pub max_tiles: usize,
}

impl TileLimits {
    /// Those of a tower.
    pub fn of(vision: &VisionConfig) -> Self {
        Self {
            tile_size: vision.tile_size,
            max_tiles: vision.max_tiles,
        }
    }

    /// What makes pictures into tiles.
    pub fn processor(self) -> Processor {
        Processor::new(self.tile_size, self.max_tiles)
    }
}

/// The origin of documents. Paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum SourceKind {
    /// Globs of plain-text files, one document per file.
    Files {
        /// Such as `["texts/**/*.txt"]`.
        files: Vec<String>,
    },
    /// The source files of the packages in this workspace's Cargo.lock, one document per file.
    Cargo {
        /// File extensions to read, such as `["rs"]` or `["md"]`.
        cargo: Vec<String>,
    },
    /// The pictures of a package in this workspace's Cargo.lock, with their names as captions: a document is a caption.
    Emoji {
        /// The package, [`EMOJI_PACKAGE`].
        cargo: String,
    },
    /// Pictures and captions in JSON Lines files, a pair per line: a document is a caption.
    Pairs {
        /// Globs of the files.
        jsonl: Vec<String>,
        /// The field with the path of a picture, relative to its JSON Lines file.
        image: String,
        /// The field with its caption.
        field: String,
        /// The field with the concept that the picture shows; the caption itself if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        concept: Option<String>,
    },
    /// JSON Lines files, one document per line.
    Jsonl {
        /// Globs of the files.
        jsonl: Vec<String>,
        /// The field of each line's object that contains the text.
        field: String,
    },
    /// Parquet files, one document per row.
    Parquet {
        /// Globs of the files.
        parquet: Vec<String>,
        /// The column that contains the text.
        field: String,
    },
    /// Token files of nanoGPT or llm.c, whose ids are those of the run's tokenizer.
    Tokens {
        /// Globs of the files.
        tokens: Vec<String>,
    },
    /// One document, downloaded once and verified. A local path is verified too.
    Url {
        /// `http(s)://…` or a path.
        url: String,
        /// The SHA-256 of the file, 64 hexadecimal digits.
        sha256: String,
    },
}

impl SourceKind {
    /// Whether its documents are captions of pictures.
    pub fn has_pictures(&self) -> bool {
        matches!(self, Self::Emoji { .. } | Self::Pairs { .. })
    }

    /// Whether its documents are tokens already.
    pub fn is_tokens(&self) -> bool {
        matches!(self, Self::Tokens { .. })
    }
}

/// How much of a source is used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Every document is used exactly this many times.
    Epochs(u32),
    /// Its part of the tokens, relative to the other sources' weights; documents repeat as needed.
    Weight(f64),
}

/// What to do with a document that cannot be read as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Fail with an error that names the document.
    Fail,
    /// Skip the document and count it; one warning for each source says how many, and what was wrong with the first.
    Skip,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainConfig {
    /// The checkpoint that the run starts from, or a run folder, whose newest checkpoint is used, or the configuration of a
    /// run, which is done first; random weights if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Fields of the `config.json` of `init` that are ignored although Firebox does not know them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<String>,
    /// What is not trained of a model that sees pictures; `None` of one of text alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Optimizer steps.
    pub steps: u64,
    /// Seed of the initial weights (when upcycling, of the routers' weights) and of the order of the data.
    pub seed: u64,
    /// Whether the projections whose outputs are added to the residual stream begin at zero; of random weights alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub zero_outputs: bool,
    /// Number of sequences of `model.context_length` tokens per forward and backward pass.
    pub micro_batch: usize,
    /// Precision of the factors of matrix products, forward and backward; weights, router, norms, softmax, loss and optimizer
    /// are f32.
    pub precision: Precision,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between validations; the last step is always validated.
    pub validate_every: u64,
    /// Maximum number of tokens per validation.
    pub validation_tokens: u64,
    /// `[train.sample]`: the sample to generate at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleConfig>,
}

impl TrainConfig {
    /// The configuration of the run that is done before this one; `None` if `init` names none.
    pub fn first_run(&self) -> Option<&Path> {
        first_run(self.init.as_deref()?)
    }

    /// The checkpoint that the run starts from, or the folder of a run, whose newest checkpoint is used; `None` for random
    /// weights.
    pub fn origin(&self) -> Option<PathBuf> {
        let init = self.init.as_deref()?;
        Some(first_run(init).map_or_else(|| init.to_owned(), run_folder::default_folder))
    }
}

/// The configuration of a run that `train.init` names, if it is one: a path that ends in `.toml`.
fn first_run(init: &Path) -> Option<&Path> {
    let is_file = init.extension().is_some_and(|end| end == "toml") && !init.is_dir();
    is_file.then_some(init)
}

/// What of a model that sees pictures is not trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Frozen {
    /// All is trained.
    Nothing,
    /// The text model: all but what reads pictures (the tower, its projection, the layers that attend to pictures, and the
    /// embedding of the image token). Texts without pictures keep their loss to the last bit.
    Text,
}

/// `[train.sample]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleConfig {
    /// The prompt.
    pub prompt: String,
    /// Number of tokens to generate.
    pub tokens: usize,
    /// Softmax temperature; 0 is greedy.
    pub temperature: f64,
}

/// `[optimizer]`: AdamW (arXiv 1711.05101), without weight decay on norms and embeddings, and Muon.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Maximum global norm of the gradient; 0 disables clipping.
    pub clip_norm: f64,
    /// The matrices that Muon updates in place of AdamW.
    pub muon: Muon,
    /// How much of Muon's momentum stays from one step to the next; `None` without Muon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon_momentum: Option<f64>,
    /// Steps from one update of an expert's matrices by Muon to the next; each is that many times as large
    /// ([`Turns`](firebox_kernels::Turns)).
    #[serde(skip_serializing_if = "is_one")]
    pub expert_interval: usize,
    /// Learning rate of the gates of a model that sees pictures, as a multiple of that of all else.
    #[serde(skip_serializing_if = "is_one")]
    pub gate_rate: f64,
}

/// Which matrices are updated by [Muon](firebox_kernels::muon()).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Muon {
    /// None.
    #[default]
    None,
    /// Those of attention, dense feed-forwards and shared experts.
    Dense,
    /// These, and each matrix of each expert.
    All,
}

fn is_one<T: PartialEq + From<u8>>(number: &T) -> bool {
    *number == T::from(1)
}

/// `[schedule]`: learning rate and batch size over the steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScheduleConfig {
    /// Steps of linear warm-up from 0.
    pub warmup_steps: u64,
    /// The decay after the warm-up.
    pub decay: DecayKind,
    /// The last learning rate, as a fraction of the peak.
    pub final_ratio: f64,
    /// For `wsd`: the last fraction of the steps, in which the learning rate decays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_fraction: Option<f64>,
    /// Tokens per step.
    pub batch_tokens: BatchRamp,
}

/// How the learning rate decays after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecayKind {
    /// A half cosine down to the final ratio.
    Cosine,
    /// Warm-up, stable, decay: constant, then linear over the cooldown.
    Wsd,
}

/// Tokens per step: from `start` to `end` in `ramp_steps` steps, then `end`.
/// In a file, this is one number if both are equal, otherwise a table with these keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRamp {
    /// Tokens of the first step.
    pub start: u64,
    /// Tokens of the steps after the ramp.
    pub end: u64,
    /// Length of the ramp in steps; 0 if and only if `start` equals `end`.
    pub ramp_steps: u64,
}

impl BatchRamp {
    /// Number of sequences of `context` tokens in the batch of `step`, counted from 0.
    ///
    /// The tokens grow linearly, `start + (end − start) · step / ramp_steps`, and are rounded to the nearest
    /// multiple of `context`, at least one sequence.
    pub fn sequences_at(&self, step: u64, context: usize) -> u64 {
        let context = context.max(1) as u128;
        let tokens = if step < self.ramp_steps {
            let growth = self.end.saturating_sub(self.start) as u128;
            self.start as u128 + growth * step as u128 / self.ramp_steps as u128
        } else {
            self.end as u128
        };
        // The quotient is at most `tokens`, which fits in 64 bits.
        ((tokens + context / 2) / context).max(1) as u64
    }

    /// Number of tokens in the first `steps` steps, with batches of whole sequences of `context` tokens.
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
    /// Number of newest checkpoints to keep; at least 1.
    pub keep_last: usize,
    /// Whether to keep the checkpoint with the lowest validation loss as well.
    pub keep_best: bool,
}

/// `[plan]`: the accelerators for which `cargo train check` estimates time and price.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanConfig {
    /// Name of the accelerator.
    pub accelerator: String,
    /// Number of accelerators.
    pub count: u64,
    /// Peak of one accelerator, in FLOP/s.
    pub peak_flops: f64,
    /// Lowest and highest model FLOPs utilization (MFU) to assume.
    pub utilization: [f64; 2],
    /// Price in dollars per accelerator-hour.
    pub dollars_per_hour: f64,
    /// A remark to print beside the model's operations.
    pub note: Option<String>,
}
