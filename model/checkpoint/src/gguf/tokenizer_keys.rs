//! The keys of a tokenizer's metadata in GGUF files.

/// How tokens are found, such as by the merges of "gpt2"; "none" in a file without a tokenizer.
pub const MODEL: &str = "tokenizer.ggml.model";
/// How a text is split before that.
pub const PRE: &str = "tokenizer.ggml.pre";
/// The texts of the tokens, by id.
pub const TOKENS: &str = "tokenizer.ggml.tokens";
/// What each of them is, such as a special token.
pub const KINDS: &str = "tokenizer.ggml.token_type";
/// How likely each of them is, in vocabularies of SentencePiece.
pub const SCORES: &str = "tokenizer.ggml.scores";
/// Pairs of tokens that become one, the first ones first.
pub const MERGES: &str = "tokenizer.ggml.merges";
/// The token that begins a document.
pub const BOS: &str = "tokenizer.ggml.bos_token_id";
/// Whether a text begins with it.
pub const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
/// Whether a text ends with the token that ends a document.
pub const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
/// Whether a text begins with a space that it does not have.
pub const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
/// How a chat is written as a text, in Jinja.
pub const TEMPLATE: &str = "tokenizer.chat_template";
/// The token that ends a document, and further ones that end a text.
pub const EOS: [&str; 3] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];
/// Firebox's own note that text is brought into Unicode's form C.
pub const NFC: &str = "firebox.tokenizer_nfc";
