//! From text to tokens on disk: fills a [folder](super::folder) under another name, which is renamed
//! when it is complete.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use firebox_console::numbers::text_bytes;
use firebox_console::progress::Progress;
use firebox_text::Tokenizer;
use firebox_text::documents::Document;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::copies::Copies;
use super::error::DataError;
use super::folder::{Manifest, SourceManifest, TOKENIZER, VALIDATION_TEXT};
use super::hash::{Hash, hash, hexadecimal, unit_interval};
use super::pictures::PictureWriter;
use super::shards::SetWriter;
use super::source::{self, Entry};
use super::split::{self, HeldOutPicture};
use super::survey::{FORMAT, SourceSurvey, Survey};
use crate::config::{RunConfig, SourceConfig, TokenizerConfig};

/// A byte-pair encoding is trained on about this much text.
const SAMPLE_BYTES: u64 = 10_000_000;

/// The pieces in which that text is chosen.
const SAMPLE_PIECE: usize = 64 << 10;

/// Texts are encoded together until they have this many bytes; one that has them alone is encoded part by part.
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
    let tokenizer = config.data.reading(tokenizer);
    tokenizer.save(&folder.join(TOKENIZER))?;

    let vocab_size = tokenizer.vocab_size();
    let validation_path = folder.join(VALIDATION_TEXT);
    let created =
        File::create(&validation_path).map_err(DataError::io("write", &validation_path))?;
    let mut validation_text = BufWriter::new(created);
    let mut sources = Vec::new();
    let mut copies = Copies::of(&config.data, survey)?;
    let progress = counted("tokenizing", survey, progress);

    for (index, (source, split)) in config.data.texts().enumerate() {
        let writer = |side: &str| SetWriter::create(folder, &format!("{side}-{index}"), vocab_size);
        let mut encoder = Encoder {
            tokenizer: &tokenizer,
            training: writer("training")?,
            validation: writer("validation")?,
            waiting: Vec::new(),
            bytes: 0,
            special_places: 0,
        };
        let mut pictures = match source.tiles {
            Some(_) => {
                let writer = |side: &str| PictureWriter::create(folder, &format!("{side}-{index}"));
                Some([writer("training")?, writer("validation")?])
            }
            None => None,
        };
        let mut copied = 0;
        let found = &survey.sources[index];
        for_each_document(source, found, survey.tokenizer.as_ref(), |entry, hash| {
            let sides = split::split_entry(&entry, hash, split);
            let Document { name, text } = &entry.document;
            if sides.training.is_empty() {
                // Of a validation source: those of training come before.
                copied += u64::from(copies.is_trained_on(hash));
            } else {
                copies.train_on(hash);
            }
            if let (Some(writers), Some(picture)) = (&mut pictures, &entry.picture) {
                let fitted = picture.pixels.as_ref().expect("pictures are read");
                let held_out = split::held_out(text, picture, split.fraction);
                writers[usize::from(held_out.is_some())].add(fitted, held_out)?;
            }
            match &entry.tokens {
                Some(tokens) if sides.training.is_empty() => {
                    encoder.add_tokens(Side::Validation, tokens, text)?;
                }
                Some(tokens) => encoder.add_tokens(Side::Training, tokens, text)?,
                None => {
                    encoder.add(Part {
                        side: Side::Training,
                        document: name,
                        offset: 0,
                        text: sides.training,
                    })?;
                    encoder.add(Part {
                        side: Side::Validation,
                        document: name,
                        offset: text.len() - sides.validation.len(),
                        text: sides.validation,
                    })?;
                }
            }
            if !sides.validation.is_empty() {
                let line = Line::of(sides.validation, &entry, split.fraction);
                write_line(&mut validation_text, &line)
                    .map_err(DataError::io("write", &validation_path))?;
            }
            progress.advance(text.len() as u64);
            Ok(())
        })?;
        encoder.write()?;
        sources.push(SourceManifest {
            hash: survey.sources[index].hash.clone(),
            copies: copied,
            special_places: encoder.special_places,
            pictures: match pictures {
                Some([training, validation]) => Some([training.finish()?, validation.finish()?]),
                None => None,
            },
            training: encoder.training.finish()?,
            validation: encoder.validation.finish()?,
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

/// A held-out text.
#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    /// The file of the picture that it is the caption of, where the model sees pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<PathBuf>,
    /// Why that picture is held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<HeldOutPicture>,
}

impl<'a> Line<'a> {
    fn of(text: &'a str, entry: &Entry, fraction: f64) -> Self {
        let picture = entry.picture.as_ref();
        let picture = picture.filter(|picture| picture.pixels.is_some());
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Self {
            text,
            image: picture.map(|picture| absolute(&picture.path)),
            held_out: picture.and_then(|picture| split::held_out(text, picture, fraction)),
        }
    }
}

/// Writes a line of JSON.
fn write_line(file: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *file, line)?;
    file.write_all(b"\n")
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

/// Reads a source again, document by document with its hash, and makes sure that it is the one that was surveyed.
pub(super) fn for_each_document(
    source: &SourceConfig,
    survey: &SourceSurvey,
    tokenizer: Option<&Tokenizer>,
    mut use_document: impl FnMut(Entry, &Hash) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut hasher = Sha256::new();
    for entry in source::open(source, tokenizer, false)? {
        let entry = entry?;
        let hash = hash(entry.document.text.as_bytes());
        hasher.update(hash);
        hasher.update(entry.besides());
        use_document(entry, &hash)?;
    }
    let found = hexadecimal(&hasher.finalize());
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
        for_each_document(&source.text, found, None, |entry, document_hash| {
            let split = config.data.validation.split;
            let mut rest = split::split_entry(&entry, document_hash, split).training;
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
            progress.advance(entry.document.text.len() as u64);
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

/// A part of a document, to be encoded.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    side: Side,
    /// The document that it is of, for messages.
    document: &'a str,
    /// Where it begins there, in bytes.
    offset: usize,
    text: &'a str,
}

/// A part that waits to be encoded.
#[derive(Debug)]
struct Waiting {
    side: Side,
    document: String,
    offset: usize,
    text: String,
}

/// Writes the tokens of a source's training text and of its held-out text.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    training: SetWriter,
    validation: SetWriter,
    /// Short texts that are encoded together.
    waiting: Vec<Waiting>,
    bytes: usize,
    /// Places that spell special tokens.
    special_places: u64,
}

impl Encoder<'_> {
    fn add(&mut self, part: Part) -> Result<(), DataError> {
        if part.text.is_empty() {
            return Ok(());
        }
        self.special_places += self.tokenizer.special_places(part.text);
        if part.text.len() >= BATCH_BYTES {
            self.write()?;
            return self.write_long(part);
        }
        self.bytes += part.text.len();
        self.waiting.push(Waiting {
            side: part.side,
            document: part.document.to_owned(),
            offset: part.offset,
            text: part.text.to_owned(),
        });
        if self.bytes >= BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    /// Adds a document that is tokens already. All documents of its source are.
    fn add_tokens(&mut self, side: Side, tokens: &[u32], text: &str) -> Result<(), DataError> {
        // What only spells special tokens is ordinary tokens for good.
        if self.tokenizer.takes_special_tokens() {
            self.special_places += self.tokenizer.special_places(text);
        }
        let document: Vec<u32> = self.tokenizer.document(tokens).collect();
        let writer = self.writer(side);
        writer.extend(&document)?;
        writer.end_document(text.len() as u64)
    }

    /// Encodes and writes what waits.
    fn write(&mut self) -> Result<(), DataError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.bytes = 0;
        let texts: Vec<&str> = waiting
            .iter()
            .map(|waiting| waiting.text.as_str())
            .collect();
        let encoded = self.tokenizer.encode_batch(&texts).map_err(|error| {
            error.in_document(|index| (waiting[index].document.clone(), waiting[index].offset))
        })?;
        for (Waiting { side, text, .. }, tokens) in waiting.iter().zip(encoded) {
            let document: Vec<u32> = self.tokenizer.document(&tokens).collect();
            let writer = self.writer(*side);
            writer.extend(&document)?;
            writer.end_document(text.len() as u64)?;
        }
        Ok(())
    }

    /// Encodes and writes a part whose tokens would need too much memory at once.
    fn write_long(&mut self, part: Part) -> Result<(), DataError> {
        let Part {
            side,
            document,
            offset,
            text,
        } = part;
        let tokenizer = self.tokenizer;
        let writer = self.writer(side);
        writer.extend(tokenizer.bos_ids())?;
        tokenizer
            .encode_parts(text, |ids| writer.extend(ids))
            .map_err(|error| match error {
                DataError::Tokenizer(error) => {
                    error.in_document(|_| (document.to_owned(), offset)).into()
                }
                other => other,
            })?;
        writer.extend(&[tokenizer.eos_id()])?;
        writer.end_document(text.len() as u64)
    }

    fn writer(&mut self, side: Side) -> &mut SetWriter {
        match side {
            Side::Training => &mut self.training,
            Side::Validation => &mut self.validation,
        }
    }
}
