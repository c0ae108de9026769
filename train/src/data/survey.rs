//! The first look at a run's text: how much there is, and the key that tells whether it is prepared
//! already.

use std::path::PathBuf;
use std::time::SystemTime;

use firebox_console::numbers::text_bytes;
use firebox_text::Tokenizer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::hash::{hash, hexadecimal};
use super::record::{Record, Records};
use super::source;
use super::split;
use crate::config::{DataConfig, SourceConfig, SourceKind, Split, TokenizerConfig};

/// Raised whenever a change of the program makes the same files give other documents, tokens or
/// sequences, so that no run continues with other data than it started with.
pub(super) const FORMAT: u32 = 3;

/// What a run's text amounts to.
#[derive(Debug)]
pub(super) struct Survey {
    /// SHA-256 of all that decides the prepared tokens, in hexadecimal.
    pub key: String,
    /// The tokenizer as it reads this data, where it is a file's: the one that the key is of, whatever becomes of the file.
    pub tokenizer: Option<Tokenizer>,
    /// What each of [`DataConfig::texts`] amounts to.
    pub sources: Vec<SourceSurvey>,
    /// Whether any of this was taken from a record instead of the text.
    pub from_records: bool,
}

/// What one source amounts to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceSurvey {
    /// SHA-256 over the hashes of its documents, in order, in hexadecimal.
    pub hash: String,
    pub documents: u64,
    pub bytes: u64,
    pub training_bytes: u64,
    /// Documents that could not be read and were left out.
    pub left_out: u64,
    /// Files of JSON lines that were read as one plain text each.
    pub json_lines: u64,
}

impl SourceSurvey {
    /// How much there is, in words.
    fn amount(&self) -> String {
        let mut amount = format!("{} document(s), {}", self.documents, text_bytes(self.bytes));
        if self.left_out > 0 {
            amount += &format!(", {} left out", self.left_out);
        }
        amount
    }
}

impl Survey {
    /// Bytes of all sources.
    pub fn bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes).sum()
    }

    /// Bytes of all sources on the training side.
    pub fn training_bytes(&self) -> u64 {
        self.sources
            .iter()
            .map(|source| source.training_bytes)
            .sum()
    }
}

/// Reads all text once, document by document. With `trust`, sources whose records are current are
/// not read.
///
/// # Errors
///
/// When a source cannot be read, is empty, or the split leaves a side empty; when a tokenizer's file
/// cannot be used.
pub(super) fn survey(
    data: &DataConfig,
    tokenizer: &TokenizerConfig,
    records: &Records,
    trust: bool,
    progress: bool,
) -> Result<Survey, DataError> {
    let file = file_tokenizer(tokenizer)?.map(|file| data.reading(file));
    let mut sources = Vec::new();
    let mut from_records = false;
    for (source, split) in data.texts() {
        let found = match known(source, split, file.as_ref(), records).filter(|_| trust) {
            Some(Record { survey, files, .. }) => {
                from_records = true;
                tracing::info!(
                    "source {:?}: {}, not read again: sizes and modification times of {files} file(s) are unchanged",
                    source.name,
                    survey.amount()
                );
                survey
            }
            None => read(source, split, file.as_ref(), records, progress)?,
        };
        check(source, split, &found)?;
        warn_of_json_lines(source, found.json_lines);
        sources.push(found);
    }
    let held_out = |source: &SourceSurvey| source.bytes - source.training_bytes;
    if sources.iter().map(held_out).sum::<u64>() == 0 {
        return Err(DataError::OneSided {
            source_name: None,
            documents: sources.iter().map(|source| source.documents).sum(),
            fraction: data.validation.split.fraction,
        });
    }
    let key = key(data, tokenizer, file.as_ref(), &sources);
    Ok(Survey {
        key,
        tokenizer: file,
        sources,
        from_records,
    })
}

/// The tokenizer of a run, if it comes from a file.
pub(super) fn file_tokenizer(config: &TokenizerConfig) -> Result<Option<Tokenizer>, DataError> {
    match config {
        TokenizerConfig::File { path, end_of_text } => {
            Ok(Some(Tokenizer::from_file(path, end_of_text)?))
        }
        TokenizerConfig::Bytes | TokenizerConfig::Bpe { .. } => Ok(None),
    }
}

/// The survey of sources that all have current records; `None` if one would have to be read.
pub(super) fn survey_of_records(
    data: &DataConfig,
    tokenizer: &TokenizerConfig,
    records: &Records,
) -> Option<Survey> {
    let file = file_tokenizer(tokenizer).ok()?;
    let file = file.map(|file| data.reading(file));
    let known = |(source, split)| Some(known(source, split, file.as_ref(), records)?.survey);
    let sources = data.texts().map(known).collect::<Option<Vec<_>>>()?;
    Some(Survey {
        key: key(data, tokenizer, file.as_ref(), &sources),
        tokenizer: file,
        sources,
        from_records: true,
    })
}

/// The record of a source, if it can be trusted.
fn known(
    source: &SourceConfig,
    split: Split,
    tokenizer: Option<&Tokenizer>,
    records: &Records,
) -> Option<Record> {
    // The files of a source of pairs do not show whether pictures have changed.
    if source.tiles.is_some() && matches!(source.kind, SourceKind::Pairs { .. }) {
        return None;
    }
    let record = records.find(source, split, tokenizer)?;
    // If the files cannot be found, reading them reports why.
    let is_current = record.settled && record.is_current(source).unwrap_or(false);
    is_current.then_some(record)
}

/// Reads a source, and writes its record.
fn read(
    source: &SourceConfig,
    split: Split,
    tokenizer: Option<&Tokenizer>,
    records: &Records,
    progress: bool,
) -> Result<SourceSurvey, DataError> {
    let started = SystemTime::now();
    let mut reader = source::open(source, tokenizer, progress)?;
    let mut hasher = Sha256::new();
    let (mut documents, mut bytes, mut training_bytes) = (0, 0, 0);
    for entry in &mut reader {
        let entry = entry?;
        let hash = hash(entry.document.text.as_bytes());
        hasher.update(hash);
        hasher.update(entry.besides());
        documents += 1;
        bytes += entry.document.text.len() as u64;
        training_bytes += split::split_entry(&entry, &hash, split).training.len() as u64;
    }
    let left_out = reader.left_out();
    if let Some(first) = &left_out.first {
        tracing::warn!(
            "source {:?}: left out {} document(s) that cannot be read, the first: {first}",
            source.name,
            left_out.count
        );
    }
    let found = SourceSurvey {
        hash: hexadecimal(&hasher.finalize()),
        documents,
        bytes,
        training_bytes,
        left_out: left_out.count,
        json_lines: reader.json_lines(),
    };
    tracing::info!("source {:?}: {}", source.name, found.amount());
    let record = Record::new(found, &reader, started);
    // If a file was added, removed or modified in the meantime, it is unclear which version was read.
    if record.is_current(source).unwrap_or(false) {
        records.keep(source, split, tokenizer, &record);
    }
    Ok(record.survey)
}

/// Warns of JSON lines that are read with all their braces and fields.
fn warn_of_json_lines(source: &SourceConfig, files: u64) {
    if files == 0 {
        return;
    }
    let (name, instead) = match &source.kind {
        SourceKind::Url { .. } => ("url", "download it and name it with jsonl = [\"FILE\"]"),
        _ => ("files", "write jsonl = [\"PATTERN\"] instead"),
    };
    tracing::warn!(
        "source {:?}: {files} file(s) of JSON lines are each read as one plain text, because the source has the key \
         {name}; to read one document per line, from the field that the key `field` names (default \"text\"), {instead}",
        source.name
    );
}

/// Checks that a source has text, also to train on if not all of it is held out.
fn check(source: &SourceConfig, split: Split, found: &SourceSurvey) -> Result<(), DataError> {
    if found.documents == 0 {
        return Err(DataError::EmptySource {
            source_name: source.name.clone(),
        });
    }
    if found.training_bytes == 0 && split != Split::EVERYTHING {
        return Err(DataError::OneSided {
            source_name: Some(source.name.clone()),
            documents: found.documents,
            fraction: split.fraction,
        });
    }
    Ok(())
}

/// The content decides, not where it is: neither names nor paths, shares nor limits are part of it.
fn key(
    data: &DataConfig,
    tokenizer: &TokenizerConfig,
    file: Option<&Tokenizer>,
    sources: &[SourceSurvey],
) -> String {
    #[derive(Serialize)]
    struct Key<'a> {
        format: u32,
        tokenizer: &'a TokenizerConfig,
        tokenizer_file: Option<String>,
        split: Split,
        /// Hashes of the training sources, and of the validation sources.
        sources: [Vec<&'a str>; 2],
        /// What begins each document.
        beginning: &'a [u32],
        special_tokens: bool,
    }
    let without_path = match tokenizer {
        TokenizerConfig::File { end_of_text, .. } => TokenizerConfig::File {
            path: PathBuf::new(),
            end_of_text: end_of_text.clone(),
        },
        other => other.clone(),
    };
    let (training, validation) = sources.split_at(data.source.len());
    let key = Key {
        format: FORMAT,
        tokenizer: &without_path,
        tokenizer_file: file.map(|file| hexadecimal(&hash(file.to_json().as_bytes()))),
        split: data.validation.split,
        sources: [training, validation].map(|sources| {
            let hashes = sources.iter().map(|source| source.hash.as_str());
            hashes.collect()
        }),
        beginning: file.map_or(&[], Tokenizer::bos_ids),
        special_tokens: data.special_tokens,
    };
    let json = serde_json::to_vec(&key).expect("numbers and strings can be written as JSON");
    hexadecimal(&hash(&json))
}
