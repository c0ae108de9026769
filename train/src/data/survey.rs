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
use super::split::split;
use crate::config::{DataConfig, SourceConfig, TokenizerConfig};

/// Raised whenever a change of the program makes the same files give other documents, tokens or
/// sequences, so that no run continues with other data than it started with.
pub(super) const FORMAT: u32 = 3;

/// What a run's text amounts to.
#[derive(Debug)]
pub(super) struct Survey {
    /// SHA-256 of all that decides the prepared tokens, in hexadecimal.
    pub key: String,
    /// The tokenizer, where it is a file's: the one that the key is of, whatever becomes of the file.
    pub tokenizer: Option<Tokenizer>,
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
    let file = file_tokenizer(tokenizer)?;
    let mut sources = Vec::with_capacity(data.source.len());
    let mut from_records = false;
    for source in &data.source {
        let known = known(source, data, records).filter(|_| trust);
        from_records |= known.is_some();
        let found = match known {
            Some(found) => found,
            None => read(source, data, records, progress)?,
        };
        check(source, data, &found)?;
        sources.push(found);
    }
    let held_out = |source: &SourceSurvey| source.bytes - source.training_bytes;
    if sources.iter().map(held_out).sum::<u64>() == 0 {
        return Err(DataError::OneSided {
            source_name: None,
            documents: sources.iter().map(|source| source.documents).sum(),
            fraction: data.validation.fraction,
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

/// What a trustworthy record says of a source.
fn known(source: &SourceConfig, data: &DataConfig, records: &Records) -> Option<SourceSurvey> {
    let record = records.find(source, &data.validation)?;
    // If the files cannot be found, reading them reports why.
    if !record.settled || !record.is_current(source).unwrap_or(false) {
        return None;
    }
    let SourceSurvey {
        documents, bytes, ..
    } = record.survey;
    tracing::info!(
        "source {:?}: {documents} document(s), {}, not read again: sizes and modification times of \
         {} file(s) are unchanged",
        source.name,
        text_bytes(bytes),
        record.files
    );
    Some(record.survey)
}

/// Reads a source, and writes its record.
fn read(
    source: &SourceConfig,
    data: &DataConfig,
    records: &Records,
    progress: bool,
) -> Result<SourceSurvey, DataError> {
    let started = SystemTime::now();
    let mut reader = source::open(source, progress)?;
    let mut hasher = Sha256::new();
    let (mut documents, mut bytes, mut training_bytes) = (0, 0, 0);
    for document in &mut reader {
        let text = document?.text;
        let hash = hash(text.as_bytes());
        hasher.update(hash);
        documents += 1;
        bytes += text.len() as u64;
        training_bytes += split(&text, &hash, &data.validation).training.len() as u64;
    }
    tracing::info!(
        "source {:?}: {documents} document(s), {}",
        source.name,
        text_bytes(bytes)
    );
    let found = SourceSurvey {
        hash: hexadecimal(&hasher.finalize().into()),
        documents,
        bytes,
        training_bytes,
    };
    let record = Record::new(found, &reader, started);
    // If a file was added, removed or modified in the meantime, it is unclear which version was read.
    if record.is_current(source).unwrap_or(false) {
        records.keep(source, &data.validation, &record);
    }
    Ok(record.survey)
}

/// Checks that a source has text to train on.
fn check(source: &SourceConfig, data: &DataConfig, found: &SourceSurvey) -> Result<(), DataError> {
    if found.documents == 0 {
        return Err(DataError::EmptySource {
            source_name: source.name.clone(),
        });
    }
    if found.training_bytes == 0 {
        return Err(DataError::OneSided {
            source_name: Some(source.name.clone()),
            documents: found.documents,
            fraction: data.validation.fraction,
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
        validation: &'a crate::config::ValidationConfig,
        sources: Vec<&'a str>,
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
    let key = Key {
        format: FORMAT,
        tokenizer: &without_path,
        tokenizer_file: file.map(|file| hexadecimal(&hash(file.to_json().as_bytes()))),
        validation: &data.validation,
        sources: sources.iter().map(|source| source.hash.as_str()).collect(),
        beginning: file.map_or(&[], Tokenizer::bos_ids),
        special_tokens: data.special_tokens,
    };
    let json = serde_json::to_vec(&key).expect("numbers and strings can be written as JSON");
    hexadecimal(&hash(&json))
}
