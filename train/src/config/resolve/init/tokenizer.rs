//! The tokenizer of a run that starts from a checkpoint.

use firebox_text::TOKENIZER_FILE;
use firebox_text::Tokenizer;

use super::{KEY, Origin};
use crate::config::TokenizerConfig;
use crate::config::error::Problem;
use crate::config::raw::RawTokenizer;
use crate::config::resolve::{Checked, tokenizer};

impl Origin {
    /// The configured tokenizer, or else the checkpoint's; with `special_tokens`, text may become its special tokens. Every
    /// id of a document has an embedding.
    pub(in crate::config::resolve) fn tokenizer(
        &self,
        raw: Option<RawTokenizer>,
        special_tokens: bool,
    ) -> Checked<TokenizerConfig> {
        let (tokenizer, ids, key) = match raw {
            None => {
                let (tokenizer, ids) = self.own_tokenizer(special_tokens)?;
                (tokenizer, ids, KEY)
            }
            Some(raw) => {
                let tokenizer = tokenizer::tokenizer(raw)?;
                let ids = tokenizer::vocab_size(&tokenizer)?;
                let key = match &tokenizer {
                    TokenizerConfig::Bytes => "tokenizer.kind",
                    TokenizerConfig::Bpe { .. } => "tokenizer.vocab_size",
                    TokenizerConfig::File { .. } => "tokenizer.path",
                };
                (tokenizer, ids, key)
            }
        };
        let embeddings = self.config.model.vocab_size;
        if ids <= embeddings {
            return Ok(tokenizer);
        }
        let (rule, hint) = match key {
            KEY => (
                format!(
                    "has a {TOKENIZER_FILE} whose documents have ids up to {}, but a model with {embeddings} embeddings",
                    ids - 1
                ),
                "they do not belong to the same model; configure another tokenizer under [tokenizer]",
            ),
            _ => (
                format!(
                    "gives {ids} ids, but {} has {embeddings} embeddings",
                    self.name()
                ),
                "remove [tokenizer] to use the checkpoint's",
            ),
        };
        Err(Problem::new(key, rule).hint(hint))
    }

    fn own_tokenizer(&self, special_tokens: bool) -> Checked<(TokenizerConfig, usize)> {
        if let Some(planned) = &self.planned_tokenizer {
            return Ok((planned.clone(), self.config.model.vocab_size));
        }
        let path = self.folder.join(TOKENIZER_FILE);
        if !path.exists() {
            let rule = format!("is missing, and {} has no {TOKENIZER_FILE}", self.name());
            return Err(Problem::new("tokenizer", rule).hint(
                "add a [tokenizer] section, or copy the model's tokenizer.json to the folder",
            ));
        }
        let opened = Tokenizer::load(&path, &self.config.eos_ids).map_err(|error| {
            Problem::new(KEY, "has a tokenizer that cannot be used").caused_by(error)
        })?;
        let end_of_text = opened.eos_token();
        let opened = match special_tokens {
            true => opened.with_special_tokens(),
            false => opened,
        };
        Ok((
            TokenizerConfig::File { path, end_of_text },
            opened.document_vocab_size(),
        ))
    }
}
