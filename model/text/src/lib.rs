//! Text: documents in files, tokenizers, and packing into sequences for evaluation.
//!
//! ```
//! use firebox_text::Tokenizer;
//!
//! let tokenizer = Tokenizer::bytes();
//! let tokens = tokenizer.prompt("fn")?;
//! assert_eq!(tokens, [u32::from(b'f'), u32::from(b'n')]);
//! assert_eq!(tokenizer.decode(&tokens), "fn");
//! # Ok::<(), firebox_text::TokenizerError>(())
//! ```

pub mod documents;
pub mod packing;
mod tokenizer;

pub use tokenizer::{
    END_OF_TEXT, GgmlVocabulary, SMALLEST_VOCABULARY, StreamDecoder, TOKENIZER_FILE, TokenTexts,
    Tokenizer, TokenizerConfig, TokenizerError,
};
