//! What a config.json says besides what is computed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use firebox_console::durable::FileError;
use serde_json::{Map, Value, json};

use super::accept::ACCEPTED;
use super::families::{Family, Usage};
use super::{CONFIG_FILE, CheckpointError};

/// File name of the options of sampling in a checkpoint folder.
pub const GENERATION_FILE: &str = "generation_config.json";

/// Fields of a config.json that training does not change: special ids, the number of positions, notes of tools. A
/// checkpoint that is made from another one has them as they were.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Notes {
    fields: BTreeMap<String, Value>,
    /// Those among them that Firebox does not know and that were accepted.
    accepted: BTreeSet<String>,
    /// Where they are from: `model_type`.
    family: Option<&'static str>,
}

impl Notes {
    /// Those of a file of this family, of which these fields are accepted.
    pub(super) fn of_file(
        file: &Map<String, Value>,
        family: &Family,
        accepted: &BTreeSet<&str>,
    ) -> Self {
        let kept = file.iter().filter(|(key, _)| {
            let usage = family.usage(key);
            matches!(usage, Some(Usage::Neutral | Usage::Training))
                || NOTED.contains(&key.as_str())
                || WINDOWS.contains(&key.as_str())
                || accepted.contains(key.as_str())
        });
        Self {
            fields: kept
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            accepted: accepted.iter().map(|&key| key.to_owned()).collect(),
            family: Some(family.model_type),
        }
    }

    /// The ids that end a text, the first of which ends a document, and the one that begins a document.
    pub fn of_tokens(eos_ids: &[u32], bos_id: Option<u32>) -> Self {
        let mut notes = Self::default();
        notes.set_tokens(eos_ids, bos_id);
        notes
    }

    /// Replaces the ids that end and begin a text, for a model with another tokenizer.
    pub fn set_tokens(&mut self, eos_ids: &[u32], bos_id: Option<u32>) {
        let end = match eos_ids {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        self.fields.insert("eos_token_id".to_owned(), end);
        self.fields.insert("bos_token_id".to_owned(), json!(bos_id));
    }

    /// Forgets the id that stands for padding if it is not below `count`, where a model has no more rows in its embedding.
    pub fn keep_ids_below(&mut self, count: usize) {
        let pad = self.fields.get("pad_token_id").and_then(Value::as_u64);
        if pad.is_some_and(|id| id >= count as u64) {
            self.fields.remove("pad_token_id");
        }
    }

    /// The ids that end a text, as config.json has them.
    pub fn eos_ids(&self) -> Vec<u32> {
        let ids = match self.fields.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        let ids = ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
        ids.collect()
    }

    /// Whether the model was trained to see each document of a packed sequence by itself.
    pub fn document_mask(&self) -> bool {
        self.fields.get(DOCUMENT_MASK) == Some(&Value::Bool(true))
    }

    /// Says whether it is.
    pub fn set_document_mask(&mut self, masked: bool) {
        match masked {
            true => self.fields.insert(DOCUMENT_MASK.to_owned(), json!(true)),
            false => self.fields.remove(DOCUMENT_MASK),
        };
    }

    /// Options that act in training alone, which Firebox's training does not have, and that are in use.
    pub fn training_options(&self, family: &Family) -> impl Iterator<Item = (&str, &Value)> {
        let fields = self.fields.iter().map(|(key, value)| (key.as_str(), value));
        fields.filter(|(key, value)| {
            family.usage(key) == Some(Usage::Training) && value.as_f64().is_some_and(|v| v != 0.0)
        })
    }

    /// A sentence on each field that was accepted, to warn of when the checkpoint in a folder or file is opened.
    pub fn warnings(&self, folder: &Path) -> impl Iterator<Item = String> {
        let path = match folder.is_file() {
            true => folder.to_owned(),
            false => folder.join(CONFIG_FILE),
        };
        self.accepted.iter().map(move |key| {
            let (path, value) = (path.display(), &self.fields[key]);
            format!("{path}: {key} = {value} is accepted, and ignored in what is computed")
        })
    }

    /// Adds the fields to those of a config.json of this family, except for what the family does not have and nobody
    /// accepted, and for what says how the weights are stored.
    pub(super) fn add_to(&self, fields: &mut Map<String, Value>, family: &Family) {
        for (key, value) in &self.fields {
            let neutral = matches!(family.usage(key), Some(Usage::Neutral | Usage::Training));
            let same = self.family == Some(family.model_type);
            let noted = NOTED.contains(&key.as_str()) && family.usage(key).is_some();
            let window = WINDOWS.contains(&key.as_str()) && family.usage(key) == Some(Usage::Read);
            let accepted = self.accepted.contains(key) && family.usage(key).is_none();
            let written = accepted || neutral || noted || same && window;
            // A run may have extended the context.
            let own = fields.get(POSITIONS).and_then(Value::as_u64);
            let extended = key == POSITIONS && own.is_some_and(|own| value.as_u64() < Some(own));
            if written && !extended && !STORAGE.contains(&key.as_str()) {
                fields.insert(key.clone(), value.clone());
            }
        }
        // What another family has means there what that family says.
        let accepted = self.accepted.iter();
        let accepted: Vec<&String> = accepted.filter(|key| family.usage(key).is_none()).collect();
        if !accepted.is_empty() {
            fields.insert(ACCEPTED.to_owned(), json!(accepted));
        }
    }
}

/// Number of positions of a model.
const POSITIONS: &str = "max_position_embeddings";

/// Firebox's own note of a training with `data.document_mask`, which `transformers` ignores.
const DOCUMENT_MASK: &str = "firebox_document_mask";

/// Fields that are read, and that a checkpoint made from this one still says: training changes neither what ends a
/// text, nor, unless it extends the context, how many positions a model has, and says itself how it saw documents.
const NOTED: [&str; 4] = ["bos_token_id", "eos_token_id", POSITIONS, DOCUMENT_MASK];

/// Fields that say that no attention has a window. Another family may make another thing of them.
const WINDOWS: [&str; 4] = [
    "layer_types",
    "max_window_layers",
    "sliding_window",
    "use_sliding_window",
];

/// Fields that the file's writer decides.
const STORAGE: [&str; 4] = ["architectures", "dtype", "model_type", "torch_dtype"];

/// The ids in generation_config.json that end a text; none where there is no such file.
pub(super) fn generation_eos_ids(folder: &Path) -> Result<Vec<u32>, CheckpointError> {
    let path = folder.join(GENERATION_FILE);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).map_err(FileError::of("read", &path))?;
    let damaged = |reason: String| CheckpointError::Damaged {
        path: path.clone(),
        reason,
    };
    let value: Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let ids = match value.get("eos_token_id") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids.clone(),
        Some(one) => vec![one.clone()],
    };
    let ids = ids
        .iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
    ids.collect::<Option<_>>()
        .ok_or_else(|| damaged("eos_token_id must be a token id or a list of them".to_owned()))
}
