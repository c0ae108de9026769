//! What can be wrong with a tokenizer.

use std::fmt;
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;

use super::SMALLEST_VOCABULARY;

/// Why a tokenizer cannot be made, read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(FileError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(FileError),
    /// The text is not that of a `tokenizer.json`.
    #[error("{} is no tokenizer.json: {message}", Name(path))]
    Parse {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// What the parser says.
        message: String,
    },
    /// There is no token of the name that should end a document.
    #[error("{} has no token {token:?} to end a document with", Name(path))]
    NoEndOfText {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// The token.
        token: String,
    },
    /// `eos_token_id` is no token's id.
    #[error("{} has no token of id {id}, which config.json gives as eos_token_id", path.display())]
    UnknownId {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u32,
    },
    /// The post-processor begins texts with what is no token.
    #[error(
        "{} begins every text with id {id}, of which it has no token",
        Name(path)
    )]
    UnknownBeginning {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// The id.
        id: u32,
    },
    /// Nobody says which token ends a document, and none of the customary ones exists.
    #[error("{} has none of the customary end-of-text tokens", path.display())]
    NoCustomaryEnd {
        /// The file.
        path: PathBuf,
    },
    /// Not every byte would have an id.
    #[error(
        "a byte-level vocabulary of {vocabulary} ids is too small; the smallest is {SMALLEST_VOCABULARY}, one a byte and end of text"
    )]
    VocabularyTooSmall {
        /// The number of ids asked for.
        vocabulary: usize,
    },
    /// The byte-pair encoding could not be trained.
    #[error("the byte-pair encoding could not be trained: {message}")]
    Train {
        /// What the trainer says.
        message: String,
    },
    /// The tokenizer has no token for a part of the text.
    #[error("the tokenizer cannot encode this text: {message}")]
    Encode {
        /// What the tokenizer says.
        message: String,
    },
}

impl Advise for TokenizerError {
    fn advice(&self) -> Advice {
        Advice::FAILURE.hint(match self {
            Self::NoEndOfText { .. } => {
                "name a token that the file has, such as \"<|endoftext|>\" or \"</s>\"; its \
                 added_tokens list them"
            }
            Self::UnknownId { .. } | Self::NoCustomaryEnd { .. } => {
                "set eos_token_id in config.json to the id of the token that ends a document"
            }
            Self::UnknownBeginning { .. } => {
                "the ids under post_processor must be those of added_tokens or of the vocabulary"
            }
            Self::Parse { .. } => {
                "it should be the tokenizer.json of a Hugging Face fast tokenizer"
            }
            Self::Encode { .. } => "a byte-level tokenizer has a token for every text",
            Self::Read(_)
            | Self::Write(_)
            | Self::VocabularyTooSmall { .. }
            | Self::Train { .. } => return Advice::FAILURE,
        })
    }
}

impl TokenizerError {
    /// The same error, naming the file that it is about.
    pub(super) fn at(mut self, file: &Path) -> Self {
        if let Self::Parse { path, .. }
        | Self::NoEndOfText { path, .. }
        | Self::UnknownBeginning { path, .. } = &mut self
        {
            *path = Some(file.to_owned());
        }
        self
    }
}

/// A file's path, or words for text that came from none.
struct Name<'a>(&'a Option<PathBuf>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => path.display().fmt(formatter),
            None => formatter.write_str("the tokenizer"),
        }
    }
}
