//! Encodes text as token ids and decodes it: byte-level tokenizers made here, and any Hugging Face
//! `tokenizer.json`.
//!
//! A thin wrapper over the `tokenizers` crate. It adds BOS and EOS ids that text can never produce, and the number of
//! UTF-8 bytes of a sequence of tokens (for bits per byte). A `tokenizer.json` that was read is written back byte for
//! byte. [`documents`](crate::documents) reads text from files and [`packing`](crate::packing) packs it into sequences
//! for evaluation.

mod bos;
mod byte_level;
mod config;
mod cuts;
mod encode;
mod error;
mod fewest;
mod folder;
mod ggml;
mod special;
mod spelling;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod texts;

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use firebox_console::durable::{self, FileError};
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use cuts::Cuts;
use fewest::Reach;
use folder::Companions;
use spelling::Spelling;

pub use config::TokenizerConfig;
pub use error::TokenizerError;
pub use ggml::GgmlVocabulary;
pub use stream::StreamDecoder;
pub use texts::TokenTexts;

/// The EOS token of the tokenizers that are made here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// File name of the tokenizer in a checkpoint folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Smallest vocabulary of a byte-level tokenizer: one id per byte, and EOS.
pub const SMALLEST_VOCABULARY: usize = 257;

/// EOS tokens that [`Tokenizer::load`] tries if none is given.
const USUAL_EOS_TOKENS: [&str; 4] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"];

/// Encodes text as token ids and decodes it again.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The text of the `tokenizer.json`, from which `inner` differs: see [`new`](Self::new).
    json: Arc<str>,
    companions: Companions,
    vocab_size: usize,
    bos_ids: Vec<u32>,
    /// The first one ends a document; each of them ends generated text.
    eos_ids: Vec<u32>,
    /// Number of UTF-8 bytes of each id.
    bytes: Vec<u32>,
    /// How its decoder makes text of tokens.
    spelling: Spelling,
    /// Whether ids 0–255 are the bytes themselves and no other id occurs in text.
    identity: bool,
    /// Where texts can be cut without changing their tokens.
    cuts: Cuts,
    /// What is known of the text that tokens stand for.
    reach: Option<Reach>,
    /// Finds what spells a special token.
    special: AhoCorasick,
}

impl Tokenizer {
    /// A tokenizer with one token per byte, and [`END_OF_TEXT`] = 256.
    ///
    /// It is a byte-level byte-pair encoding without merges, so that other programs can read its
    /// `tokenizer.json`.
    pub fn bytes() -> Self {
        parse(&byte_level::identity_json())
            .and_then(Self::made_here)
            .expect("the identity tokenizer is well-formed")
    }

    /// Trains a byte-level byte-pair encoding (arXiv 1508.07909, on bytes as in GPT-2) of at most
    /// `vocab_size` ids, [`END_OF_TEXT`] included; there are fewer only if the text has too few distinct
    /// words.
    ///
    /// Text is first split as GPT-4's tokenizer does (words with their leading space, up to three
    /// digits, runs of punctuation, line ends). The result does not depend on the order of the
    /// texts.
    ///
    /// # Errors
    ///
    /// When `vocab_size` is below [`SMALLEST_VOCABULARY`], or training fails.
    pub fn train_bpe(
        texts: impl Iterator<Item = String> + Send,
        vocab_size: usize,
    ) -> Result<Self, TokenizerError> {
        if vocab_size < SMALLEST_VOCABULARY {
            return Err(TokenizerError::VocabularyTooSmall { vocab_size });
        }
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
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

    /// Reads a `tokenizer.json` and its companion files for [`save_to`](Self::save_to);
    /// `eos_token` is the token that ends a document, as text.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not a tokenizer, or has no such token.
    pub fn from_file(path: &Path, eos_token: &str) -> Result<Self, TokenizerError> {
        let read = Self::from_bytes(&read(path)?, eos_token).map_err(|error| error.at(path))?;
        read.with_companions_of(path)
    }

    /// Parses the bytes of a `tokenizer.json`, without companion files.
    ///
    /// # Errors
    ///
    /// When they are not a tokenizer, or it has no such token.
    pub fn from_bytes(json: &[u8], eos_token: &str) -> Result<Self, TokenizerError> {
        let json = utf8(json)?;
        let inner = parse(json)?;
        let eos_id = id_of(&inner, eos_token)?;
        Self::new(inner, Some(json), eos_id)
    }

    /// Reads the `tokenizer.json` of a checkpoint; `eos_ids` is `eos_token_id` of its `config.json`,
    /// which may contain several ids: the first ends a document, and each of them ends generated text.
    /// If empty, the token counts that tokenizer_config.json or special_tokens_map.json beside it name, and then usual
    /// ones such as [`END_OF_TEXT`].
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not a tokenizer, or has no such token.
    pub fn load(path: &Path, eos_ids: &[u32]) -> Result<Self, TokenizerError> {
        let bytes = read(path)?;
        let companions = Companions::beside(path)?;
        let loaded = || {
            let json = utf8(&bytes)?;
            let inner = parse(json)?;
            let first = match eos_ids {
                [id, ..] if inner.id_to_token(*id).is_none() => {
                    return Err(TokenizerError::UnknownId {
                        path: path.to_owned(),
                        id: *id,
                    });
                }
                [id, ..] => *id,
                [] => companions
                    .eos_token()
                    .iter()
                    .map(String::as_str)
                    .chain(USUAL_EOS_TOKENS)
                    .find_map(|token| inner.token_to_id(token))
                    .ok_or_else(|| TokenizerError::NoUsualEos {
                        path: path.to_owned(),
                    })?,
            };
            Self::new(inner, Some(json), first)
        };
        let mut tokenizer = loaded().map_err(|error| error.at(path))?;
        // A model may have ids for which its tokenizer has no token. They can still end generated
        // text.
        for id in eos_ids {
            if !tokenizer.eos_ids.contains(id) {
                tokenizer.eos_ids.push(*id);
            }
        }
        tokenizer.companions = companions;
        Ok(tokenizer)
    }

    fn made_here(inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let eos_id = id_of(&inner, END_OF_TEXT)?;
        Self::new(inner, None, eos_id)
    }

    /// `json` is the text that `inner` was parsed from, if any: the changes to `inner` below must not be
    /// written back.
    fn new(
        mut inner: tokenizers::Tokenizer,
        json: Option<&str>,
        eos_id: u32,
    ) -> Result<Self, TokenizerError> {
        let message = |error: tokenizers::Error| TokenizerError::Parse {
            path: None,
            message: error.to_string(),
        };
        // A file may ask for padding and truncation, but text is packed whole.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(message)?;

        let bos_ids = bos::bos_ids(&inner).map_err(message)?;
        // Only special tokens are not matched in text by default and are omitted from decoded text.
        for &id in bos_ids.iter().chain([&eos_id]) {
            let token = match inner.get_added_tokens_decoder().remove(&id) {
                Some(token) if token.special => continue,
                Some(token) => token.special(true),
                None => AddedToken::from(
                    inner
                        .id_to_token(id)
                        .ok_or(TokenizerError::UnknownBos { path: None, id })?,
                    true,
                ),
            };
            inner.add_special_tokens(&[token]);
        }
        inner.set_encode_special_tokens(true);

        let json = json.map_or_else(
            || {
                inner
                    .to_string(true)
                    .expect("a tokenizer parsed from JSON can be written as JSON")
            },
            str::to_owned,
        );
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        let vocab_size = largest as usize + 1;
        Ok(Self {
            json: json.into(),
            companions: Companions::default(),
            bytes: byte_counts(&inner, vocab_size),
            spelling: Spelling::of(inner.get_decoder()),
            identity: byte_level::is_identity(&inner),
            cuts: Cuts::of(&inner),
            reach: Reach::of(&inner),
            special: special::spelling(&inner),
            eos_ids: vec![eos_id],
            bos_ids,
            vocab_size,
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

    /// The text of the `tokenizer.json`: byte for byte the one that was read, if any.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// Size of the vocabulary: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The largest id that a document can have, plus one. Special tokens that no text becomes, such as one for padding,
    /// may have ids beyond it.
    pub fn document_vocab_size(&self) -> usize {
        if self.takes_special_tokens() {
            return self.vocab_size;
        }
        let added = self.inner.get_added_tokens_decoder();
        let is_text = |id: &u32| added.get(id).is_none_or(|token| !token.special);
        let text = self.inner.get_vocab(true).into_values().filter(is_text);
        let ends = self.bos_ids.iter().copied().chain([self.eos_id()]);
        text.chain(ends)
            .max()
            .map_or(0, |largest| largest as usize + 1)
    }

    /// The ids that begin a document, as the post-processor adds them: `<s>` for Llama and Mixtral, none
    /// for most others.
    pub fn bos_ids(&self) -> &[u32] {
        &self.bos_ids
    }

    /// The id that ends a document.
    pub fn eos_id(&self) -> u32 {
        self.eos_ids[0]
    }

    /// The ids that end generated text; the first is [`eos_id`](Self::eos_id).
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The ids of a document, given those of its text: BOS, text, EOS.
    pub fn document<'a>(&'a self, text: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let end = [self.eos_id()];
        self.bos_ids.iter().chain(text).copied().chain(end)
    }

    /// The ids of a text to continue: BOS and text. They are never empty: if the text is empty and there
    /// are no BOS ids, the prompt is the EOS id, which precedes the next document in training.
    ///
    /// # Errors
    ///
    /// When the text cannot be encoded; see [`encode`](Self::encode).
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.bos_ids.clone();
        ids.extend(self.encode(text)?);
        if ids.is_empty() {
            ids.push(self.eos_id());
        }
        Ok(ids)
    }

    /// The token of [`eos_id`](Self::eos_id), such as [`END_OF_TEXT`].
    pub fn eos_token(&self) -> String {
        self.inner
            .id_to_token(self.eos_id())
            .expect("the constructor looked the token up")
    }

    /// Text of token ids. Special tokens and ids that are not in the vocabulary are omitted; invalid
    /// UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    /// The same as [`decode`](Self::decode); with `special_tokens`, they are shown.
    pub fn decode_with(&self, ids: &[u32], special_tokens: bool) -> String {
        self.inner.decode(ids, !special_tokens).unwrap_or_else(|_| {
            // The decoder does not accept these tokens: show their own text.
            ids.iter()
                .filter_map(|&id| self.inner.id_to_token(id))
                .collect()
        })
    }

    /// Number of UTF-8 bytes of the ids; EOS and other special tokens have none.
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

    /// The first id that is not the same token in another tokenizer, with the tokens of both; `None` where all are.
    pub fn first_difference(&self, other: &Self) -> Option<(u32, [Option<String>; 2])> {
        let ids = self.vocab_size.max(other.vocab_size) as u32;
        (0..ids).find_map(|id| {
            let tokens = [self, other].map(|tokenizer| tokenizer.inner.id_to_token(id));
            (tokens[0] != tokens[1]).then_some((id, tokens))
        })
    }

    /// A decoder that takes one token after the other, for streaming.
    pub fn stream(&self) -> StreamDecoder<&Self> {
        StreamDecoder::new(self, false)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("bos_ids", &self.bos_ids)
            .field("eos_ids", &self.eos_ids)
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

fn id_of(inner: &tokenizers::Tokenizer, token: &str) -> Result<u32, TokenizerError> {
    inner
        .token_to_id(token)
        .ok_or_else(|| TokenizerError::NoEosToken {
            path: None,
            token: token.to_owned(),
        })
}

/// Number of UTF-8 bytes of every id's text.
fn byte_counts(inner: &tokenizers::Tokenizer, vocab_size: usize) -> Vec<u32> {
    let added = inner.get_added_tokens_decoder();
    let spelling = Spelling::of(inner.get_decoder());
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
        spelling.all_bytes(&token).len()
    };
    (0..vocab_size as u32).map(|id| bytes(id) as u32).collect()
}
