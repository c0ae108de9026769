//! Resolves `[tokenizer]`: the keys of each kind, and the number of ids.

use firebox_model::config::LARGEST_SIZE;
use firebox_text::Tokenizer;

use super::{Checked, between, without_effect};
use crate::config::error::Problem;
use crate::config::raw::{RawTokenizer, TokenizerKind};
use crate::config::{BYTES_VOCABULARY, TokenizerConfig};

pub(super) fn tokenizer(raw: RawTokenizer) -> Checked<TokenizerConfig> {
    let RawTokenizer {
        kind,
        vocab_size,
        path,
        end_of_text,
    } = raw;
    let unused = |given: bool, key: &str, required: &str| {
        let hint = format!("remove it, or set tokenizer.kind = \"{required}\"");
        if given {
            Err(without_effect(key, &format!("unless tokenizer.kind is \"{required}\"")).hint(hint))
        } else {
            Ok(())
        }
    };
    if !matches!(kind, TokenizerKind::Bpe) {
        unused(vocab_size.is_some(), "tokenizer.vocab_size", "bpe")?;
    }
    if !matches!(kind, TokenizerKind::File) {
        unused(path.is_some(), "tokenizer.path", "file")?;
        unused(end_of_text.is_some(), "tokenizer.end_of_text", "file")?;
    }
    let needed = |key: &str, kind: &str| {
        Problem::new(
            key,
            format!("is missing, but tokenizer.kind = \"{kind}\" requires it"),
        )
    };
    match kind {
        TokenizerKind::Bytes => Ok(TokenizerConfig::Bytes),
        TokenizerKind::Bpe => {
            let key = "tokenizer.vocab_size";
            let vocab_size =
                vocab_size.ok_or_else(|| needed(key, "bpe").hint("2048 suits a small model"))?;
            between(key, vocab_size, BYTES_VOCABULARY, LARGEST_SIZE)
                .map_err(|problem| problem.hint("the 256 bytes and end of text are always ids"))?;
            Ok(TokenizerConfig::Bpe { vocab_size })
        }
        TokenizerKind::File => {
            let path = path.ok_or_else(|| {
                needed("tokenizer.path", "file").hint("for example path = \"tokenizer.json\"")
            })?;
            let hint =
                "set it to the token that ends a document, such as \"<|endoftext|>\" or \"</s>\"";
            let end_of_text =
                end_of_text.ok_or_else(|| needed("tokenizer.end_of_text", "file").hint(hint))?;
            Ok(TokenizerConfig::File { path, end_of_text })
        }
    }
}

/// The number of ids; an upper bound for a `bpe` tokenizer. Opens the file of a `file` tokenizer.
pub(super) fn vocab_size(tokenizer: &TokenizerConfig) -> Checked<usize> {
    match tokenizer {
        TokenizerConfig::Bytes => Ok(BYTES_VOCABULARY),
        TokenizerConfig::Bpe { vocab_size } => Ok(*vocab_size),
        TokenizerConfig::File { path, end_of_text } => Tokenizer::from_file(path, end_of_text)
            .map(|opened| opened.vocab_size())
            .map_err(|error| Problem::new("tokenizer.path", "cannot be used").caused_by(error)),
    }
}
