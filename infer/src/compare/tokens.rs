//! The tokens that every device runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use firebox_checkpoint::CheckpointConfig;
use firebox_console::durable::FileError;
use firebox_model::batch::Sequence;
use firebox_model::config::ModelConfig;
use firebox_model::vision::Picture;
use firebox_text::packing::{PackedText, Packer, windows};
use serde::{Deserialize, Serialize};

use super::Options;
use crate::InferError;
use crate::engine::warn_of_special_places;
use crate::gguf::open_tokenizer;
use crate::pictures::PictureReader;

/// The built-in sample text: prose, verse and code in several alphabets, in the public domain or written for this.
const PAGE: &str = include_str!("page.txt");
/// Maximum sequence length in tokens, so that there are several sequences.
const SEQUENCE: usize = 128;

/// Full sequences without padding, and the size and source of their text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// The inputs of all sequences one after the other, and the target of the last.
    stream: Vec<u32>,
    /// Sequence length in tokens.
    sequence: usize,
    /// UTF-8 bytes of the predicted tokens; `None` if the tokens do not come from text.
    bytes: Option<u64>,
    /// Where the tokens come from, for display.
    source: String,
    /// The pictures that all tokens see.
    images: Vec<PathBuf>,
}

impl Tokens {
    /// Up to [`Options::tokens`] tokens of the text of the options, by default of the built-in sample text; synthetic token
    /// ids if the checkpoint, whose config.json is `config`, has no tokenizer.
    ///
    /// # Errors
    ///
    /// When the tokenizer or the text cannot be read, a text was given and there is no tokenizer for it, or there are pictures
    /// that cannot be read or seen.
    pub fn choose(
        checkpoint: &Path,
        config: &CheckpointConfig,
        options: &Options,
    ) -> Result<Self, InferError> {
        let (text, limit) = (options.text.as_ref(), options.tokens);
        read_pictures(checkpoint, &config.model, &options.images)?;
        let images = options.images.iter();
        let images: io::Result<Vec<PathBuf>> = images.map(std::path::absolute).collect();
        let images = images.map_err(InferError::Process)?;
        let Some(tokenizer) = open_tokenizer(checkpoint, &config.eos_ids)? else {
            return match text {
                Some(_) => Err(InferError::NoTokenizer {
                    folder: checkpoint.to_owned(),
                }),
                None => Ok(Self {
                    images,
                    ..Self::synthetic(config, limit)
                }),
            };
        };
        let tokenizer = match options.special_tokens {
            true => tokenizer.with_special_tokens(),
            false => tokenizer,
        };
        let read = |limit: usize| -> Result<PackedText, InferError> {
            let limit = Some(limit as u64);
            let Some(text) = text else {
                let mut packer = Packer::new(&tokenizer, limit);
                packer.push(&tokenizer.encode(PAGE)?, PAGE.len() as u64);
                return Ok(packer.finish());
            };
            Ok(PackedText::read(
                &tokenizer,
                &text.files,
                text.field(),
                limit,
            )?)
        };
        let targets = read(limit)?.targets() as usize;
        let sequence = targets.min(SEQUENCE).min(config.model.context_length);
        // Read again, so that the bytes are those of full sequences.
        let packed = read(targets / sequence * sequence)?;
        warn_of_special_places(&tokenizer, packed.special_places());
        let beyond = packed
            .tokens()
            .iter()
            .find(|&&id| id as usize >= config.model.vocab_size);
        if let Some(&id) = beyond {
            return Err(InferError::Vocabulary {
                id,
                tokenizer: tokenizer.vocab_size(),
                model: config.model.vocab_size,
            });
        }
        let source = match text.map(|text| text.files.as_slice()) {
            None => "the built-in sample text".to_owned(),
            Some([file]) => file.display().to_string(),
            Some(files) => format!("{} files", files.len()),
        };
        Ok(Self {
            stream: packed.tokens().to_vec(),
            sequence,
            bytes: Some(packed.bytes()),
            source,
            images,
        })
    }

    /// Ids spread over the whole vocabulary, with varying neighbours.
    fn synthetic(config: &CheckpointConfig, limit: usize) -> Self {
        let vocab_size = config.model.vocab_size;
        let sequence = limit.min(SEQUENCE).min(config.model.context_length);
        let count = limit / sequence * sequence;
        Self {
            stream: (0..=count)
                .map(|index| (index * 7919 % vocab_size) as u32)
                .collect(),
            sequence,
            bytes: None,
            source: "synthetic token ids, since the checkpoint has no tokenizer".to_owned(),
            images: Vec::new(),
        }
    }

    /// The sequences, all of the same length.
    pub fn sequences(&self) -> Vec<Sequence> {
        let windows = windows(&self.stream, self.sequence);
        windows
            .map(|window| Sequence::of_window(window, self.sequence, None))
            .collect()
    }

    /// Number of input tokens, which equals the number of predicted tokens.
    pub fn count(&self) -> usize {
        self.stream.len() - 1
    }

    /// Sequence length in tokens.
    pub fn sequence(&self) -> usize {
        self.sequence
    }

    /// The target of each input token.
    pub fn targets(&self) -> &[u32] {
        &self.stream[1..]
    }

    /// The pictures that all tokens see.
    pub fn images(&self) -> &[PathBuf] {
        &self.images
    }

    /// Where the tokens come from, for display.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Converts a mean loss to bits per byte; `None` if the tokens do not come from text.
    pub fn bits_per_byte(&self, nats_per_token: f64) -> Option<f64> {
        let bits = nats_per_token * self.count() as f64 / std::f64::consts::LN_2;
        self.bytes.map(|bytes| bits / bytes.max(1) as f64)
    }

    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), InferError> {
        let json = serde_json::to_vec(self).map_err(|error| InferError::Output(error.into()))?;
        Ok(fs::write(path, json).map_err(FileError::of("write", path))?)
    }

    /// # Errors
    ///
    /// When the file cannot be read, or was not written by [`write`](Self::write).
    pub fn read(path: &Path) -> Result<Self, InferError> {
        let error = |error: std::io::Error| InferError::Read(FileError::of("read", path)(error));
        let json = fs::read(path).map_err(error)?;
        serde_json::from_slice(&json).map_err(|source| error(source.into()))
    }
}

/// Reads pictures as a model sees them.
///
/// # Errors
///
/// When there are some and the model sees none, or one cannot be read.
pub(super) fn read_pictures(
    checkpoint: &Path,
    model: &ModelConfig,
    images: &[PathBuf],
) -> Result<Vec<Picture>, InferError> {
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let reader = PictureReader::new(checkpoint, model)?;
    images.iter().map(|image| reader.open(image)).collect()
}

#[cfg(test)]
mod tests {
    use firebox_checkpoint::{Accept, read_config};
    use firebox_text::TOKENIZER_FILE;

    use super::super::tests::options;
    use super::*;
    use crate::eval::Text;
    use crate::testing::{TinyCheckpoint, tiny_config};

    /// Up to `limit` tokens of a text, or of the built-in one.
    fn choose(
        checkpoint: &TinyCheckpoint,
        text: Option<Text>,
        special_tokens: bool,
        limit: usize,
    ) -> Result<Tokens, InferError> {
        let options = Options {
            text,
            special_tokens,
            ..options(checkpoint, limit)
        };
        let config = read_config(checkpoint.path(), Accept::Nothing)?;
        Tokens::choose(checkpoint.path(), &config, &options)
    }

    #[test]
    fn the_sample_text_is_cut_into_full_sequences_with_their_bytes() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 1);
        let tokens = choose(&tiny, None, false, 70).unwrap();
        // The context is 32, and a token is a byte.
        assert_eq!(
            (tokens.count(), tokens.sequence(), tokens.bytes),
            (64, 32, Some(64))
        );
        let sequences = tokens.sequences();
        assert!(sequences.iter().all(|sequence| sequence.valid == 32));
        let first: Vec<u32> = PAGE.bytes().take(32).map(u32::from).collect();
        assert_eq!(sequences[0].tokens, first);
        assert_eq!(tokens.targets()[..31], first[1..]);
        let bits = tokens.bits_per_byte(std::f64::consts::LN_2).unwrap();
        assert!((bits - 1.0).abs() < 1e-12);
    }

    #[test]
    fn without_a_tokenizer_the_ids_are_synthetic() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 1);
        fs::remove_file(tiny.path().join(TOKENIZER_FILE)).unwrap();
        let tokens = choose(&tiny, None, false, 64).unwrap();
        assert_eq!((tokens.count(), tokens.bits_per_byte(1.0)), (64, None));
        assert!(tokens.targets().iter().all(|&id| id < 257));
        let path = tiny.path().join("tokens.json");
        tokens.write(&path).unwrap();
        assert_eq!(Tokens::read(&path).unwrap(), tokens);
        let text = Text {
            files: vec![path],
            field: None,
            max_tokens: None,
        };
        let error = choose(&tiny, Some(text), false, 64).unwrap_err();
        assert!(matches!(error, InferError::NoTokenizer { .. }), "{error}");
    }

    #[test]
    fn text_becomes_special_tokens_where_that_is_asked_for() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 1);
        let path = tiny.path().join("chat.txt");
        fs::write(&path, "ab<|endoftext|>cd").unwrap();
        let stream = |special_tokens| {
            let text = Text {
                files: vec![path.clone()],
                field: None,
                max_tokens: None,
            };
            choose(&tiny, Some(text), special_tokens, 64)
                .unwrap()
                .stream
        };
        assert_eq!(stream(true), [97, 98, 256, 99, 100, 256]);
        assert_eq!(stream(false).len(), 18);
    }
}
