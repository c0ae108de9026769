//! Several draws of a text at once, along a draft of it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Alone, Exchange, Memory, Row, Sampling, draw};

/// The draws of one sequence in a step: the next token, and one after each drafted token that was drawn itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draws<'a> {
    sampling: Sampling,
    /// Number of tokens that were generated before the draft.
    position: usize,
    /// Number of tokens of the prompt at the beginning of `text`.
    prompt: usize,
    /// Prompt, generated and drafted tokens.
    text: Cow<'a, [u32]>,
    /// Number of drafted tokens at the end of `text`.
    drafted: usize,
}

impl<'a> Draws<'a> {
    /// The draws after a text, whose first `prompt` tokens are its prompt, with a draft.
    pub fn new(sampling: Sampling, text: &'a [u32], prompt: usize, draft: &[u32]) -> Self {
        Self {
            sampling,
            position: text.len() - prompt,
            prompt,
            text: match draft {
                [] => Cow::Borrowed(text),
                draft => Cow::Owned([text, draft].concat()),
            },
            drafted: draft.len(),
        }
    }

    /// Rows of logits that they take: one after the text, and one after each drafted token.
    pub fn rows(&self) -> usize {
        self.drafted + 1
    }

    /// The same draws, without the tokens that do not matter to them.
    pub(crate) fn stripped(&self) -> Draws<'_> {
        match self.sampling.has_penalties() {
            true => self.clone(),
            false => Draws {
                prompt: 0,
                text: Cow::Borrowed(self.draft()),
                ..*self
            },
        }
    }

    fn draft(&self) -> &[u32] {
        &self.text[self.text.len() - self.drafted..]
    }

    /// The draw after so many drafted tokens.
    fn row<'b>(&'b self, place: usize, logits: &'b [f32]) -> Row<'b> {
        let (prompt, generated) = self.text.split_at(self.prompt);
        Row {
            logits,
            sampling: self.sampling,
            prompt,
            generated: &generated[..generated.len() - self.drafted + place],
            position: self.position + place,
        }
    }

    /// Draws from rows of logits of the whole vocabulary.
    pub(crate) fn from(&self, logits: &[f32], memory: &mut Memory) -> Vec<u32> {
        let vocab_size = logits.len() / self.rows();
        let mut drawn = Vec::with_capacity(self.rows());
        for (place, logits) in logits.chunks_exact(vocab_size).enumerate() {
            let token = draw(&[self.row(place, logits)], 0, memory, &mut Alone)[0];
            drawn.push(token);
            if self.draft().get(place) != Some(&token) {
                break;
            }
        }
        drawn
    }

    /// The draws of some texts, one after the other, from rows of logits of the whole vocabulary.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[Σ rows, vocab_size]`
    pub(crate) fn of_each(
        texts: &[Self],
        mut logits: &[f32],
        memory: &mut Memory,
    ) -> Vec<Vec<u32>> {
        let rows: usize = texts.iter().map(Self::rows).sum();
        let vocab_size = logits.len() / rows.max(1);
        let drawn = texts.iter().map(|draws| {
            let (of_text, rest) = logits.split_at(draws.rows() * vocab_size);
            logits = rest;
            draws.from(of_text, memory)
        });
        drawn.collect()
    }

    /// The draws of some texts from rows of logits of a rank's part of the vocabulary, which begins with id `first`: the same
    /// on every rank.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[Σ rows, token ids of this rank]`
    pub(crate) fn from_parts(
        texts: &[Self],
        logits: &[f32],
        first: u32,
        memory: &mut Memory,
        exchange: &mut impl Exchange,
    ) -> Vec<Vec<u32>> {
        let rows: usize = texts.iter().map(Self::rows).sum();
        let mut logits = logits.chunks_exact((logits.len() / rows.max(1)).max(1));
        let rows = texts.iter().flat_map(|draws| {
            let of_text = logits.by_ref().take(draws.rows()).enumerate();
            let rows = of_text.map(|(place, logits)| draws.row(place, logits));
            rows.collect::<Vec<Row>>()
        });
        let mut drawn = draw(&rows.collect::<Vec<Row>>(), first, memory, exchange).into_iter();
        let of_texts = texts.iter().map(|draws| {
            let mut of_text: Vec<u32> = drawn.by_ref().take(draws.rows()).collect();
            let agree = of_text.iter().zip(draws.draft());
            let agree = agree
                .take_while(|(drawn, drafted)| drawn == drafted)
                .count();
            of_text.truncate(agree + 1);
            of_text
        });
        of_texts.collect()
    }
}
