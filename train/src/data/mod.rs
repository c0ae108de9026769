//! A run's text, from its sources to the sequences that the model sees.
//!
//! [`prepare`] reads the sources (`source`), holds out validation text (`split`), and writes tokens
//! to disk (`build`, `shards`) unless tokens of the same text exist (`survey`, `folder`). Validation
//! text that is trained on too is counted (`copies`). Unchanged files are not read again (`record`, `stamp`), and [`resume`] reads no source text.
//! [`Prepared::validation`] samples what is held out (`validation`), and
//! [`Prepared::training_stream`] returns the sequences of a run (`packing`) in their order
//! (`order`), in which sources interleave (`mixture`) and sequences are shuffled
//! ([`permutation`](firebox_model::permutation)).
//!
//! The documents of some sources are captions of pictures. A model of text alone reads them as text. For one that sees
//! pictures these are prepared beside the tokens (`pictures`), and [`Prepared::caption_stream`] returns both together
//! (`captions`), in an order of the same kind.

mod build;
mod cache;
mod captions;
mod copies;
mod error;
mod folder;
mod hash;
mod mixture;
mod order;
mod packing;
mod pictures;
mod pool;
mod record;
mod repetition;
mod shards;
mod source;
mod split;
mod stamp;
mod survey;
#[cfg(test)]
mod tests;
mod validation;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use firebox_console::durable::{self, Unfinished};
use firebox_console::numbers::text_bytes;
use firebox_text::Tokenizer;

use self::build::build;
use self::captions::{CaptionSet, Reading, RowSet};
use self::folder::{Manifest, SourceManifest, TOKENIZER, VALIDATION_TEXT};
use self::pictures::PictureSet;
use self::pool::FilePool;
use self::record::Records;
use self::shards::{SetManifest, TokenSet};
use self::survey::{Survey, file_tokenizer, survey};
use self::validation::HeldOut;
use crate::config::{DataConfig, RunConfig, Share, TileLimits, TrainingSource};

pub use captions::{CaptionStream, HeldOutCaptions};
pub use error::DataError;
pub use packing::TrainingStream;
pub use repetition::warn_of_planned_repetition;
pub use source::DownloadError;
pub use split::HeldOutPicture;
pub use validation::ValidationPart;

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
    /// What each training source gives to training, in the order of the configuration.
    pub sources: Vec<SourceSummary>,
    /// What is held out of all sources together.
    pub held_out: TextSummary,
    /// Places of all text that spell special tokens.
    special_places: u64,
    /// `data.document_mask`
    document_mask: bool,
    training: Arc<Vec<TokenSet>>,
    validation: Vec<HeldOut>,
    captions: Option<Captions>,
}

/// The captions and pictures of a run whose model sees pictures.
#[derive(Debug)]
struct Captions {
    reading: Reading,
    /// Of each training source.
    training: Arc<Vec<RowSet>>,
    /// Of each source that has pictures.
    held_out: Vec<CaptionSet>,
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
    /// Sequences that it gives when it is seen once: of captions of pictures, one each.
    pub sequences: f64,
    /// Its part of all sequences that are seen, between 0 and 1.
    pub part: f64,
}

/// Makes a new run's tokenizer and tokens, or finds them as an earlier run left them.
///
/// They are in a folder of `data.cache` (by default `prepared` in the user's cache folder) that is
/// named after a hash of all that they depend on. The text is read once to compute that hash, and
/// again only when names, sizes or modification times of a source's files have changed. Prepared
/// files whose size or modification time has changed are hashed, and made again when they are
/// damaged. Processes that prepare the same data at once wait for the first of them.
///
/// # Errors
///
/// When a source cannot be read, is empty, or splits into nothing for training or validation; when
/// the tokenizer cannot be made; when the folder cannot be written.
pub fn prepare(config: &RunConfig, progress: bool) -> Result<Prepared, DataError> {
    let survey = take_survey(config, true, progress)?;
    from_sources(config, survey, progress)
}

/// Opens the tokenizer and tokens of a run that was started with data of this
/// [`content_hash`](Prepared::content_hash).
///
/// The sources are read only when the prepared tokens are missing or damaged; the result is `None`
/// when they contain other text by then. Otherwise the run continues with the text it started with,
/// even if the sources have changed or are gone. A warning says so when names, sizes or modification
/// times of their files differ.
///
/// # Errors
///
/// Those of [`prepare`], when the sources are needed.
pub fn resume(
    config: &RunConfig,
    content_hash: &str,
    progress: bool,
) -> Result<Option<Prepared>, DataError> {
    if let Some(folder) = folder_of(config, content_hash).filter(|folder| folder.is_dir()) {
        let _lock = cache::lock(&folder.with_extension("lock"))?;
        let tokenizer = file_tokenizer(&config.tokenizer)?;
        match open(config, content_hash, tokenizer, &folder) {
            Ok((prepared, sources)) => {
                warn_of_changes(config, &sources, &prepared.tokenizer);
                return Ok(Some(found(config, prepared)));
            }
            Err(reason) => tracing::warn!("data: the sources are needed: {reason}"),
        }
    }
    let survey = take_survey(config, true, progress)?;
    if survey.key != content_hash {
        return Ok(None);
    }
    let prepared = from_sources(config, survey, progress)?;
    Ok(Some(prepared).filter(|prepared| prepared.content_hash == content_hash))
}

/// Where prepared data is kept.
fn root(config: &RunConfig) -> PathBuf {
    let customary = || cache::folder().join("prepared");
    config.data.cache.clone().unwrap_or_else(customary)
}

/// The folder of the data with this key; `None` when `key` is not a hash.
fn folder_of(config: &RunConfig, key: &str) -> Option<PathBuf> {
    let name = key.get(..KEY_DIGITS)?;
    let is_hash = name.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hash.then(|| root(config).join(name))
}

fn take_survey(config: &RunConfig, trust: bool, progress: bool) -> Result<Survey, DataError> {
    let records = Records::of(&root(config));
    survey(&config.data, &config.tokenizer, &records, trust, progress)
}

/// Opens the data of a survey, or prepares it. Where a record turns out to be wrong, surveys again.
fn from_sources(config: &RunConfig, survey: Survey, progress: bool) -> Result<Prepared, DataError> {
    match find_or_build(config, &survey, progress) {
        Err(DataError::Changed { source_name }) if survey.from_records => {
            tracing::warn!(
                "source {source_name:?} changed, although sizes and modification times of its files \
                 did not: reading all text again"
            );
            find_or_build(config, &take_survey(config, false, progress)?, progress)
        }
        result => result,
    }
}

fn find_or_build(
    config: &RunConfig,
    survey: &Survey,
    progress: bool,
) -> Result<Prepared, DataError> {
    cache::create(&root(config))?;
    let folder = folder_of(config, &survey.key).expect("the key is a hash");
    let _lock = cache::lock(&folder.with_extension("lock"))?;
    let open = || open(config, &survey.key, survey.tokenizer.clone(), &folder);
    match open() {
        Ok((prepared, _)) => Ok(found(config, prepared)),
        Err(reason) => {
            if folder.exists() {
                tracing::warn!("data: preparing again: {reason}");
                durable::remove_folder(&folder)?;
            }
            build_in_place(config, survey, &folder, progress)?;
            let (prepared, _) = open()?;
            describe(config, &prepared);
            Ok(prepared)
        }
    }
}

fn found(config: &RunConfig, prepared: Prepared) -> Prepared {
    let folder = prepared.folder.display();
    tracing::info!("data: using the tokens prepared in {folder}");
    describe(config, &prepared);
    prepared
}

/// Logs the amounts of pictures.
fn describe_pictures(config: &RunConfig, captions: &Captions) {
    let sources = config.data.texts();
    let names = sources.filter(|(source, _)| source.tiles.is_some());
    let names = names.map(|(source, _)| &source.name);
    // Sources for validation alone come last, and have none.
    let mut training = captions.training.iter().filter_map(RowSet::captions);
    for (name, held_out) in names.zip(&captions.held_out) {
        let training = training.next().map_or(0, |set| set.pictures.pictures());
        let held_out = &held_out.pictures;
        let combinations = held_out.combinations();
        let concepts = held_out.pictures() - combinations;
        tracing::info!(
            "source {name:?}: {training} picture(s) to train on; held out: {combinations} of new combinations, {concepts} of new \
             concepts"
        );
    }
}

/// Logs the amounts of text, and warns of text that the run repeats often.
fn describe(config: &RunConfig, prepared: &Prepared) {
    if let Some(captions) = &prepared.captions {
        describe_pictures(config, captions);
    }
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
    let held_out = prepared.validation.iter();
    let held_out: Vec<&HeldOut> = held_out.filter(|source| source.bytes > 0).collect();
    if held_out.len() > 1 {
        for HeldOut {
            source, bytes, set, ..
        } in held_out
        {
            let (documents, tokens) = (set.documents(), set.tokens());
            let bytes = text_bytes(*bytes);
            tracing::info!(
                "validation: {source:?}: {documents} document(s), {bytes}, {tokens} tokens"
            );
        }
    }
    for HeldOut {
        source,
        copies,
        set,
        ..
    } in prepared
        .validation
        .iter()
        .filter(|held_out| held_out.copies > 0)
    {
        let documents = set.documents();
        let share = *copies as f64 / documents as f64 * 100.0;
        tracing::warn!(
            "source {source:?}: {copies} of its {documents} document(s) ({share:.1} %) are also trained on, word for word, \
             so their loss says nothing about new text: remove them from the training sources or from this one"
        );
    }
    repetition::warn(config, &prepared.sources);
    match (
        prepared.special_places,
        prepared.tokenizer.takes_special_tokens(),
    ) {
        (0, _) => {}
        (places, true) => tracing::info!("{places} place(s) of the text are special tokens"),
        (places, false) => tracing::warn!(
            "{places} place(s) of the text spell special tokens of the tokenizer, and are ordinary characters; \
             if a program wrote them, as in rendered chats, set data.special_tokens = true"
        ),
    }
}

/// Warns of sources that have changed since they had these hashes. Reads no text: only names, sizes
/// and modification times are compared.
fn warn_of_changes(config: &RunConfig, hashes: &[String], tokenizer: &Tokenizer) {
    let records = Records::of(&root(config));
    for ((source, split), hash) in config.data.texts().zip(hashes) {
        let Some(record) = records.find(source, split, Some(tokenizer)) else {
            continue;
        };
        let change = match record.is_current(source) {
            Ok(true) if record.survey.hash == *hash => continue,
            Ok(_) => format!("source {:?} has changed since it was prepared", source.name),
            Err(error) => error.to_string(),
        };
        tracing::warn!("{change}; the run continues with the text it started with");
    }
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

/// Opens a folder of prepared data. `tokenizer` is the one of a file, if the run has one; otherwise
/// the folder contains it. Also returns the hashes of the sources.
fn open(
    config: &RunConfig,
    key: &str,
    tokenizer: Option<Tokenizer>,
    folder: &Path,
) -> Result<(Prepared, Vec<String>), DataError> {
    let manifest = Manifest::open(folder, key, config.data.texts().count())?;
    let tokenizer = match tokenizer {
        Some(file) => file,
        None => Tokenizer::load(&folder.join(TOKENIZER), &[manifest.end_of_text])?,
    };
    let tokenizer = config.data.reading(tokenizer);
    let files = Arc::new(FilePool::default());
    let set = |set: &SetManifest| TokenSet::new(folder, set, &files);
    let training = &manifest.sources[..config.data.source.len()];
    let held_out = config.data.texts().zip(&manifest.sources);
    let held_out = held_out.map(|((source, _), manifest)| HeldOut {
        source: source.name.clone(),
        bytes: manifest.validation.bytes,
        copies: manifest.copies,
        has_pictures: source.tiles.is_some(),
        set: set(&manifest.validation),
    });
    let captions = captions(config, folder, &manifest, &tokenizer, &files);
    let hashes = manifest
        .sources
        .iter()
        .map(|source| source.hash.clone())
        .collect();
    let prepared = Prepared {
        captions,
        tokenizer,
        folder: folder.to_owned(),
        sources: summaries(config, &manifest.sources),
        held_out: held_out_summary(&manifest.sources),
        special_places: manifest.sources.iter().map(|s| s.special_places).sum(),
        document_mask: config.data.document_mask,
        training: Arc::new(
            training
                .iter()
                .map(|source| set(&source.training))
                .collect(),
        ),
        validation: held_out.collect(),
        content_hash: manifest.key,
    };
    Ok((prepared, hashes))
}

/// The captions and pictures of prepared data, if its model sees pictures.
fn captions(
    config: &RunConfig,
    folder: &Path,
    manifest: &Manifest,
    tokenizer: &Tokenizer,
    files: &Arc<FilePool>,
) -> Option<Captions> {
    let tiles: TileLimits = config.data.texts().find_map(|(source, _)| source.tiles)?;
    let training = |source: &SourceManifest| {
        let tokens = TokenSet::new(folder, &source.training, files);
        match &source.pictures {
            Some([training, _]) => RowSet::Captions(CaptionSet {
                tokens,
                pictures: PictureSet::new(folder, training, files),
            }),
            None => RowSet::Text(tokens),
        }
    };
    let held_out = |source: &SourceManifest| {
        let [_, held_out] = source.pictures.as_ref()?;
        Some(CaptionSet {
            tokens: TokenSet::new(folder, &source.validation, files),
            pictures: PictureSet::new(folder, held_out, files),
        })
    };
    let (sources, all) = (
        &manifest.sources[..config.data.source.len()],
        &manifest.sources,
    );
    let has_text = sources.iter().any(|source| source.pictures.is_none());
    // Training the tokenizer may yield fewer tokens than the configuration allows; a checkpoint's may have fewer than the
    // model.
    let vocab_size = match config.train.init {
        Some(_) => config.model.vocab_size,
        None => tokenizer.vocab_size(),
    };
    Some(Captions {
        reading: Reading {
            image_token: vocab_size as u32,
            beginning: tokenizer.bos_ids().len(),
            processor: tiles.processor(),
            document_end: (has_text && config.data.document_mask).then(|| tokenizer.eos_id()),
        },
        training: Arc::new(sources.iter().map(training).collect()),
        held_out: all.iter().filter_map(held_out).collect(),
    })
}

fn held_out_summary(sources: &[SourceManifest]) -> TextSummary {
    let sum =
        |of: fn(&SetManifest) -> u64| sources.iter().map(|source| of(&source.validation)).sum();
    TextSummary {
        documents: sum(|set| set.documents),
        bytes: sum(|set| set.bytes),
        tokens: sum(|set| set.tokens),
    }
}

/// What each training source gives, from what was prepared of all sources.
fn summaries(config: &RunConfig, sources: &[SourceManifest]) -> Vec<SourceSummary> {
    let context = config.model.context_length.max(1) as f64;
    let sequences = |(source, set): (&TrainingSource, &SourceManifest)| match source.text.tiles {
        Some(_) => set.training.documents as f64,
        None => set.training.tokens as f64 / context,
    };
    let seen = |(source, set): (&TrainingSource, &SourceManifest)| match source.share {
        Share::Epochs(epochs) => sequences((source, set)) * f64::from(epochs),
        Share::Weight(weight) => weight,
    };
    let sources = || config.data.source.iter().zip(sources);
    let all: f64 = sources().map(seen).sum();
    sources()
        .map(|(source, set)| SourceSummary {
            name: source.text.name.clone(),
            text: TextSummary {
                documents: set.training.documents,
                bytes: set.training.bytes,
                tokens: set.training.tokens,
            },
            share: source.share,
            sequences: sequences((source, set)),
            part: seen((source, set)) / all,
        })
        .collect()
}

impl DataConfig {
    /// The tokenizer as it reads this data.
    fn reading(&self, tokenizer: Tokenizer) -> Tokenizer {
        if self.special_tokens {
            tokenizer.with_special_tokens()
        } else {
            tokenizer
        }
    }
}

impl Prepared {
    /// The token that ends a document, where each document is to be seen by itself.
    pub fn document_end(&self) -> Option<u32> {
        self.document_mask.then(|| self.tokenizer.eos_id())
    }

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
        let stream = TrainingStream::new(
            self.training.clone(),
            &shares,
            context,
            seed,
            self.document_end(),
        )?;
        stream.require(needed)?;
        Ok(stream)
    }

    /// The captioned pictures of a run whose model sees pictures, and the text beside them, in the order that `train.seed`
    /// decides.
    ///
    /// # Errors
    ///
    /// When there are fewer than `needed`.
    ///
    /// # Panics
    ///
    /// When the model sees no pictures.
    pub fn caption_stream(
        &self,
        config: &RunConfig,
        needed: u64,
    ) -> Result<CaptionStream, DataError> {
        let Captions {
            reading, training, ..
        } = self.captions.as_ref().expect("captions of pictures");
        let shares: Vec<Share> = self.sources.iter().map(|source| source.share).collect();
        let stream = CaptionStream::new(
            training.clone(),
            &shares,
            reading.clone(),
            config.model.context_length,
            config.train.seed,
            config.data.pictures,
        );
        stream.require(needed)?;
        Ok(stream)
    }

    /// The held-out captions and pictures, by why they are held out; of more than `limit` a sample, always the same.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    ///
    /// # Panics
    ///
    /// When the model sees no pictures.
    pub fn held_out_captions(
        &self,
        context: usize,
        limit: u64,
    ) -> Result<Vec<HeldOutCaptions>, DataError> {
        let Captions {
            reading, held_out, ..
        } = self.captions.as_ref().expect("captions of pictures");
        captions::held_out(held_out, reading, context, limit)
    }

    /// The text of a validation, by source: all that is held out if it has at most `limit` targets, otherwise a sample of
    /// it in proportion, the same every time. Sources without held-out text have no part, nor those whose pictures the model
    /// sees: see [`held_out_captions`](Self::held_out_captions).
    ///
    /// # Errors
    ///
    /// When the tokens cannot be read.
    pub fn validation(&self, context: usize, limit: u64) -> Result<Vec<ValidationPart>, DataError> {
        let texts = self.validation.iter();
        let texts: Vec<&HeldOut> = texts.filter(|held_out| !held_out.has_pictures).collect();
        validation::sample(&texts, &self.tokenizer, context, limit)
    }

    /// The held-out text of all sources: JSON lines with a field `text`, a document a line. Where these are captions of pictures
    /// that the model sees, `image` has the path of each picture's file, and `held_out` why it is held out.
    pub fn validation_text(&self) -> PathBuf {
        self.folder.join(VALIDATION_TEXT)
    }
}
