//! Special tokens that are spelled in text, such as the `<|im_start|>` of a rendered chat.

use aho_corasick::{AhoCorasick, MatchKind};

use super::Tokenizer;
use super::cuts::Cuts;

/// Finds what spells a special token.
pub(super) fn spelling(inner: &tokenizers::Tokenizer) -> AhoCorasick {
    let tokens = inner.get_added_tokens_decoder().into_values();
    let special = tokens.filter(|token| token.special && !token.content.is_empty());
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(special.map(|token| token.content))
        .expect("a vocabulary is smaller than an automaton may be")
}

impl Tokenizer {
    /// The same tokenizer, but text that spells a special token becomes this token, as it does for `transformers`.
    ///
    /// Right for text whose special tokens were written by a program, such as rendered chats; wrong for text of
    /// strangers, who could write the end of a document or the turn of another speaker.
    #[must_use]
    pub fn with_special_tokens(mut self) -> Self {
        self.inner.set_encode_special_tokens(false);
        self.identity = false;
        self.cuts = Cuts::of(&self.inner);
        self
    }

    /// Whether text that spells a special token becomes this token.
    pub fn takes_special_tokens(&self) -> bool {
        !self.inner.get_encode_special_tokens()
    }

    /// The text that spells the special token of an id; `None` if the id is of no special token.
    pub fn special_text(&self, id: u32) -> Option<String> {
        let tokens = self.inner.get_added_tokens_decoder();
        let token = tokens.get(&id).filter(|token| token.special)?;
        Some(token.content.clone())
    }

    /// Number of places of a text that spell a special token.
    pub fn special_places(&self, text: &str) -> u64 {
        self.special.find_iter(text).count() as u64
    }
}
