//! A tokenizer as GGUF files have it: lists of tokens and merges, and the name of a way to split text.
//!
//! llama.cpp picks the expressions that split text by that name, and reads none from the file. A tokenizer is written only if
//! one of the names stands for what it does.

mod characters;
mod from;
mod splitting;
#[cfg(test)]
mod tests;
mod to;

/// The kinds of tokens in a vocabulary, as numbers in a file.
pub(super) mod kind {
    /// A piece of text.
    pub const NORMAL: i32 = 1;
    /// What stands for text without tokens.
    pub const UNKNOWN: i32 = 2;
    /// A special token, which no text becomes by itself.
    pub const CONTROL: i32 = 3;
    /// A token that text becomes wherever it spells it.
    pub const USER_DEFINED: i32 = 4;
    /// An id without a token.
    pub const UNUSED: i32 = 5;
    /// A byte, of a vocabulary of characters.
    pub const BYTE: i32 = 6;
}

/// The vocabulary in the metadata of a GGUF file. The names in parentheses are those of its keys, behind `tokenizer.ggml.`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgmlVocabulary {
    /// How tokens are found (`model`): `gpt2` by merges of bytes, `llama` by scores.
    pub model: String,
    /// The name of the way in which text is split first (`pre`).
    pub pre: String,
    /// The text of each id (`tokens`).
    pub tokens: Vec<String>,
    /// The kind of each (`token_type`); all are pieces of text if it is empty.
    pub kinds: Vec<i32>,
    /// How likely each is (`scores`), of a vocabulary that is merged by scores.
    pub scores: Vec<f32>,
    /// Pairs of tokens that are merged, the first ones first, with a space between (`merges`).
    pub merges: Vec<String>,
    /// The token that begins a text, if there is one (`bos_token_id`).
    pub bos_id: Option<u32>,
    /// Whether it is put before every text (`add_bos_token`); `None` for what is usual with the model and `pre`.
    pub add_bos: Option<bool>,
    /// Whether a space is put before every text (`add_space_prefix`); `None` for what is usual with the model.
    pub add_space: Option<bool>,
    /// Whether text is brought into Unicode's normalization form C first, which llama.cpp does not do and files do not say;
    /// `None` for what is usual with `pre`.
    pub nfc: Option<bool>,
    /// The Jinja template that writes a chat as text.
    pub chat_template: Option<String>,
}
