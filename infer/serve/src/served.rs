//! The model that is served, as far as requests can tell.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use firebox_text::{Tokenizer, TokenizerConfig, TokenizerError};
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::pictures::PictureInput;
use crate::template::{ChatTemplate, TemplateError};

/// Texts of so many bytes are encoded to their end, so that an error can say how many tokens they have; that takes a fraction
/// of a second.
const COUNTED: usize = 1 << 20;

/// What a model is called, and how text becomes its tokens.
#[derive(Debug)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// Makes token ids of text and text of token ids. Text that spells a special token becomes this token.
    pub tokenizer: Arc<Tokenizer>,
    /// The most tokens of a prompt and the text after it.
    pub context: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// What stands beside the tokenizer.
    pub config: TokenizerConfig,
    /// Writes chats as text; `None` if the checkpoint has no template.
    pub template: Option<Result<ChatTemplate, TemplateError>>,
    /// How it takes pictures; `None` if it reads text alone.
    pub pictures: Option<PictureInput>,
    /// When the server began, in seconds since 1970.
    pub created: u64,
    /// Names what computes: texts with the same seed may differ where this does.
    pub fingerprint: String,
}

impl Served {
    /// A model with its tokenizer. `parts` is what a text depends on beside its request: the server's version, the device, types
    /// of weights. A chat template that cannot be read is warned of, and chats are refused.
    ///
    /// # Errors
    ///
    /// When a file beside the tokenizer is not what its name says.
    pub fn new(
        name: impl Into<String>,
        tokenizer: Tokenizer,
        context: usize,
        vocab_size: usize,
        parts: &[&str],
    ) -> Result<Self, TokenizerError> {
        let name = name.into();
        let config = tokenizer.config(context)?;
        let template = config.chat_template.as_deref();
        let template =
            template.map(|source| ChatTemplate::new(source, config.special_tokens.clone()));
        if let Some(Err(error)) = &template {
            tracing::warn!("{error}; chats are refused");
        }
        let mut digest = Sha256::new();
        for part in [name.as_str()].iter().chain(parts) {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
        let digest = digest.finalize();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            tokenizer: Arc::new(tokenizer.with_special_tokens()),
            context,
            vocab_size,
            template,
            pictures: None,
            config,
            created: now.map_or(0, |since| since.as_secs()),
            fingerprint: digest[..6]
                .iter()
                .fold("fb_".to_owned(), |text, byte| text + &format!("{byte:02x}")),
            name,
        })
    }

    /// Checks the model that a request asks for.
    ///
    /// # Errors
    ///
    /// When it is another one.
    pub fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if name != self.name => Err(ApiError::ModelNotFound {
                name: name.to_owned(),
                served: self.name.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Checks that ids are in the vocabulary.
    ///
    /// # Errors
    ///
    /// The first one that is not.
    pub fn check_ids(
        &self,
        param: &str,
        ids: impl IntoIterator<Item = u32>,
    ) -> Result<(), ApiError> {
        match ids.into_iter().find(|&id| id as usize >= self.vocab_size) {
            None => Ok(()),
            Some(id) => Err(ApiError::InvalidValue {
                param: param.to_owned(),
                message: format!(
                    "{param} has the token {id}; the model's tokens are 0 to {}",
                    self.vocab_size.saturating_sub(1)
                ),
            }),
        }
    }

    /// Token ids of a text; with `begin`, after the token that begins texts, where the tokenizer has one.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot encode the text, or has ids that the model has not.
    pub fn encode(&self, param: &str, text: &str, begin: bool) -> Result<Vec<u32>, ApiError> {
        let ids = self.encode_up_to(param, text, begin, usize::MAX)?;
        self.check_ids(param, ids.iter().copied())?;
        Ok(ids)
    }

    /// The same of a prompt. A very long text that is beyond the context is not encoded to its end.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode), and when such a text is beyond the context.
    pub fn encode_prompt(
        &self,
        param: &'static str,
        text: &str,
        begin: bool,
    ) -> Result<Vec<u32>, ApiError> {
        let ids = self.encode_briefly(param, text, begin)?;
        self.check_ids(param, ids.iter().copied())?;
        Ok(ids)
    }

    /// The same of a text that sees so many pictures: it has a token for each of them, or else they stand before it, as for
    /// `infer generate --image`.
    ///
    /// # Errors
    ///
    /// As there, and when the text has another number of these tokens.
    pub fn encode_seeing(
        &self,
        param: &'static str,
        text: &str,
        begin: bool,
        (input, pictures): (&PictureInput, usize),
    ) -> Result<Vec<u32>, ApiError> {
        let ids = self.encode_briefly(param, text, begin)?;
        let image = input.image_token;
        let others = ids.iter().copied().filter(|&id| id != image);
        self.check_ids(param, others)?;
        match ids.iter().filter(|&&id| id == image).count() {
            0 => Ok([vec![image; pictures], ids].concat()),
            tokens if tokens == pictures => Ok(ids),
            tokens => Err(ApiError::InvalidValue {
                param: param.to_owned(),
                message: format!(
                    "{param} have {tokens} tokens that stand for a picture, and {pictures} pictures"
                ),
            }),
        }
    }

    /// The ids of a prompt, which are not checked.
    fn encode_briefly(
        &self,
        param: &'static str,
        text: &str,
        begin: bool,
    ) -> Result<Vec<u32>, ApiError> {
        if text.len() <= COUNTED {
            return self.encode_up_to(param, text, begin, usize::MAX);
        }
        let beyond = ApiError::PromptLength {
            param,
            context: self.context,
        };
        // A long word takes a second a megabyte, and much memory.
        if self.tokenizer.fewest_tokens(text) > self.context {
            return Err(beyond);
        }
        let ids = self.encode_up_to(param, text, begin, self.context)?;
        match ids.len() > self.context {
            true => Err(beyond),
            false => Ok(ids),
        }
    }

    /// The ids of a text, which are not checked. Where there are more than `most`, it is not encoded to its end.
    fn encode_up_to(
        &self,
        param: &str,
        text: &str,
        begin: bool,
        most: usize,
    ) -> Result<Vec<u32>, ApiError> {
        let mut ids = match begin {
            true => self.tokenizer.bos_ids().to_vec(),
            false => Vec::new(),
        };
        let encoded = self.tokenizer.encode_parts(text, |part| {
            ids.extend_from_slice(part);
            match ids.len() > most {
                true => Err(Ended::Enough),
                false => Ok(()),
            }
        });
        if let Err(Ended::Failed(error)) = encoded {
            return Err(ApiError::InvalidValue {
                param: param.to_owned(),
                message: format!("{param}: {error}"),
            });
        }
        Ok(ids)
    }
}

/// Why a text was not encoded to its end.
enum Ended {
    /// It has more tokens than were asked for.
    Enough,
    /// It cannot be encoded.
    Failed(TokenizerError),
}

impl From<TokenizerError> for Ended {
    fn from(error: TokenizerError) -> Self {
        Self::Failed(error)
    }
}
