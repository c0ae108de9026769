//! The first look at a run's text: how much there is, and the key that tells whether it is prepared
//! already.

use std::path::PathBuf;

use firebox_console::numbers::text_bytes;
use firebox_text::Tokenizer;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::hash::{Hash, hash, hexadecimal};
use super::source;
use super::split::split;
use crate::config::{DataConfig, SourceConfig, TokenizerConfig};

/// Raised whenever the same text would be prepared differently.
const FORMAT: u32 = 1;

/// What a run's text amounts to.
#[derive(Debug)]
pub(super) struct Survey {
    /// SHA-256 of all that decides the prepared tokens, in hexadecimal.
    pub key: String,
    /// The tokenizer, where it is a file's: the one that the key is of, whatever becomes of the file.
    pub tokenizer: Option<Tokenizer>,
    pub sources: Vec<SourceSurvey>,
}

/// What one source amounts to.
#[derive(Debug)]
pub(super) struct SourceSurvey {
    /// Over the hashes of its documents, in order.
    pub hash: Hash,
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

/// Reads all text once, document by document.
///
/// # Errors
///
/// When a source cannot be read, is empty, or the split leaves a side empty; when a tokenizer's file
/// cannot be used.
pub(super) fn survey(
    data: &DataConfig,
    tokenizer: &TokenizerConfig,
    progress: bool,
) -> Result<Survey, DataError> {
    let file = match tokenizer {
        TokenizerConfig::File { path, end_of_text } => {
            Some(Tokenizer::from_file(path, end_of_text)?)
        }
        TokenizerConfig::Bytes | TokenizerConfig::Bpe { .. } => None,
    };
    let mut documents = 0;
    let mut validation_bytes = 0;
    let mut sources = Vec::with_capacity(data.source.len());
    for source in &data.source {
        let found = survey_source(source, data, progress, &mut documents)?;
        validation_bytes += found.bytes - found.training_bytes;
        sources.push(found);
    }
    if validation_bytes == 0 {
        let fraction = data.validation.fraction;
        return Err(DataError::OneSided {
            source_name: None,
            documents,
            fraction,
        });
    }
    let key = key(data, tokenizer, file.as_ref(), &sources);
    Ok(Survey {
        key,
        tokenizer: file,
        sources,
    })
}

fn survey_source(
    source: &SourceConfig,
    data: &DataConfig,
    progress: bool,
    all_documents: &mut u64,
) -> Result<SourceSurvey, DataError> {
    let mut hasher = Sha256::new();
    let (mut documents, mut bytes, mut training_bytes) = (0, 0, 0);
    for document in source::open(source, progress)? {
        let text = document?.text;
        let hash = hash(text.as_bytes());
        hasher.update(hash);
        documents += 1;
        bytes += text.len() as u64;
        training_bytes += split(&text, &hash, &data.validation).training.len() as u64;
    }
    let source_name = || source.name.clone();
    if documents == 0 {
        return Err(DataError::EmptySource {
            source_name: source_name(),
        });
    }
    if training_bytes == 0 {
        let fraction = data.validation.fraction;
        return Err(DataError::OneSided {
            source_name: Some(source_name()),
            documents,
            fraction,
        });
    }
    tracing::info!(
        "source {:?}: {documents} document(s), {}",
        source.name,
        text_bytes(bytes)
    );
    *all_documents += documents;
    Ok(SourceSurvey {
        hash: hasher.finalize().into(),
        bytes,
        training_bytes,
    })
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
        sources: Vec<String>,
        /// Follows from the file; there was a time when documents did not begin with it.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        beginning: Vec<u32>,
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
        sources: sources
            .iter()
            .map(|source| hexadecimal(&source.hash))
            .collect(),
        beginning: file.map_or_else(Vec::new, |file| file.beginning().to_vec()),
    };
    let json = serde_json::to_vec(&key).expect("numbers and strings can be written as JSON");
    hexadecimal(&hash(&json))
}
