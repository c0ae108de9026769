//! Text to token ids and back: byte-level tokenizers of our own, and any Hugging Face
//! `tokenizer.json`.
//!
//! A thin wrapper over the `tokenizers` crate. What it adds: the tokens that begin and end a
//! document are known, text can never produce them, and the UTF-8 bytes behind a sequence of tokens
//! can be counted (for bits per byte). What was read is written back byte for byte. [`documents`](crate::documents) reads
//! text from files and [`packing`](crate::packing) lays it out as sequences for evaluation.

mod beginning;
mod byte_level;
mod error;
mod folder;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use firebox_console::durable::{self, FileError};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper};

use folder::Companions;

pub use error::TokenizerError;
pub use stream::StreamDecoder;

/// The token that ends a document in the tokenizers that are made here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Name of the tokenizer's file in a checkpoint folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

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
    /// The text of the `tokenizer.json`. `inner` is another: see [`new`](Self::new).
    json: Arc<str>,
    companions: Companions,
    vocabulary: usize,
    beginning: Vec<u32>,
    /// The first ends a document.
    stops: Vec<u32>,
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
        parse(&byte_level::identity_json())
            .and_then(Self::made_here)
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
        Self::made_here(inner)
    }

    /// Reads a `tokenizer.json` and what stands beside it for [`save_to`](Self::save_to);
    /// `end_of_text` is the token that ends a document, as text.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no tokenizer, or has no such token.
    pub fn from_file(path: &Path, end_of_text: &str) -> Result<Self, TokenizerError> {
        let read = Self::from_bytes(&read(path)?, end_of_text).map_err(|error| error.at(path))?;
        read.with_companions_of(path)
    }

    /// The same from the bytes of a `tokenizer.json`, which stands alone.
    ///
    /// # Errors
    ///
    /// When they are no tokenizer, or it has no such token.
    pub fn from_bytes(json: &[u8], end_of_text: &str) -> Result<Self, TokenizerError> {
        let json = utf8(json)?;
        let inner = parse(json)?;
        let end_of_text = id_of(&inner, end_of_text)?;
        Self::new(inner, Some(json), end_of_text)
    }

    /// Reads the `tokenizer.json` of a checkpoint; `end_of_text` is `eos_token_id` of its
    /// `config.json`, which may be several ids: the first ends a document, and text that is
    /// generated ends at each. Without one, a customary token such as [`END_OF_TEXT`] is looked for.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no tokenizer, or has no such token.
    pub fn load(path: &Path, end_of_text: &[u32]) -> Result<Self, TokenizerError> {
        let bytes = read(path)?;
        let loaded = || {
            let json = utf8(&bytes)?;
            let inner = parse(json)?;
            let first = match end_of_text {
                [id, ..] if inner.id_to_token(*id).is_none() => {
                    return Err(TokenizerError::UnknownId {
                        path: path.to_owned(),
                        id: *id,
                    });
                }
                [id, ..] => *id,
                [] => CUSTOMARY_END_OF_TEXT
                    .into_iter()
                    .find_map(|token| inner.token_to_id(token))
                    .ok_or_else(|| TokenizerError::NoCustomaryEnd {
                        path: path.to_owned(),
                    })?,
            };
            Self::new(inner, Some(json), first)
        };
        let mut tokenizer = loaded().map_err(|error| error.at(path))?;
        // A model may have ids for which its tokenizer has no token. It can end a text with them
        // all the same.
        for id in end_of_text {
            if !tokenizer.stops.contains(id) {
                tokenizer.stops.push(*id);
            }
        }
        tokenizer.with_companions_of(path)
    }

    fn made_here(inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let end_of_text = id_of(&inner, END_OF_TEXT)?;
        Self::new(inner, None, end_of_text)
    }

    /// `json` is the text that `inner` was read from, where it was: what is done to `inner` here is
    /// for our own use of it and must not be written.
    fn new(
        mut inner: tokenizers::Tokenizer,
        json: Option<&str>,
        end_of_text: u32,
    ) -> Result<Self, TokenizerError> {
        let message = |error: tokenizers::Error| TokenizerError::Parse {
            path: None,
            message: error.to_string(),
        };
        // A file may ask for both; a training text must be neither cut nor filled up.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(message)?;

        let beginning = beginning::beginning(&inner).map_err(message)?;
        // Only special tokens are kept from being matched in text and left out of what is decoded.
        for &id in beginning.iter().chain([&end_of_text]) {
            let token = inner
                .id_to_token(id)
                .ok_or(TokenizerError::UnknownBeginning { path: None, id })?;
            inner.add_special_tokens(&[AddedToken::from(token, true)]);
        }
        inner.set_encode_special_tokens(true);

        let json = json.map_or_else(
            || {
                inner
                    .to_string(true)
                    .expect("what was made from JSON can be written as JSON")
            },
            str::to_owned,
        );
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        let vocabulary = largest as usize + 1;
        Ok(Self {
            json: json.into(),
            companions: Companions::default(),
            bytes: byte_counts(&inner, vocabulary),
            identity: byte_level::is_identity(&inner),
            splits_lines: byte_level::splits_lines(&inner),
            stops: vec![end_of_text],
            beginning,
            vocabulary,
            inner,
        })
    }

    fn with_companions_of(mut self, path: &Path) -> Result<Self, TokenizerError> {
        self.companions = Companions::beside(path)?;
        Ok(self)
    }

    /// Writes a `tokenizer.json`, and waits until it is on the disk.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        durable::write(path, &*self.json).map_err(TokenizerError::Write)
    }

    /// The text of a `tokenizer.json`: byte for byte the one that was read, where it was.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// Number of ids: one more than the largest.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The ids that begin a document, as the post-processor says: `<s>` for Llama and Mixtral, none
    /// for most others.
    pub fn beginning(&self) -> &[u32] {
        &self.beginning
    }

    /// The id that ends a document.
    pub fn end_of_text(&self) -> u32 {
        self.stops[0]
    }

    /// The ids at which a text that is generated ends; the first is
    /// [`end_of_text`](Self::end_of_text).
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// The ids of a document, given those of its text: what begins it, the text, end of text.
    pub fn document<'a>(&'a self, text: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let end = [self.end_of_text()];
        self.beginning.iter().chain(text).copied().chain(end)
    }

    /// The ids of a text that is to be continued: a document's without its end. There is always
    /// one: an empty text where nothing begins a document stands behind the end of another.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.beginning.clone();
        ids.extend(self.encode(text)?);
        if ids.is_empty() {
            ids.push(self.end_of_text());
        }
        Ok(ids)
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
            .field("beginning", &self.beginning)
            .field("stops", &self.stops)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    fs::read(path)
        .map_err(FileError::of("read", path))
        .map_err(TokenizerError::Read)
}

fn utf8(json: &[u8]) -> Result<&str, TokenizerError> {
    std::str::from_utf8(json).map_err(|error| TokenizerError::Parse {
        path: None,
        message: error.to_string(),
    })
}

fn parse(json: &str) -> Result<tokenizers::Tokenizer, TokenizerError> {
    json.parse()
        .map_err(|error: tokenizers::Error| TokenizerError::Parse {
            path: None,
            message: error.to_string(),
        })
}

fn id_of(inner: &tokenizers::Tokenizer, end_of_text: &str) -> Result<u32, TokenizerError> {
    inner
        .token_to_id(end_of_text)
        .ok_or_else(|| TokenizerError::NoEndOfText {
            path: None,
            token: end_of_text.to_owned(),
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
