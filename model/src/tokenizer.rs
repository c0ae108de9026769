//! Text to token ids and back: byte-level tokenizers of our own, and any Hugging Face
//! `tokenizer.json`.
//!
//! A thin wrapper over the `tokenizers` crate. What it adds: the end-of-text token is known, text
//! can never produce it, and the UTF-8 bytes behind a sequence of tokens can be counted (for bits
//! per byte). [`text`] reads documents from files and [`packing`] lays them out as sequences for
//! evaluation.

mod byte_level;
mod error;
pub mod packing;
mod stream;
#[cfg(test)]
mod tests;
pub mod text;

use std::fmt;
use std::fs;
use std::path::Path;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper};

pub use error::TokenizerError;
pub use stream::StreamDecoder;

/// The token that ends a document in the tokenizers that are made here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Fewest ids of a byte-level tokenizer: one a byte, and end of text.
pub const SMALLEST_VOCABULARY: usize = 257;

/// End-of-text tokens that [`Tokenizer::load`] looks for when nobody names one.
const CUSTOMARY_END_OF_TEXT: [&str; 4] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"];

/// Longer texts are encoded in parallel pieces of about this many bytes, where that changes
/// nothing.
const PIECE: usize = 128 << 10;

/// Encodes text as token ids and decodes it again.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary: usize,
    end_of_text: u32,
    /// UTF-8 bytes that each id stands for.
    bytes: Vec<u32>,
    /// Ids 0–255 are the bytes themselves and nothing else occurs in text.
    identity: bool,
    /// The pre-tokenizer always splits between a line feed and a character that is no white space.
    splits_lines: bool,
}

impl Tokenizer {
    /// One token a byte, and [`END_OF_TEXT`] = 256.
    ///
    /// It is a byte-level byte-pair encoding without merges, so that its `tokenizer.json` is an
    /// ordinary one.
    pub fn bytes() -> Self {
        Self::from_bytes(byte_level::identity_json().as_bytes(), END_OF_TEXT)
            .expect("the identity tokenizer is well-formed")
    }

    /// Trains a byte-level byte-pair encoding (arXiv 1508.07909, on bytes as in GPT-2) of at most
    /// `vocabulary` ids, [`END_OF_TEXT`] included; fewer come out only of text with too few
    /// distinct words.
    ///
    /// Text is first split as GPT-4's tokenizer does (words with their leading space, up to three
    /// digits, runs of punctuation, line ends). The same texts give the same tokenizer, in whatever
    /// order they come.
    ///
    /// # Errors
    ///
    /// When `vocabulary` is below [`SMALLEST_VOCABULARY`].
    pub fn train_bpe(
        texts: impl Iterator<Item = String> + Send,
        vocabulary: usize,
    ) -> Result<Self, TokenizerError> {
        if vocabulary < SMALLEST_VOCABULARY {
            return Err(TokenizerError::VocabularyTooSmall { vocabulary });
        }
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocabulary)
            .min_frequency(2)
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut inner: tokenizers::Tokenizer = byte_level::splitting_json()
            .parse()
            .expect("the template is well-formed");
        inner
            .train(&mut TrainerWrapper::BpeTrainer(trainer), texts)
            .map_err(|error| TokenizerError::Train {
                message: error.to_string(),
            })?;
        Self::new(inner, END_OF_TEXT)
    }

    /// Reads a `tokenizer.json`; `end_of_text` is the token that ends a document, as text.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no tokenizer, or has no such token.
    pub fn from_file(path: &Path, end_of_text: &str) -> Result<Self, TokenizerError> {
        Self::from_bytes(&read(path)?, end_of_text).map_err(|error| error.at(path))
    }

    /// The same from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// When they are no tokenizer, or it has no such token.
    pub fn from_bytes(json: &[u8], end_of_text: &str) -> Result<Self, TokenizerError> {
        Self::new(parse(json)?, end_of_text)
    }

    /// Reads the `tokenizer.json` of a checkpoint; `end_of_text` is `eos_token_id` of its
    /// `config.json`. Without one, a customary token such as [`END_OF_TEXT`] is looked for.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no tokenizer, or has no such token.
    pub fn load(path: &Path, end_of_text: Option<u32>) -> Result<Self, TokenizerError> {
        let inner = parse(&read(path)?).map_err(|error| error.at(path))?;
        let token = match end_of_text {
            Some(id) => inner
                .id_to_token(id)
                .ok_or_else(|| TokenizerError::UnknownId {
                    path: path.to_owned(),
                    id,
                })?,
            None => CUSTOMARY_END_OF_TEXT
                .into_iter()
                .find(|token| inner.token_to_id(token).is_some())
                .ok_or_else(|| TokenizerError::NoCustomaryEnd {
                    path: path.to_owned(),
                })?
                .to_owned(),
        };
        Self::new(inner, &token).map_err(|error| error.at(path))
    }

    fn new(mut inner: tokenizers::Tokenizer, end_of_text: &str) -> Result<Self, TokenizerError> {
        let Some(end_of_text_id) = inner.token_to_id(end_of_text) else {
            return Err(TokenizerError::NoEndOfText {
                path: None,
                token: end_of_text.to_owned(),
            });
        };
        // Only special tokens are kept from being matched in text and left out of what is decoded.
        inner.add_special_tokens(&[AddedToken::from(end_of_text, true)]);
        inner.set_encode_special_tokens(true);
        // A file may ask for both; a training text must be neither cut nor filled up.
        inner.with_padding(None);
        let message = |error: tokenizers::Error| TokenizerError::Parse {
            path: None,
            message: error.to_string(),
        };
        inner.with_truncation(None).map_err(message)?;

        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        let vocabulary = largest as usize + 1;
        Ok(Self {
            bytes: byte_counts(&inner, vocabulary),
            identity: byte_level::is_identity(&inner),
            splits_lines: byte_level::splits_lines(&inner),
            end_of_text: end_of_text_id,
            vocabulary,
            inner,
        })
    }

    /// Writes a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        fs::write(path, self.to_json()).map_err(|source| TokenizerError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// The text of a `tokenizer.json`.
    pub fn to_json(&self) -> String {
        self.inner
            .to_string(true)
            .expect("what was read or made from JSON can be written as JSON")
    }

    /// Number of ids: one more than the largest.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The id that ends a document.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// The same as the text of the token, such as [`END_OF_TEXT`].
    pub fn end_of_text_token(&self) -> String {
        self.inner
            .id_to_token(self.end_of_text())
            .expect("a token was found for it")
    }

    /// Token ids of a text. No special token is added, and none is found in the text: the
    /// characters of [`END_OF_TEXT`] are encoded like any others.
    ///
    /// # Errors
    ///
    /// When the tokenizer has no token for a part of the text; the byte-level ones have one for
    /// every text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.encode_batch(&[text])?.pop().unwrap_or_default())
    }

    /// Token ids of several texts, on all cores.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        if self.identity {
            return Ok(texts
                .iter()
                .map(|text| text.bytes().map(u32::from).collect())
                .collect());
        }
        let mut pieces = Vec::with_capacity(texts.len());
        let mut counts = Vec::with_capacity(texts.len());
        for text in texts {
            let before = pieces.len();
            if self.splits_lines {
                pieces.extend(byte_level::pieces(text, PIECE));
            } else {
                pieces.push(*text);
            }
            counts.push(pieces.len() - before);
        }
        let encodings = self
            .inner
            .encode_batch_fast(pieces, false)
            .map_err(|error| TokenizerError::Encode {
                message: error.to_string(),
            })?;
        let mut encodings = encodings.into_iter();
        let join = |count: &usize| {
            encodings
                .by_ref()
                .take(*count)
                .flat_map(|e| e.get_ids().to_vec())
                .collect()
        };
        Ok(counts.iter().map(join).collect())
    }

    /// Text of token ids, special tokens left out; what is not UTF-8 becomes U+FFFD, and ids beyond
    /// the vocabulary stand for nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_else(|_| {
            // A decoder that does not accept these tokens: their own text is the best that can be
            // shown.
            ids.iter()
                .filter_map(|&id| self.inner.id_to_token(id))
                .collect()
        })
    }

    /// UTF-8 bytes that the ids stand for; end of text and other special tokens count nothing.
    ///
    /// Exact for byte-level tokenizers. Others may add or drop a space at the start of a text.
    pub fn bytes_of(&self, ids: &[u32]) -> u64 {
        ids.iter()
            .map(|&id| {
                self.bytes
                    .get(id as usize)
                    .map_or(0, |&bytes| u64::from(bytes))
            })
            .sum()
    }

    /// Decodes one token after the other, for text that is shown while it is generated.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocabulary", &self.vocabulary)
            .field("end_of_text", &self.end_of_text)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    fs::read(path).map_err(|source| TokenizerError::Read {
        path: path.to_owned(),
        source,
    })
}

fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    tokenizers::Tokenizer::from_bytes(json).map_err(|error| TokenizerError::Parse {
        path: None,
        message: error.to_string(),
    })
}

/// UTF-8 bytes of every id's text.
fn byte_counts(inner: &tokenizers::Tokenizer, vocabulary: usize) -> Vec<u32> {
    let added = inner.get_added_tokens_decoder();
    let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
    let bytes = |id: u32| {
        if let Some(token) = added.get(&id) {
            return if token.special {
                0
            } else {
                token.content.len()
            };
        }
        let Some(token) = inner.id_to_token(id) else {
            return 0;
        };
        if byte_level {
            // One character a byte.
            return token.chars().count();
        }
        if token.len() == 6 && token.starts_with("<0x") && token.ends_with('>') {
            // SentencePiece's fallback for a byte without a token.
            return 1;
        }
        // SentencePiece writes a space as U+2581.
        token
            .chars()
            .map(|c| if c == '\u{2581}' { 1 } else { c.len_utf8() })
            .sum()
    };
    (0..vocabulary as u32).map(|id| bytes(id) as u32).collect()
}
