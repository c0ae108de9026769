//! A text in the making.

use std::borrow::Cow;
use std::sync::Arc;

use super::{End, Ended, Receiver, Request, Token};
use crate::config::ModelConfig;
use crate::sampling::{Draws, Scored, Targets};
use crate::vision::PictureKeys;

/// A text in the making, or one that has ended and whose beginning others may take over.
#[derive(Debug)]
pub struct Text {
    /// In the order in which texts came.
    pub number: usize,
    request: Request,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    /// Where the part that the model reads begins.
    start: usize,
    /// Tokens of the prompt of which the scores were told; the first one has none.
    scored: usize,
    /// Tokens of its prompt that were not read, since others had been.
    shared: usize,
    /// Whether the receiver knows that it has begun.
    has_begun: bool,
    cut: Option<usize>,
    end: Option<End>,
}

impl Text {
    /// # Panics
    ///
    /// When the prompt is empty or has a token that is not in the vocabulary, or one that is to be scored exceeds the context;
    /// with pictures also when it is to be scored at all, or exceeds the context with what is generated.
    pub fn new(number: usize, request: Request, config: &ModelConfig) -> Self {
        assert!(
            !request.prompt.is_empty(),
            "a prompt has at least one token"
        );
        let known = |&id: &u32| (id as usize) < config.input_ids();
        assert!(
            request.prompt.iter().all(known),
            "a prompt's tokens are in the vocabulary"
        );
        assert!(
            !request.scores_prompt || request.prompt.len() <= config.context_length,
            "a prompt whose tokens are scored fits the context"
        );
        let whole = request.prompt.len().saturating_add(request.count);
        assert!(
            request.pictures.is_none() || !request.scores_prompt && whole <= config.context_length,
            "a text with pictures is not scored, and fits the context"
        );
        Self {
            number,
            tokens: request.prompt.clone(),
            start: request.prompt.len().saturating_sub(config.context_length),
            scored: 1,
            shared: 0,
            has_begun: false,
            cut: None,
            end: None,
            request,
        }
    }

    /// Whether there is nothing to compute.
    pub fn is_complete(&self) -> bool {
        self.generated() == self.request.count && !self.needs_scores()
    }

    /// The tokens that the model reads.
    pub fn window(&self) -> &[u32] {
        &self.tokens[self.start..]
    }

    /// The pictures that it sees.
    pub fn pictures(&self) -> Option<&Arc<PictureKeys>> {
        self.request.pictures.as_ref()
    }

    /// Why it ended, if it did.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// How many tokens are left to generate.
    pub fn remaining(&self) -> usize {
        self.request.count - self.generated()
    }

    fn prompt(&self) -> usize {
        self.request.prompt.len()
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt()
    }

    /// Whether tokens of its prompt are still to be scored, so that these have to be read.
    pub fn needs_scores(&self) -> bool {
        self.request.scores_prompt && self.scored < self.prompt()
    }

    /// How many tokens the part that the model reads has in common with that of another text at their beginning, but for
    /// the last one, whose logits are needed. Texts that see other pictures have nothing in common.
    pub fn alike(&self, other: &Self) -> usize {
        let same = match (&self.request.pictures, &other.request.pictures) {
            (None, None) => true,
            (Some(own), Some(others)) => Arc::ptr_eq(own, others),
            _ => false,
        };
        if self.needs_scores() || !same {
            return 0;
        }
        let own = self.window();
        let alike = own[..own.len() - 1].iter().zip(other.window());
        alike.take_while(|(a, b)| a == b).count()
    }

    /// How many tokens are to be read after the first `cached` ones. The last one of a text without an end to come is only
    /// scored.
    pub fn unread(&self, cached: usize) -> &[u32] {
        let window = self.window();
        let end = window.len() - usize::from(self.remaining() == 0);
        &window[cached.min(end)..end]
    }

    /// What is drawn after the text, along a draft.
    pub fn draws(&self, draft: &[u32]) -> Draws<'_> {
        Draws::new(self.request.sampling, &self.tokens, self.prompt(), draft)
            .biased(&self.request.bias)
            .scored(self.request.likeliest)
    }

    /// The tokens that are scored when `new` tokens are read after the first `cached` ones: those that follow them in the
    /// prompt, and are not scored yet.
    pub fn targets(&self, cached: usize, new: usize) -> Option<Targets<'_>> {
        if !self.needs_scores() {
            return None;
        }
        let first = self.start + cached + 1;
        let end = (first + new).min(self.prompt());
        let tokens = self.tokens.get(first.max(self.scored)..end)?;
        (!tokens.is_empty()).then(|| Targets {
            tokens: Cow::Borrowed(tokens),
            likeliest: self.request.likeliest.unwrap_or(0),
        })
    }

    /// Drops the older half when there are more tokens than the context has; returns whether it did.
    pub fn cut(&mut self, context: usize) -> bool {
        let exceeds = self.window().len() > context;
        if exceeds {
            self.cut = self.cut.or(Some(self.generated()));
            self.start = self.tokens.len() - (context / 2).max(1);
        }
        exceeds
    }

    /// Its first tokens are being read.
    pub fn begin(&mut self, receiver: &mut impl Receiver) {
        if !std::mem::replace(&mut self.has_begun, true) {
            receiver.began(self.number, self.shared);
        }
    }

    /// It need not read so many tokens more.
    pub fn take_over(&mut self, tokens: usize) {
        // What is taken over when a text begins anew is none of what its prompt has spared.
        if self.generated() == 0 {
            self.shared += tokens;
        }
    }

    /// It reads all of its tokens itself.
    pub fn lose_cache(&mut self) {
        if self.generated() == 0 {
            self.shared = 0;
        }
    }

    /// Takes the scores of further tokens of the prompt.
    pub fn take_scores(&mut self, scores: Vec<Scored>, receiver: &mut impl Receiver) {
        if !scores.is_empty() {
            self.scored += scores.len();
            receiver.prompt_scored(self.number, scores);
        }
    }

    /// Appends the tokens that were drawn along a draft, which have these scores if any, and tells the receiver; the text may end with it. Returns how many drafted
    /// tokens were drawn.
    pub fn take(
        &mut self,
        (drawn, scores): (Vec<u32>, Vec<Scored>),
        draft: &[u32],
        eos_ids: &[u32],
        receiver: &mut impl Receiver,
    ) -> usize {
        let before = self.tokens.len();
        let ends = |id: u32| self.request.ends(id, eos_ids);
        let accepted = super::verify::verify(&drawn, &mut self.tokens, draft, ends);
        let mut scores = scores.into_iter();
        for place in before..self.tokens.len() {
            let id = self.tokens[place];
            let token = Token {
                id,
                scored: scores.next(),
            };
            if self.request.ends(id, eos_ids) {
                self.tokens.truncate(place);
                self.finish(End::Eos, Some(token), receiver);
                return accepted;
            }
            if !receiver.token(self.number, token) {
                self.tokens.truncate(place + 1);
                self.finish(End::Stopped, None, receiver);
                return accepted;
            }
        }
        if self.remaining() == 0 {
            self.finish(End::Count, None, receiver);
        }
        accepted
    }

    /// Ends the text.
    pub fn finish(&mut self, end: End, last: Option<Token>, receiver: &mut impl Receiver) {
        self.end = Some(end);
        let ended = Ended {
            end,
            tokens: self.generated(),
            cut: self.cut,
            shared: self.shared,
            last,
        };
        receiver.ended(self.number, ended);
    }
}
