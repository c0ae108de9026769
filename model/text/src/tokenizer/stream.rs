//! Decoding while tokens arrive.

use super::Tokenizer;

/// What text shows in place of bytes that are not UTF-8 (yet).
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Most replacement characters that the missing end of one character leaves: byte-level decoders
/// write one for the whole beginning, byte-fallback ones write one for each of at most three bytes.
const UNFINISHED: usize = 3;

/// Turns tokens into text as they come, and only ever whole characters.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The newest ids. The first is already shown: decoders treat the start of a text specially.
    ids: Vec<u32>,
    /// How many bytes of the text of `ids` are shown already.
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

    /// Takes the next token; gives the text that it completes, if any.
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
            // Nothing is open: one token of context is enough from here on.
            self.ids = vec![id];
            self.shown = self.tokenizer.decode(&self.ids).len();
        }
        (!new.is_empty()).then_some(new)
    }

    /// The rest: characters that were never completed, as U+FFFD.
    pub fn finish(self) -> Option<String> {
        let text = self.tokenizer.decode(&self.ids);
        text.get(self.shown..)
            .filter(|rest| !rest.is_empty())
            .map(str::to_owned)
    }
}
