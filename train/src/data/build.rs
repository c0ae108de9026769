//! From text to tokens on disk: fills a [folder](super::folder) under another name, which is renamed
//! when it is complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use firebox_console::numbers::text_bytes;
use firebox_console::progress::Progress;
use firebox_text::Tokenizer;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::folder::{Manifest, SourceManifest, TOKENIZER, VALIDATION_TEXT};
use super::hash::{hash, hexadecimal, unit_interval};
use super::shards::SetWriter;
use super::source;
use super::split;
use super::survey::{FORMAT, SourceSurvey, Survey};
use crate::config::{RunConfig, SourceConfig, TokenizerConfig};

/// A byte-pair encoding is trained on about this much text.
const SAMPLE_BYTES: u64 = 10_000_000;

/// The pieces in which that text is chosen.
const SAMPLE_PIECE: usize = 64 << 10;

/// Documents are encoded together until they have this many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// Prepares all data of a run in an empty folder.
pub(super) fn build(
    config: &RunConfig,
    survey: &Survey,
    folder: &Path,
    progress: bool,
) -> Result<(), DataError> {
    let tokenizer = match &survey.tokenizer {
        Some(file) => file.clone(),
        None => make_tokenizer(config, survey, progress)?,
    };
    tokenizer.save(&folder.join(TOKENIZER))?;

    let vocab_size = tokenizer.vocab_size();
    let validation_path = folder.join(VALIDATION_TEXT);
    let created =
        File::create(&validation_path).map_err(DataError::io("write", &validation_path))?;
    let mut validation_text = BufWriter::new(created);
    let mut sources = Vec::new();
    let progress = counted("tokenizing", survey, progress);

    for (index, (source, split)) in config.data.texts().enumerate() {
        let writer = |side: &str| SetWriter::create(folder, &format!("{side}-{index}"), vocab_size);
        let (mut training, mut validation) = (writer("training")?, writer("validation")?);
        let mut batch = Batch::default();
        for_each_document(source, &survey.sources[index], |text| {
            let hash = hash(text.as_bytes());
            let sides = split::split(&text, &hash, split);
            for (side, text) in [
                (Side::Training, sides.training),
                (Side::Validation, sides.validation),
            ] {
                if !text.is_empty() {
                    batch.add(side, text);
                }
            }
            if !sides.validation.is_empty() {
                writeln!(validation_text, "{}", json!({ "text": sides.validation }))
                    .map_err(DataError::io("write", &validation_path))?;
            }
            if batch.bytes >= BATCH_BYTES {
                batch.write(&tokenizer, &mut training, &mut validation)?;
            }
            progress.advance(text.len() as u64);
            Ok(())
        })?;
        batch.write(&tokenizer, &mut training, &mut validation)?;
        sources.push(SourceManifest {
            hash: survey.sources[index].hash.clone(),
            training: training.finish()?,
            validation: validation.finish()?,
        });
    }
    validation_text
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .and_then(|file| file.sync_all())
        .map_err(DataError::io("write", &validation_path))?;

    let manifest = Manifest {
        format: FORMAT,
        key: survey.key.clone(),
        end_of_text: tokenizer.eos_id(),
        sources,
    };
    manifest.write(folder)
}

/// Counts the bytes of all text.
fn counted(what: &str, survey: &Survey, visible: bool) -> Progress {
    let bytes = survey.bytes();
    Progress::shown_if(
        visible,
        format!("data: {what} {}", text_bytes(bytes)),
        bytes,
    )
}

/// Reads a source again and makes sure that it is the one that was surveyed.
fn for_each_document(
    source: &SourceConfig,
    survey: &SourceSurvey,
    mut use_text: impl FnMut(String) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut hasher = Sha256::new();
    for document in source::open(source, false)? {
        let text = document?.text;
        hasher.update(hash(text.as_bytes()));
        use_text(text)?;
    }
    let found = hexadecimal(&hasher.finalize().into());
    if found != survey.hash {
        return Err(DataError::Changed {
            source_name: source.name.clone(),
        });
    }
    Ok(())
}

fn make_tokenizer(
    config: &RunConfig,
    survey: &Survey,
    progress: bool,
) -> Result<Tokenizer, DataError> {
    let TokenizerConfig::Bpe { vocab_size } = config.tokenizer else {
        return Ok(Tokenizer::bytes());
    };
    let sample = tokenizer_sample(config, survey, progress)?;
    tracing::info!("data: training a byte-pair encoding of {vocab_size} ids");
    Ok(Tokenizer::train_bpe(sample.into_iter(), vocab_size)?)
}

/// Training text of all sources, in proportion: all of it where it is short, otherwise the pieces
/// of it that a hash of their place chooses, about [`SAMPLE_BYTES`] of them.
fn tokenizer_sample(
    config: &RunConfig,
    survey: &Survey,
    progress: bool,
) -> Result<Vec<String>, DataError> {
    let share = SAMPLE_BYTES as f64 / survey.training_bytes() as f64;
    let mut sample = Vec::new();
    let progress = counted("sampling", survey, progress);
    for (source, found) in config.data.source.iter().zip(&survey.sources) {
        for_each_document(&source.text, found, |text| {
            let document_hash = hash(text.as_bytes());
            let split = config.data.validation.split;
            let mut rest = split::split(&text, &document_hash, split).training;
            let mut number: u64 = 0;
            while !rest.is_empty() {
                let (piece, remainder) = rest.split_at(rest.floor_char_boundary(SAMPLE_PIECE));
                let place = [&document_hash[..], &number.to_le_bytes()].concat();
                if unit_interval(&hash(&place)) < share {
                    sample.push(piece.to_owned());
                }
                rest = remainder;
                number += 1;
            }
            progress.advance(text.len() as u64);
            Ok(())
        })?;
    }
    Ok(sample)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Training,
    Validation,
}

/// Texts that wait to be encoded together.
#[derive(Debug, Default)]
struct Batch {
    texts: Vec<(Side, String)>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, side: Side, text: &str) {
        self.bytes += text.len();
        self.texts.push((side, text.to_owned()));
    }

    /// Encodes and writes what waits.
    fn write(
        &mut self,
        tokenizer: &Tokenizer,
        training: &mut SetWriter,
        validation: &mut SetWriter,
    ) -> Result<(), DataError> {
        let texts: Vec<&str> = self.texts.iter().map(|(_, text)| text.as_str()).collect();
        let encoded = tokenizer.encode_batch(&texts)?;
        for ((side, text), tokens) in self.texts.iter().zip(encoded) {
            let writer = match side {
                Side::Training => &mut *training,
                Side::Validation => &mut *validation,
            };
            let document: Vec<u32> = tokenizer.document(&tokens).collect();
            writer.push(&document, text.len() as u64)?;
        }
        *self = Self::default();
        Ok(())
    }
}
