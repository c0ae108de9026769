//! The texts of many documents that are tokens already.

use std::fmt;

use super::Tokenizer;
use super::spelling::Spelling;

/// Makes text of documents that are tokens already: exactly that text, or none.
///
/// A table of what each id stands for takes the place of a decoder, which is looked up and makes a string for each token.
pub struct TokenTexts {
    tokenizer: Tokenizer,
    /// What all ids stand for, one after the other, and where each of them ends there.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Whether an id begins or ends a document.
    boundaries: Vec<bool>,
    /// Whether an id is any other special token, where text cannot become one.
    unwanted: Vec<bool>,
}

impl fmt::Debug for TokenTexts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut texts = formatter.debug_struct("TokenTexts");
        texts
            .field("tokenizer", &self.tokenizer)
            .finish_non_exhaustive()
    }
}

impl TokenTexts {
    /// The texts of a tokenizer's ids. Special tokens within documents are wanted if it
    /// [takes them](Tokenizer::takes_special_tokens) from text.
    pub fn new(tokenizer: Tokenizer) -> Self {
        let ids = 0..tokenizer.vocab_size() as u32;
        let mut bytes = Vec::new();
        let add = |id| {
            bytes.extend(tokenizer.token_bytes(id));
            bytes.len()
        };
        let ends = ids.clone().map(add).collect();
        let is_boundary = |id: u32| id == tokenizer.eos_id() || tokenizer.bos_ids().contains(&id);
        let mut unwanted = vec![false; ids.len()];
        if !tokenizer.takes_special_tokens() {
            for (id, token) in tokenizer.inner.get_added_tokens_decoder() {
                unwanted[id as usize] = token.special;
            }
        }
        Self {
            boundaries: ids.map(is_boundary).collect(),
            bytes,
            ends,
            unwanted,
            tokenizer,
        }
    }

    /// Size of the vocabulary: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// Whether an id begins or ends a document.
    pub fn is_boundary(&self, id: u32) -> bool {
        self.boundaries.get(id as usize).is_some_and(|&is| is)
    }

    /// The token of an id of the vocabulary that no document of this tokenizer has: a special one.
    pub fn unwanted(&self, id: u32) -> Option<String> {
        let token = || self.tokenizer.special_text(id).unwrap_or_default();
        self.unwanted[id as usize].then(token)
    }

    /// What an id of the vocabulary stands for.
    fn spelled(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[id]]
    }

    /// The text of ids of the vocabulary; `None` if they are not UTF-8.
    pub fn text(&self, ids: &[u32]) -> Option<String> {
        if self.tokenizer.spelling == Spelling::Characters {
            // Its decoder may put spaces between tokens.
            return Some(self.tokenizer.decode_with(ids, true));
        }
        let bytes = ids.iter().flat_map(|&id| self.spelled(id)).copied();
        let mut text = String::from_utf8(bytes.collect()).ok()?;
        // Encoding puts a space before a text, for some tokenizers, and decoding takes it away.
        if text.starts_with(' ') && !self.tokenizer.decode_with(&ids[..1], true).starts_with(' ') {
            text.remove(0);
        }
        Some(text)
    }

    /// Of how many ids of the vocabulary, the tokenizer makes the same of their text, and how many there are. Where the ids
    /// are those of a text from another tokenizer, it makes others, though they are text as well.
    pub fn agreement(&self, ids: &[u32]) -> (usize, usize) {
        // They may begin and end within a character, which has four bytes at most.
        let cuts = (0..4).flat_map(|first| (0..4).map(move |last| (first, last)));
        let whole = cuts.filter(|(first, last)| first + last < ids.len());
        let whole = whole.into_iter().find_map(|(first, last)| {
            let ids = &ids[first..ids.len() - last];
            Some((ids, self.text(ids)?))
        });
        let Some((ids, text)) = whole else {
            return (0, ids.len());
        };
        let Ok(again) = self.tokenizer.encode(&text) else {
            return (0, ids.len());
        };
        // Tokens are the same that end in the same place, as seen from the end: a space may be put before the text.
        let places = |ids: &[u32]| {
            let mut place = 0;
            let mut places: Vec<(usize, u32)> = Vec::with_capacity(ids.len());
            for &id in ids.iter().rev() {
                places.push((place, id));
                place += self.spelled(id).len();
            }
            places
        };
        let (found, mut again) = (places(ids), places(&again));
        again.sort_unstable();
        let same = found
            .iter()
            .filter(|place| again.binary_search(place).is_ok());
        (same.count(), ids.len())
    }
}
