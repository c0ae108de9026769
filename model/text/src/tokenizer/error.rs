//! Errors of tokenizers.

use std::fmt;
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;

use super::SMALLEST_VOCABULARY;

/// Why a tokenizer cannot be trained, read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(FileError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(FileError),
    /// The text is not a `tokenizer.json`.
    #[error("{} is not a tokenizer.json: {message}", Name(path))]
    Parse {
        /// The file, if there is one.
        path: Option<PathBuf>,
        /// The parser's message.
        message: String,
    },
    /// A file beside the `tokenizer.json` is not what its name says.
    #[error("{file}: {message}")]
    Companion {
        /// The file's name.
        file: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The given EOS token does not exist.
    #[error(
        "{} has no token {token:?}, which is configured as the end-of-text token",
        Name(path)
    )]
    NoEosToken {
        /// The file, if there is one.
        path: Option<PathBuf>,
        /// The token.
        token: String,
    },
    /// `eos_token_id` does not exist.
    #[error("{} has no token with id {id}, which is eos_token_id in config.json", path.display())]
    UnknownId {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u32,
    },
    /// The post-processor adds an id that does not exist.
    #[error(
        "{}: post_processor adds id {id}, which is not in the vocabulary",
        Name(path)
    )]
    UnknownBos {
        /// The file, if there is one.
        path: Option<PathBuf>,
        /// The id.
        id: u32,
    },
    /// llama.cpp has no tokenizer like this one.
    #[error("llama.cpp has no tokenizer like that of the model: {reason}")]
    Ggml {
        /// What differs.
        reason: String,
    },
    /// The vocabulary of a GGUF file is not one that Firebox reads.
    #[error("Firebox does not read the tokenizer of the GGUF file: {reason}")]
    GgmlUnread {
        /// What is wrong with it.
        reason: String,
    },
    /// The EOS token is not configured, and none of the usual ones exists.
    #[error("{} has none of the usual end-of-text tokens, and config.json has no eos_token_id", path.display())]
    NoUsualEos {
        /// The file.
        path: PathBuf,
    },
    /// The vocabulary is too small to give every byte an id.
    #[error(
        "a byte-level vocabulary needs at least {SMALLEST_VOCABULARY} ids, one per byte and end of text, not {vocab_size}"
    )]
    VocabularyTooSmall {
        /// The requested number of ids.
        vocab_size: usize,
    },
    /// The byte-pair encoding could not be trained.
    #[error("cannot train the byte-pair encoding: {message}")]
    Train {
        /// The trainer's message.
        message: String,
    },
    /// The tokenizer has no token for a part of the text.
    #[error(
        "{}the tokenizer cannot encode the text from byte {offset} on: {message}",
        InDocument(document)
    )]
    Encode {
        /// The document, if it has a name.
        document: Option<String>,
        /// The number of the text among those that were encoded together, from 0.
        text: usize,
        /// Where the piece begins that cannot be encoded, in bytes from the start of the text or document.
        offset: usize,
        /// The tokenizer's message.
        message: String,
    },
}

impl Advise for TokenizerError {
    fn advice(&self) -> Advice {
        Advice::FAILURE.hint(match self {
            Self::NoEosToken { .. } => {
                "use a token from the file's added_tokens, such as \"<|endoftext|>\" or \
                 \"</s>\""
            }
            Self::UnknownId { .. } | Self::NoUsualEos { .. } => {
                "set eos_token_id in config.json to the id of the token that ends a document"
            }
            Self::Ggml { .. } => {
                "a tokenizer of merged bytes that splits text as Llama 3, Qwen2, GPT-2, StarCoder or DeepSeek-V3 can be exported"
            }
            Self::GgmlUnread { .. } => {
                "use the model's folder on the Hugging Face hub, which has a tokenizer.json"
            }
            Self::UnknownBos { .. } => {
                "every id under post_processor must be in added_tokens or in the model's vocabulary"
            }
            Self::Companion { .. } => {
                "copy the file again from where the checkpoint comes from, or remove it"
            }
            Self::Parse { .. } => "use the tokenizer.json of a Hugging Face fast tokenizer",
            Self::Encode { message, .. } if message.contains(RETRY_LIMIT) => {
                "the tokenizer's regular expression cannot match so long a run of characters of one kind, in \
                 transformers either: shorten the run or leave the document out"
            }
            Self::Encode { .. } => "a byte-level tokenizer can encode every text",
            Self::Read(_)
            | Self::Write(_)
            | Self::VocabularyTooSmall { .. }
            | Self::Train { .. } => return Advice::FAILURE,
        })
    }
}

impl TokenizerError {
    /// The same error, with the name of the document that could not be encoded, and counting from its start.
    ///
    /// `place` says for a text, given its number among those that were encoded together, which document it is of, and
    /// where it begins there, in bytes.
    #[must_use]
    pub fn in_document(mut self, place: impl FnOnce(usize) -> (String, usize)) -> Self {
        if let Self::Encode {
            document,
            text,
            offset,
            ..
        } = &mut self
        {
            let (name, start) = place(*text);
            *document = Some(name);
            *offset += start;
        }
        self
    }

    /// The same error, with the file that it is about.
    pub(super) fn at(mut self, file: &Path) -> Self {
        if let Self::Parse { path, .. }
        | Self::NoEosToken { path, .. }
        | Self::UnknownBos { path, .. } = &mut self
        {
            *path = Some(file.to_owned());
        }
        self
    }
}

/// What Oniguruma says when it gives up.
const RETRY_LIMIT: &str = "retry-limit";

/// The beginning of a message about a document, if it has a name.
struct InDocument<'a>(&'a Option<String>);

impl fmt::Display for InDocument<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(formatter, "{name}: "),
            None => Ok(()),
        }
    }
}

/// A file's path, or "the tokenizer" for text that is not from a file.
struct Name<'a>(&'a Option<PathBuf>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => path.display().fmt(formatter),
            None => formatter.write_str("the tokenizer"),
        }
    }
}
