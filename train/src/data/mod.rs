//! A run's text, from its sources to the sequences that the model sees.
//!
//! [`prepare`] reads the sources (`source`), holds out validation text (`split`), and writes tokens
//! to disk (`build`, `shards`) unless the same text is there already (`survey`).
//! [`Prepared::training_stream`] puts the documents in their order (`mixture`) and cuts them into
//! sequences (`packing`).

mod build;
mod cache;
mod error;
mod hash;
mod mixture;
mod packing;
mod shards;
mod source;
mod split;
mod survey;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firebox_console::durable::{self, Unfinished};
use firebox_console::numbers::text_bytes;
use firebox_text::Tokenizer;
use firebox_text::packing::{PackedText, Packer};

use self::build::{MANIFEST, Manifest, TOKENIZER, VALIDATION_TEXT, build};
use self::shards::{SetManifest, TokenSet};
use self::survey::{Survey, survey};
use crate::config::{RunConfig, Share};

pub use error::DataError;
pub use packing::TrainingStream;

/// Digits of the key that name a folder.
const KEY_DIGITS: usize = 16;

/// A run's tokenizer and tokens.
#[derive(Debug)]
pub struct Prepared {
    /// Encodes and decodes the run's text.
    pub tokenizer: Tokenizer,
    /// Where everything is kept.
    pub folder: PathBuf,
    /// SHA-256, in hexadecimal, over all text, the split and the tokenizer: equal where the tokens
    /// are equal.
    pub content_hash: String,
    /// What each source gives to training, in the order of the configuration.
    pub sources: Vec<SourceSummary>,
    /// What is held out of all sources together.
    pub held_out: TextSummary,
    training: Arc<Vec<TokenSet>>,
    validation: TokenSet,
}

/// An amount of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSummary {
    /// Documents, or held-out parts of documents.
    pub documents: u64,
    /// UTF-8 bytes.
    pub bytes: u64,
    /// Tokens, those that begin and end documents included.
    pub tokens: u64,
}

/// What a source gives to training.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceSummary {
    /// Its name in the configuration.
    pub name: String,
    /// Its training text, counted once.
    pub text: TextSummary,
    /// How much of it is seen.
    pub share: Share,
    /// Its part of all tokens that are seen, between 0 and 1.
    pub part: f64,
}

/// Makes a run's tokenizer and tokens, or finds them as an earlier run left them.
///
/// They are in a folder of `data.cache` (by default `prepared` in the user's cache folder) that is
/// named after a hash of all that they depend on. All text is read and hashed once to know that
/// hash; a folder that is there is checked byte by byte, and made again when it is damaged.
/// Processes that prepare the same data at once wait for the first of them.
///
/// # Errors
///
/// When a source cannot be read, is empty, or splits into nothing for training or validation; when
/// the tokenizer cannot be made; when the folder cannot be written.
pub fn prepare(config: &RunConfig, progress: bool) -> Result<Prepared, DataError> {
    let survey = survey(&config.data, &config.tokenizer, progress)?;
    let root = config
        .data
        .cache
        .clone()
        .unwrap_or_else(|| cache::folder().join("prepared"));
    cache::create(&root)?;
    let folder = root.join(&survey.key[..KEY_DIGITS]);
    let _lock = cache::lock(&folder.with_extension("lock"))?;

    let prepared = match open(config, &survey, &folder) {
        Ok(prepared) => {
            tracing::info!("data: using the tokens prepared in {}", folder.display());
            prepared
        }
        Err(reason) => {
            if folder.exists() {
                tracing::warn!("data: preparing again, for {reason}");
                durable::remove_folder(&folder)?;
            }
            build_in_place(config, &survey, &folder, progress)?;
            open(config, &survey, &folder)?
        }
    };
    for source in &prepared.sources {
        let TextSummary {
            documents,
            bytes,
            tokens,
        } = source.text;
        let bytes = text_bytes(bytes);
        tracing::info!(
            "source {:?}: {documents} training document(s), {bytes}, {tokens} tokens",
            source.name
        );
    }
    let TextSummary {
        documents,
        bytes,
        tokens,
    } = prepared.held_out;
    tracing::info!(
        "validation: {documents} document(s), {}, {tokens} tokens",
        text_bytes(bytes)
    );
    Ok(prepared)
}

/// Builds under another name, so that a folder of the right name is complete.
fn build_in_place(
    config: &RunConfig,
    survey: &Survey,
    folder: &Path,
    progress: bool,
) -> Result<(), DataError> {
    tracing::info!("data: preparing tokens in {}", folder.display());
    // We hold the lock: whoever began an earlier one is gone.
    let unfinished = Unfinished::create(folder)?;
    build(config, survey, unfinished.path(), progress)?;
    Ok(unfinished.finish()?)
}

fn open(config: &RunConfig, survey: &Survey, folder: &Path) -> Result<Prepared, DataError> {
    let path = folder.join(MANIFEST);
    let json = fs::read(&path).map_err(DataError::io("read", &path))?;
    let damaged = |reason: String| DataError::Damaged {
        path: path.clone(),
        reason,
    };
    let manifest: Manifest =
        serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
    if manifest.key != survey.key || manifest.training.len() != config.data.source.len() {
        return Err(damaged("it belongs to other data".to_owned()));
    }
    let tokenizer = match &survey.tokenizer {
        Some(file) => file.clone(),
        None => Tokenizer::load(&folder.join(TOKENIZER), &[manifest.end_of_text])?,
    };
    let open = |set: &SetManifest| TokenSet::open(folder, set);
    let training = manifest
        .training
        .iter()
        .map(open)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Prepared {
        tokenizer,
        folder: folder.to_owned(),
        sources: summaries(config, &manifest.training),
        held_out: summary(&manifest.validation),
        training: Arc::new(training),
        validation: open(&manifest.validation)?,
        content_hash: manifest.key,
    })
}

fn summary(set: &SetManifest) -> TextSummary {
    TextSummary {
        documents: set.documents,
        bytes: set.bytes,
        tokens: set.tokens,
    }
}

fn summaries(config: &RunConfig, sets: &[SetManifest]) -> Vec<SourceSummary> {
    let seen = |(source, set): (&crate::config::SourceConfig, &SetManifest)| match source.share {
        Share::Epochs(epochs) => set.tokens as f64 * f64::from(epochs),
        Share::Weight(weight) => weight,
    };
    let sources = || config.data.source.iter().zip(sets);
    let all: f64 = sources().map(seen).sum();
    sources()
        .map(|(source, set)| SourceSummary {
            name: source.name.clone(),
            text: summary(set),
            share: source.share,
            part: seen((source, set)) / all,
        })
        .collect()
}

impl Prepared {
    /// The training sequences of `context` tokens, in the order that `seed` decides.
    ///
    /// # Errors
    ///
    /// When there are fewer than `needed` sequences, or `context` is longer than all the data.
    pub fn training_stream(
        &self,
        context: usize,
        seed: u64,
        needed: u64,
    ) -> Result<TrainingStream, DataError> {
        let shares: Vec<Share> = self.sources.iter().map(|source| source.share).collect();
        let stream = TrainingStream::new(self.training.clone(), &shares, context, seed, needed)?;
        stream.require(needed)?;
        Ok(stream)
    }

    /// The validation text up to `limit` targets, packed as `infer eval` packs
    /// [`validation_text`](Self::validation_text).
    pub fn validation(&self, limit: u64) -> PackedText {
        let mut packer = Packer::new(&self.tokenizer, Some(limit));
        let mut tokens = Vec::new();
        for document in 0..self.validation.documents() {
            if packer.is_full() {
                break;
            }
            tokens.clear();
            let range = self.validation.range(document);
            // The packer adds what begins and ends a document itself.
            let text = range.start + self.tokenizer.beginning().len() as u64..range.end - 1;
            self.validation.read(text, &mut tokens);
            packer.push(&tokens, self.validation.bytes(document));
        }
        packer.finish()
    }

    /// The held-out text: JSON lines with a field `text`, a document a line.
    pub fn validation_text(&self) -> PathBuf {
        self.folder.join(VALIDATION_TEXT)
    }
}
