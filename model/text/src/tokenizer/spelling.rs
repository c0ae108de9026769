//! What single tokens spell.

use tokenizers::DecoderWrapper;

use super::Tokenizer;
use super::byte_level;

/// How a tokenizer's decoder makes text of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Every character of a token is a byte (GPT-2).
    ByteLevel,
    /// Tokens such as `<0xE7>` are bytes, and `▁` is a space (SentencePiece).
    ByteFallback,
    /// No token is a part of a character.
    Characters,
}

impl Spelling {
    /// That of a decoder.
    pub fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Self::ByteLevel,
            Some(DecoderWrapper::ByteFallback(_)) => Self::ByteFallback,
            Some(DecoderWrapper::Sequence(sequence)) => {
                let parts = sequence.get_decoders().iter();
                parts
                    .map(|part| Self::of(Some(part)))
                    .find(|&spelling| spelling != Self::Characters)
                    .unwrap_or(Self::Characters)
            }
            _ => Self::Characters,
        }
    }

    /// The bytes that a token stands for, where it may be a part of a character; `None` for whole characters.
    pub fn bytes(self, token: &str) -> Option<Vec<u8>> {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_level::byte).collect();
                Some(bytes.unwrap_or_else(|| token.as_bytes().to_vec()))
            }
            Self::ByteFallback => {
                let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
                let is_byte = digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_hexdigit());
                let byte = u8::from_str_radix(digits, 16).ok();
                byte.filter(|_| is_byte).map(|byte| vec![byte])
            }
            Self::Characters => None,
        }
    }

    /// The bytes that a token of the vocabulary stands for.
    pub fn all_bytes(self, token: &str) -> Vec<u8> {
        self.bytes(token)
            .unwrap_or_else(|| token.replace('\u{2581}', " ").into_bytes())
    }
}

impl Tokenizer {
    /// The bytes that a token stands for, also those of a special token; none for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else {
            return Vec::new();
        };
        match self.spelling {
            Spelling::ByteLevel => self.spelling.all_bytes(&token),
            _ if self.is_special(&token) => token.into_bytes(),
            spelling => spelling.all_bytes(&token),
        }
    }

    /// The text of a token alone, also that of a special token; parts of characters become U+FFFD. Empty for an id without a
    /// token.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// Whether this is the text of a special token.
    pub(super) fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }
}
