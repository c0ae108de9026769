//! The keys that a configuration file may contain; a key with a default is optional.
//!
//! The parent module documents each key at the resolved counterpart of its struct.

use std::fmt;
use std::path::PathBuf;

use firebox_kernels::Precision;
use firebox_model::config::ModelKeys;
use serde::Deserialize;
use serde::de::{
    Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor,
    value::{MapAccessDeserializer, SeqAccessDeserializer},
};

use super::{DecayKind, Frozen, Muon, OnError, SplitKind};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawConfig {
    pub model: Option<ModelKeys>,
    pub tokenizer: Option<RawTokenizer>,
    pub data: RawData,
    pub train: RawTrain,
    pub optimizer: RawOptimizer,
    pub schedule: RawSchedule,
    #[serde(default)]
    pub checkpoint: RawCheckpoint,
    pub plan: Option<RawPlan>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawTokenizer {
    pub kind: TokenizerKind,
    pub vocab_size: Option<usize>,
    pub path: Option<PathBuf>,
    pub end_of_text: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TokenizerKind {
    Bytes,
    Bpe,
    File,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawData {
    pub cache: Option<PathBuf>,
    pub special_tokens: Option<bool>,
    pub document_mask: Option<bool>,
    #[serde(default)]
    pub pictures: RawPictures,
    #[serde(default)]
    pub validation: RawValidation,
    pub source: Vec<RawSource>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawPictures {
    pub shift: Option<u32>,
    pub withheld: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawValidation {
    pub fraction: Option<f64>,
    pub by: Option<SplitKind>,
    #[serde(default)]
    pub source: Vec<RawSource>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawSource {
    pub name: String,
    pub files: Option<Vec<String>>,
    pub cargo: Option<RawCargo>,
    pub jsonl: Option<Vec<String>>,
    pub parquet: Option<Vec<String>>,
    pub tokens: Option<Vec<String>>,
    pub field: Option<String>,
    pub image: Option<String>,
    pub concept: Option<String>,
    pub url: Option<String>,
    pub sha256: Option<String>,
    pub epochs: Option<u32>,
    pub weight: Option<f64>,
    pub max_bytes: Option<u64>,
    pub on_error: Option<OnError>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawTrain {
    pub init: Option<PathBuf>,
    pub accept: Option<Vec<String>>,
    pub frozen: Option<Frozen>,
    pub steps: u64,
    pub seed: Option<u64>,
    pub zero_outputs: Option<bool>,
    pub micro_batch: Option<usize>,
    pub precision: Option<Precision>,
    pub log_every: Option<u64>,
    pub validate_every: Option<u64>,
    pub validation_tokens: Option<u64>,
    pub sample: Option<RawSample>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawSample {
    pub prompt: String,
    pub tokens: Option<usize>,
    pub temperature: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawOptimizer {
    pub learning_rate: f64,
    pub beta1: Option<f64>,
    pub beta2: Option<f64>,
    pub epsilon: Option<f64>,
    pub weight_decay: Option<f64>,
    pub clip_norm: Option<f64>,
    pub gate_rate: Option<f64>,
    pub muon: Option<Muon>,
    pub muon_momentum: Option<f64>,
    pub expert_interval: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawSchedule {
    pub warmup_steps: Option<u64>,
    pub decay: Option<DecayKind>,
    pub final_ratio: Option<f64>,
    pub cooldown_fraction: Option<f64>,
    pub batch_tokens: RawBatch,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawCheckpoint {
    pub every: Option<u64>,
    pub keep_last: Option<usize>,
    pub keep_best: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawPlan {
    pub accelerator: String,
    pub count: u64,
    pub peak_flops: f64,
    pub utilization: [f64; 2],
    pub dollars_per_hour: f64,
    pub note: Option<String>,
}

/// `cargo` as written: extensions of files, or the name of a package.
#[derive(Debug)]
pub(super) enum RawCargo {
    Extensions(Vec<String>),
    Package(String),
}

/// Implemented by hand, because the error of an untagged enum says only that no variant matches.
impl<'de> Deserialize<'de> for RawCargo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CargoVisitor;

        impl<'de> Visitor<'de> for CargoVisitor {
            type Value = RawCargo;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a list of file extensions, or the name of a package")
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<RawCargo, E> {
                Ok(RawCargo::Package(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RawCargo, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(RawCargo::Extensions)
            }
        }

        deserializer.deserialize_any(CargoVisitor)
    }
}

/// `batch_tokens` as written: one number, or a ramp.
#[derive(Debug)]
pub(super) enum RawBatch {
    Constant(u64),
    Ramp(RawRamp),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawRamp {
    pub start: u64,
    pub end: u64,
    pub ramp_steps: u64,
}

/// Implemented by hand, because the error of an untagged enum says only that no variant matches.
impl<'de> Deserialize<'de> for RawBatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BatchVisitor;

        impl<'de> Visitor<'de> for BatchVisitor {
            type Value = RawBatch;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an integer, or a table with start, end and ramp_steps")
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<RawBatch, E> {
                let invalid = |_| E::invalid_value(Unexpected::Signed(value), &self);
                u64::try_from(value)
                    .map(RawBatch::Constant)
                    .map_err(invalid)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawBatch, A::Error> {
                RawRamp::deserialize(MapAccessDeserializer::new(map)).map(RawBatch::Ramp)
            }
        }

        deserializer.deserialize_any(BatchVisitor)
    }
}
