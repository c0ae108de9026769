//! Packs validation text into sequences. Training and evaluation both use this, so that the same text
//! gives the same loss in both.
//!
//! Documents are concatenated, each followed by EOS and preceded by the tokenizer's BOS ids, if it has any.
//! The stream is cut into windows of `context` inputs whose targets are the next tokens; the last target of
//! a window is the first input of the next window, so every token but the very first is predicted exactly
//! once. A BOS token is predicted from the end of the previous document, like any other token, and counts
//! no bytes.

use std::path::PathBuf;

use firebox_console::advice::{Advice, Advise};

use crate::documents::{Document, TextError, documents};
use crate::{Tokenizer, TokenizerError};

/// Documents are encoded in batches of about this many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// Why text cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackingError {
    /// A document cannot be read.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A document cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// There is nothing to predict.
    #[error("there is no text to evaluate in {files}")]
    Empty {
        /// The files.
        files: String,
    },
}

impl Advise for PackingError {
    fn advice(&self) -> Advice {
        match self {
            Self::Text(error) => error.advice(),
            Self::Tokenizer(error) => error.advice(),
            Self::Empty { .. } => Advice::USAGE,
        }
    }
}

/// A stream of tokens and the number of bytes of its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedText {
    tokens: Vec<u32>,
    bytes: u64,
    special_places: u64,
}

impl PackedText {
    /// Reads and encodes files (see [`documents`]), up to `limit` targets.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or encoded, or all of them are empty.
    pub fn read(
        tokenizer: &Tokenizer,
        files: &[PathBuf],
        field: &str,
        limit: Option<u64>,
    ) -> Result<Self, PackingError> {
        let mut packer = Packer::new(tokenizer, limit);
        let mut pending: Vec<Document> = Vec::new();
        for file in files {
            for document in documents(file, field)? {
                let document = document?;
                // Training has none of these either.
                if document.text.is_empty() {
                    continue;
                }
                pending.push(document);
                if pending
                    .iter()
                    .map(|document| document.text.len())
                    .sum::<usize>()
                    >= BATCH_BYTES
                {
                    packer.encode(&std::mem::take(&mut pending))?;
                }
                if packer.is_full() {
                    return Ok(packer.finish());
                }
            }
        }
        packer.encode(&pending)?;
        let packed = packer.finish();
        let around: Vec<u32> = tokenizer.document(&[]).collect();
        let no_text = packed.tokens.iter().all(|id| around.contains(id));
        if no_text || packed.bytes() == 0 {
            let names: Vec<String> = files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            return Err(PackingError::Empty {
                files: names.join(", "),
            });
        }
        Ok(packed)
    }

    /// The whole stream.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of predicted tokens.
    pub fn targets(&self) -> u64 {
        self.tokens.len().saturating_sub(1) as u64
    }

    /// Number of UTF-8 bytes of the targets; BOS and EOS count no bytes.
    ///
    /// Bits per byte = nats / ln 2 · targets / bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of places that spell special tokens in the documents that were read (see
    /// [`Tokenizer::special_places`]); 0 if tokens were packed.
    pub fn special_places(&self) -> u64 {
        self.special_places
    }

    /// The windows, in order; see [`windows`].
    pub fn windows(&self, context: usize) -> impl ExactSizeIterator<Item = &[u32]> {
        windows(&self.tokens, context)
    }
}

/// Builds a [`PackedText`] document by document.
#[derive(Debug)]
pub struct Packer<'a> {
    tokenizer: &'a Tokenizer,
    /// Maximum length of the stream: one more than the targets.
    capacity: usize,
    packed: PackedText,
}

impl<'a> Packer<'a> {
    /// Packs up to `limit` targets.
    pub fn new(tokenizer: &'a Tokenizer, limit: Option<u64>) -> Self {
        let capacity = limit.map_or(usize::MAX, |limit| {
            usize::try_from(limit)
                .unwrap_or(usize::MAX)
                .saturating_add(1)
        });
        Self {
            tokenizer,
            capacity,
            packed: PackedText {
                tokens: Vec::new(),
                bytes: 0,
                special_places: 0,
            },
        }
    }

    /// Whether the limit is reached, so that further documents are ignored.
    pub fn is_full(&self) -> bool {
        self.packed.tokens.len() >= self.capacity
    }

    /// Adds a document of `bytes` bytes, given the tokens of its text (BOS and EOS are added here).
    ///
    /// A document that fits counts all its bytes, even if the tokenizer adds or drops spaces; a truncated
    /// document counts the bytes of its tokens.
    pub fn push(&mut self, tokens: &[u32], bytes: u64) {
        if self.is_full() {
            return;
        }
        let PackedText {
            tokens: stream,
            bytes: total,
            ..
        } = &mut self.packed;
        let bos_count = self.tokenizer.bos_ids().len();
        let bytes_of = |count: usize| self.tokenizer.bytes_of(&tokens[..count]).min(bytes);
        // The first token of the stream is not a target.
        let first_bytes = if stream.is_empty() && bos_count == 0 {
            bytes_of(tokens.len().min(1))
        } else {
            0
        };
        let remaining = self.capacity - stream.len();
        let kept = tokens.len().min(remaining.saturating_sub(bos_count));
        let kept_bytes = if kept == tokens.len() {
            bytes
        } else {
            bytes_of(kept)
        };
        *total += kept_bytes - first_bytes;
        stream.extend(self.tokenizer.document(tokens).take(remaining));
    }

    /// The packed text.
    pub fn finish(self) -> PackedText {
        self.packed
    }

    fn encode(&mut self, documents: &[Document]) -> Result<(), TokenizerError> {
        let texts: Vec<&str> = documents
            .iter()
            .map(|document| document.text.as_str())
            .collect();
        let encoded = self
            .tokenizer
            .encode_batch(&texts)
            .map_err(|error| error.in_document(|index| (documents[index].name.clone(), 0)))?;
        for (text, tokens) in texts.iter().zip(encoded) {
            self.packed.special_places += self.tokenizer.special_places(text);
            self.push(&tokens, text.len() as u64);
        }
        Ok(())
    }
}

/// Cuts a stream into windows of `context + 1` tokens: `context` inputs and the last target, which is the first token of
/// the next window. The last window may be shorter.
pub fn windows(tokens: &[u32], context: usize) -> impl ExactSizeIterator<Item = &[u32]> {
    let context = context.max(1);
    let count = tokens.len().saturating_sub(1).div_ceil(context);
    (0..count).map(move |index| {
        let start = index * context;
        &tokens[start..tokens.len().min(start + context + 1)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::TEXT_FIELD;
    use crate::tokenizer::tests::{TEMPLATE_BEGIN, with_post_processor};
    use proptest::prelude::*;
    use std::fs;

    fn pack(texts: &[&str], limit: Option<u64>) -> PackedText {
        let tokenizer = Tokenizer::bytes();
        let mut packer = Packer::new(&tokenizer, limit);
        for text in texts {
            packer.push(&tokenizer.encode(text).unwrap(), text.len() as u64);
        }
        packer.finish()
    }

    #[test]
    fn eos_follows_each_document_and_the_first_token_is_not_a_target() {
        let packed = pack(&["ab", "c"], None);
        assert_eq!(packed.tokens, [97, 98, 256, 99, 256]);
        assert_eq!(packed.targets(), 4);
        assert_eq!(packed.bytes(), 2);
        let windows: Vec<_> = packed.windows(3).collect();
        assert_eq!(windows, [&[97, 98, 256, 99][..], &[99, 256]]);
    }

    #[test]
    fn a_file_of_json_lines_and_plain_files_give_the_same_stream() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.jsonl"), "{\"text\": \"é\"}\n{\"text\": \"b\\n\"}\n").unwrap();
        fs::write(path("1.txt"), "é").unwrap();
        fs::write(path("2.txt"), "b\n").unwrap();
        let tokenizer = Tokenizer::bytes();
        let lines = PackedText::read(&tokenizer, &[path("a.jsonl")], TEXT_FIELD, None).unwrap();
        let files = PackedText::read(
            &tokenizer,
            &[path("1.txt"), path("2.txt")],
            TEXT_FIELD,
            None,
        )
        .unwrap();
        assert_eq!(lines, files);
        assert_eq!(lines, pack(&["é", "b\n"], None));

        fs::write(path("empty.txt"), "").unwrap();
        let error =
            PackedText::read(&tokenizer, &[path("empty.txt")], TEXT_FIELD, None).unwrap_err();
        assert!(matches!(error, PackingError::Empty { .. }));
        let template = serde_json::from_str(TEMPLATE_BEGIN).unwrap();
        let begins = with_post_processor(&["<s>"], &template, "<|endoftext|>");
        let error = PackedText::read(&begins, &[path("empty.txt")], TEXT_FIELD, None).unwrap_err();
        assert!(matches!(error, PackingError::Empty { .. }));
    }

    proptest! {
        #[test]
        fn bytes_and_targets_are_those_of_the_windows(
            texts in prop::collection::vec("[a-zé€]{0,12}", 0..6),
            limit in prop::option::of(0u64..60),
            context in 1usize..9,
            begins: bool,
        ) {
            let template = serde_json::from_str(TEMPLATE_BEGIN).unwrap();
            let tokenizer = if begins { with_post_processor(&["<s>"], &template, "<|endoftext|>") } else { Tokenizer::bytes() };
            let mut packer = Packer::new(&tokenizer, limit);
            let mut all = Vec::new();
            for text in &texts {
                let tokens = tokenizer.encode(text).unwrap();
                packer.push(&tokens, text.len() as u64);
                all.extend(begins.then_some(257).into_iter().chain(tokens).chain([256]));
            }
            let packed = packer.finish();
            all.truncate(limit.map_or(usize::MAX, |limit| limit as usize + 1));
            prop_assert_eq!(&packed.tokens, &all);
            let mut targets = Vec::new();
            let mut inputs = Vec::new();
            for window in packed.windows(context) {
                prop_assert!((2..=context + 1).contains(&window.len()));
                prop_assert!(window.len() == context + 1 || inputs.len() + window.len() == all.len());
                targets.extend_from_slice(&window[1..]);
                inputs.extend_from_slice(&window[..window.len() - 1]);
            }
            prop_assert_eq!(packed.targets(), targets.len() as u64);
            prop_assert_eq!(packed.bytes(), targets.iter().filter(|&&id| id < 256).count() as u64);
            prop_assert_eq!(&targets[..], all.get(1..).unwrap_or_default());
            prop_assert_eq!(&inputs[..], &all[..targets.len()]);
        }
    }
}
