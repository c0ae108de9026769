//! Streaming decoding.

use std::iter::repeat_n;
use std::ops::Deref;

use super::Tokenizer;
use super::spelling::Spelling;

/// Replaces bytes that are not valid UTF-8.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Of a text, so many of the last tokens can have to do with what follows: a character has at most four bytes, and tokens that
/// are not shown may stand between them.
const CONTEXT: usize = 16;

/// Decodes tokens one at a time, and returns only whole characters. A token takes the same time wherever it stands.
///
/// Bytes that do not become a character are U+FFFD as in [`Tokenizer::decode`]. One thing differs, with `<0xE7>`-like tokens
/// alone: there, `decode` makes U+FFFD of a whole run of bytes, characters that precede the wrong byte included; here, they are
/// shown already.
#[derive(Debug, Clone)]
pub struct StreamDecoder<T> {
    tokenizer: T,
    special_tokens: bool,
    /// Bytes of a character that is not complete.
    pending: Vec<u8>,
    /// The last token that is shown: context, because decoders treat the start of a text specially.
    last: Option<u32>,
}

impl<T: Deref<Target = Tokenizer>> StreamDecoder<T> {
    /// A decoder at the start of a text, which shows special tokens or omits them.
    pub fn new(tokenizer: T, special_tokens: bool) -> Self {
        Self {
            tokenizer,
            special_tokens,
            pending: Vec::new(),
            last: None,
        }
    }

    /// A decoder of what follows some tokens, which themselves are not returned. A character that they begin is, when it is
    /// complete.
    #[must_use]
    pub fn after(mut self, tokens: &[u32]) -> Self {
        for &id in &tokens[tokens.len().saturating_sub(CONTEXT)..] {
            self.push(id);
        }
        self
    }

    /// Adds a token; returns the text that it completes, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let token = self.tokenizer.inner.id_to_token(id)?;
        if !self.special_tokens && self.tokenizer.is_special(&token) {
            return None;
        }
        let text = match self.tokenizer.spelling.bytes(&token) {
            Some(bytes) => {
                self.pending.extend(bytes);
                self.complete()
            }
            None => {
                let mut text = self.flush();
                text.push_str(&self.in_context(id));
                text
            }
        };
        self.last = Some(id);
        (!text.is_empty()).then_some(text)
    }

    /// The remaining text, an incomplete character as U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.flush();
        (!text.is_empty()).then_some(text)
    }

    /// The text of a token of whole characters.
    fn in_context(&self, id: u32) -> String {
        let decode = |ids: &[u32]| self.tokenizer.decode_with(ids, self.special_tokens);
        let Some(last) = self.last else {
            return decode(&[id]);
        };
        let both = decode(&[last, id]);
        let shown = decode(&[last]).len();
        both.get(shown..).unwrap_or_default().to_owned()
    }

    /// What is complete of the pending bytes, and what can never be.
    fn complete(&mut self) -> String {
        let last = self.pending.utf8_chunks().last();
        let unfinished = last.map_or(0, |chunk| match std::str::from_utf8(chunk.invalid()) {
            Err(error) if error.error_len().is_none() => chunk.invalid().len(),
            _ => 0,
        });
        let rest = self.pending.split_off(self.pending.len() - unfinished);
        let text = self.flush();
        self.pending = rest;
        text
    }

    /// All of the pending bytes.
    fn flush(&mut self) -> String {
        let mut text = String::new();
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            let replaced = match self.tokenizer.spelling {
                Spelling::ByteFallback => chunk.invalid().len(),
                _ => chunk.invalid().len().min(1),
            };
            text.extend(repeat_n(REPLACEMENT, replaced));
        }
        self.pending.clear();
        text
    }
}
