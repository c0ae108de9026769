//! Several draws of a text at once, along a draft of it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Alone, Exchange, Memory, Row, Sampling, Scored, ScoredRow, draw, score};

/// The draws of one sequence in a step: the next token, and one after each drafted token that was drawn itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draws<'a> {
    sampling: Sampling,
    /// What is added to the logits of some tokens.
    bias: Cow<'a, [(u32, f32)]>,
    /// How many of the likeliest tokens come with the score of what is drawn; `None` if it is not scored.
    likeliest: Option<usize>,
    /// Number of tokens that were generated before the draft.
    position: usize,
    /// Number of tokens of the prompt at the beginning of `text`.
    prompt: usize,
    /// Prompt, generated and drafted tokens.
    text: Cow<'a, [u32]>,
    /// Number of drafted tokens at the end of `text`.
    drafted: usize,
}

/// What was drawn for a sequence in a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    /// The tokens, up to the first one that its draft does not have.
    pub tokens: Vec<u32>,
    /// The scores of the tokens that were given, if there were any.
    pub targets: Vec<Scored>,
    /// Those of the tokens that were drawn, if they were asked for.
    pub scores: Vec<Scored>,
}

impl<'a> Draws<'a> {
    /// The draws after a text, whose first `prompt` tokens are its prompt, with a draft.
    pub fn new(sampling: Sampling, text: &'a [u32], prompt: usize, draft: &[u32]) -> Self {
        Self {
            sampling,
            bias: Cow::Borrowed(&[]),
            likeliest: None,
            position: text.len() - prompt,
            prompt,
            text: match draft {
                [] => Cow::Borrowed(text),
                draft => Cow::Owned([text, draft].concat()),
            },
            drafted: draft.len(),
        }
    }

    /// The same draws after something is added to the logits of some tokens, before everything else that changes them.
    #[must_use]
    pub fn biased(mut self, bias: &'a [(u32, f32)]) -> Self {
        self.bias = Cow::Borrowed(bias);
        self
    }

    /// The same draws, with a score of each token and so many of the likeliest ones, if that is given.
    #[must_use]
    pub fn scored(mut self, likeliest: Option<usize>) -> Self {
        self.likeliest = likeliest;
        self
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
                bias: Cow::Borrowed(&self.bias),
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
            bias: &self.bias,
            prompt,
            generated: &generated[..generated.len() - self.drafted + place],
            position: self.position + place,
        }
    }

    /// Draws from rows of logits of the whole vocabulary, one after the other.
    pub(crate) fn alone(&self, logits: &[&[f32]], memory: &mut Memory) -> Vec<u32> {
        let mut drawn = Vec::with_capacity(self.rows());
        for (place, logits) in logits.iter().enumerate() {
            let token = draw(&[self.row(place, logits)], 0, memory, &mut Alone)[0];
            drawn.push(token);
            if self.draft().get(place) != Some(&token) {
                break;
            }
        }
        drawn
    }

    /// The draws of some texts from rows of logits of a rank's part of the vocabulary, which begins with id `first`: the same
    /// on every rank.
    fn together(
        texts: &[(&Self, &[&[f32]])],
        first: u32,
        memory: &mut Memory,
        exchange: &mut impl Exchange,
    ) -> Vec<Vec<u32>> {
        let rows = texts.iter().flat_map(|(draws, logits)| {
            let rows = logits.iter().enumerate();
            rows.map(|(place, logits)| draws.row(place, logits))
        });
        let rows: Vec<Row> = rows.collect();
        let mut drawn = draw(&rows, first, memory, exchange).into_iter();
        let of_texts = texts.iter().map(|(draws, _)| {
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

/// Tokens that are given and scored, each after the tokens before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Targets<'a> {
    /// One after each of some neighbouring tokens of a step.
    pub tokens: Cow<'a, [u32]>,
    /// How many of the likeliest tokens come with each score.
    pub likeliest: usize,
}

/// What is asked of the logits after the last tokens of a sequence in a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Asked<'a> {
    /// Of the first of these logits.
    pub targets: Option<Targets<'a>>,
    /// Of the rest.
    pub draws: Option<Draws<'a>>,
}

impl<'a> Asked<'a> {
    /// Nothing but draws.
    pub fn draws(draws: Draws<'a>) -> Self {
        Self {
            targets: None,
            draws: Some(draws),
        }
    }

    /// Rows of logits that this takes.
    pub fn rows(&self) -> usize {
        self.given().len() + self.draws.as_ref().map_or(0, Draws::rows)
    }

    fn given(&self) -> &[u32] {
        self.targets.as_ref().map_or(&[], |targets| &targets.tokens)
    }

    /// The same, without the tokens that do not matter to it.
    pub(crate) fn stripped(&self) -> Asked<'_> {
        Asked {
            targets: self.targets.as_ref().map(|targets| Targets {
                tokens: Cow::Borrowed(&targets.tokens),
                ..*targets
            }),
            draws: self.draws.as_ref().map(Draws::stripped),
        }
    }

    /// What is asked of some sequences, one after the other, from rows of logits of a rank's part of the vocabulary, which
    /// begins with id `first`: the same on every rank.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[Σ rows, token ids of this rank]`
    pub(crate) fn answer(
        sequences: &[Self],
        logits: &[f32],
        first: u32,
        memory: &mut Memory,
        exchange: &mut impl Exchange,
    ) -> Vec<Drawn> {
        let rows: usize = sequences.iter().map(Self::rows).sum();
        let mut logits = logits.chunks_exact((logits.len() / rows.max(1)).max(1));
        let logits: Vec<Vec<&[f32]>> = sequences
            .iter()
            .map(|asked| logits.by_ref().take(asked.rows()).collect())
            .collect();
        let draws = sequences.iter().zip(&logits).filter_map(|(asked, logits)| {
            let draws = asked.draws.as_ref()?;
            Some((draws, &logits[asked.given().len()..]))
        });
        let draws: Vec<(&Draws, &[&[f32]])> = draws.collect();
        let drawn: Vec<Vec<u32>> = match (draws.is_empty(), exchange.ranks()) {
            (true, _) => Vec::new(),
            (false, 1) => draws
                .iter()
                .map(|(draws, logits)| draws.alone(logits, memory))
                .collect(),
            (false, _) => Draws::together(&draws, first, memory, exchange),
        };
        let mut drawn = drawn.into_iter();
        let tokens = sequences.iter().map(|asked| match asked.draws {
            Some(_) => drawn.next().expect("what was drawn"),
            None => Vec::new(),
        });
        let tokens: Vec<Vec<u32>> = tokens.collect();

        let of_each: Vec<Vec<ScoredRow>> = sequences
            .iter()
            .zip(&logits)
            .zip(&tokens)
            .map(|((asked, logits), tokens)| asked.scored_rows(logits, tokens))
            .collect();
        let mut scores = score(&of_each.concat(), first, exchange).into_iter();
        let counts = of_each.iter().map(Vec::len);
        let answers = sequences.iter().zip(tokens).zip(counts);
        let answers = answers.map(|((asked, tokens), count)| {
            let targets: Vec<Scored> = scores.by_ref().take(asked.given().len()).collect();
            let of_drawn = count - targets.len();
            Drawn {
                tokens,
                targets,
                scores: scores.by_ref().take(of_drawn).collect(),
            }
        });
        answers.collect()
    }

    /// What is scored, after these tokens were drawn.
    fn scored_rows<'b>(&self, logits: &[&'b [f32]], drawn: &[u32]) -> Vec<ScoredRow<'b>> {
        let (given, after) = logits.split_at(self.given().len());
        let row = |likeliest| {
            move |(&id, &logits): (&u32, &&'b [f32])| ScoredRow {
                logits,
                id,
                likeliest,
            }
        };
        let mut rows = Vec::new();
        if let Some(targets) = &self.targets {
            let targets_of = targets.tokens.iter().zip(given);
            rows.extend(targets_of.map(row(targets.likeliest)));
        }
        if let Some(likeliest) = self.draws.as_ref().and_then(|draws| draws.likeliest) {
            rows.extend(drawn.iter().zip(after).map(row(likeliest)));
        }
        rows
    }
}
