//! Streaming decoding.

use super::Tokenizer;

/// Replaces bytes that are not valid UTF-8 (yet).
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Maximum number of replacement characters for one incomplete character: byte-level decoders write one
/// for all its bytes, byte-fallback decoders write one for each of at most three bytes.
const UNFINISHED: usize = 3;

/// Decodes tokens one at a time, and returns only whole characters.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The newest ids. The text of the first is already returned: it is context, because decoders treat the
    /// start of a text specially.
    ids: Vec<u32>,
    /// Number of bytes of the text of `ids` that were already returned.
    shown: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            ids: Vec::new(),
            shown: 0,
        }
    }

    /// Adds a token; returns the text that it completes, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids);
        let mut end = text.len();
        for _ in 0..UNFINISHED {
            if text[..end].ends_with(REPLACEMENT) {
                end -= REPLACEMENT.len_utf8();
            }
        }
        let new = text.get(self.shown..end).unwrap_or_default().to_owned();
        self.shown = self.shown.max(end);
        if end == text.len() && self.ids.len() > 1 {
            // No character is incomplete: one token of context is enough from here on.
            self.ids = vec![id];
            self.shown = self.tokenizer.decode(&self.ids).len();
        }
        (!new.is_empty()).then_some(new)
    }

    /// The remaining text: incomplete characters, as U+FFFD.
    pub fn finish(self) -> Option<String> {
        let text = self.tokenizer.decode(&self.ids);
        text.get(self.shown..)
            .filter(|rest| !rest.is_empty())
            .map(str::to_owned)
    }
}
