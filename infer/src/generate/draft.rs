//! Speculative decoding: where drafted tokens come from.

use std::path::Path;

use firebox_kernels::dtype::WeightFormat;
use firebox_model::generate::{self, DraftTokens, Options, Statistics};
use firebox_model::language_model::LanguageModel;

use crate::InferError;
use crate::engine::Engine;

/// Where drafted tokens come from.
#[derive(Debug, Default)]
pub enum Draft {
    /// There are none.
    #[default]
    None,
    /// What followed the last tokens where they occurred before in the same text.
    PromptLookup,
    /// A smaller model of the same vocabulary.
    Model(Box<LanguageModel>),
}

/// How texts are computed; it changes how long they take, and no token of them.
#[derive(Debug)]
pub struct Speculation {
    /// Where drafted tokens come from.
    pub draft: Draft,
    /// How many are drafted for a text and step.
    pub draft_tokens: DraftTokens,
}

impl Default for Speculation {
    fn default() -> Self {
        Self {
            draft: Draft::None,
            draft_tokens: DraftTokens::Auto,
        }
    }
}

impl Draft {
    /// Opens a checkpoint, or the newest one of a run, as a draft for a model; on the same device, with products of the same
    /// precision, and with its weights in `dtype`. See [`Engine::open`] for `accept`.
    ///
    /// # Errors
    ///
    /// When the checkpoint cannot be read, or its vocabulary is not that of the model.
    pub fn open(
        checkpoint: &Path,
        accept: &[String],
        dtype: impl Into<WeightFormat>,
        engine: &Engine,
    ) -> Result<Self, InferError> {
        let draft = Engine::open(checkpoint, accept, &engine.device, dtype)?
            .at_precision(engine.model.precision())?;
        let difference = |reason| InferError::Draft {
            draft: checkpoint.to_owned(),
            reason,
        };
        let [size, of_draft] = [engine, &draft].map(|engine| engine.model.config().vocab_size);
        if size != of_draft {
            let reason =
                format!("it has a vocabulary of {of_draft} tokens, the model one of {size}");
            return Err(difference(reason));
        }
        if let Some((id, tokens)) = engine.tokenizer.first_difference(&draft.tokenizer) {
            let [token, of_draft] = tokens.map(|token| match token {
                Some(token) => format!("{token:?}"),
                None => "no token".to_owned(),
            });
            let reason =
                format!("id {id} is {of_draft} in its tokenizer, and {token} in the model's");
            return Err(difference(reason));
        }
        Ok(Self::Model(Box::new(draft.model)))
    }
}

impl Speculation {
    /// Up to `batch` texts at once, which any of `eos_ids` ends, in `in_flight` groups.
    pub(crate) fn options<'a>(
        &'a self,
        eos_ids: &'a [u32],
        batch: usize,
        in_flight: usize,
    ) -> Options<'a> {
        Options {
            batch,
            in_flight,
            draft: match &self.draft {
                Draft::None => generate::Draft::None,
                Draft::PromptLookup => generate::Draft::PromptLookup,
                Draft::Model(model) => generate::Draft::Model(model),
            },
            draft_tokens: self.draft_tokens,
            ..Options::new(eos_ids)
        }
    }

    /// What came of the drafts, in words; empty without a draft.
    pub fn summary(&self, statistics: &Statistics) -> String {
        if matches!(self.draft, Draft::None) {
            return String::new();
        }
        let Statistics {
            drafted, accepted, ..
        } = statistics;
        let per_step = statistics.tokens_per_step();
        match drafted {
            0 => format!("; nothing was drafted: {per_step:.2} tokens per step"),
            _ => format!(
                "; {accepted} of {drafted} drafted tokens accepted ({:.0} %), {per_step:.2} tokens per step",
                100.0 * statistics.acceptance()
            ),
        }
    }
}
