//! Drafted tokens.

use std::time::Instant;

use super::text::Text;
use super::{Draft, STEP_TOKENS, lookup};
use crate::network::{Local, Network, Part, Session};
use crate::sampling::Asked;

/// Makes drafts for the texts of a batch.
#[derive(Debug)]
pub enum Drafter<'a> {
    None,
    Lookup,
    Model(Box<DraftModel<'a>>),
}

/// The tokens that were drafted for a text.
pub type Drafted = Vec<u32>;

impl<'a> Drafter<'a> {
    /// For so many places.
    pub fn new(draft: Draft<'a>, places: usize) -> Self {
        match draft {
            Draft::None => Self::None,
            Draft::PromptLookup => Self::Lookup,
            Draft::Model(model) => {
                let mut network = Local::new(model);
                network.begin(Session::new(places));
                Self::Model(Box::new(DraftModel { network }))
            }
        }
    }

    /// Whether there can be a draft at all.
    pub fn drafts(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Drafts up to so many tokens for each text, which is the one of its place in the cache. Returns also the seconds
    /// that one more token for each text takes; `None` where that is not known.
    pub fn draft(
        &mut self,
        texts: &mut [Option<Text>],
        most: &[usize],
    ) -> (Vec<Drafted>, Option<f64>) {
        match self {
            Self::None => (vec![Vec::new(); texts.len()], Some(0.0)),
            Self::Lookup => {
                let found = texts.iter().zip(most).map(|(text, &most)| match text {
                    Some(text) if most > 0 => lookup::continuation(&text.tokens, most),
                    _ => Vec::new(),
                });
                (found.collect(), Some(0.0))
            }
            Self::Model(draft) => draft.draft(texts, most),
        }
    }

    /// Forgets what follows the first `length` tokens of a text's window.
    pub fn truncate(&mut self, place: usize, length: usize) {
        if let Self::Model(draft) = self {
            let cached = draft.network.cache().lengths()[place];
            draft.network.truncate(place, cached.min(length));
        }
    }
}

/// A model that drafts, with a cache of the same places.
#[derive(Debug)]
pub struct DraftModel<'a> {
    network: Local<'a>,
}

impl DraftModel<'_> {
    fn draft(&mut self, texts: &mut [Option<Text>], most: &[usize]) -> (Vec<Drafted>, Option<f64>) {
        let mut drafted = vec![Vec::new(); texts.len()];
        let context = self.network.config().context_length;
        // The last drafted token is not read any more.
        let most: Vec<usize> = texts
            .iter()
            .zip(most)
            .map(|(text, &most)| match text {
                Some(text) => most.min((context + 1).saturating_sub(text.window().len())),
                None => 0,
            })
            .collect();
        while self.read(texts, &most) {}
        let started = Instant::now();
        let rounds = most.iter().copied().max().unwrap_or(0);
        for round in 0..rounds {
            let of_round = texts.iter().enumerate();
            let of_round = of_round.filter(|(place, _)| most[*place] > round);
            let parts = of_round.filter_map(|(place, text)| {
                let text = text.as_ref()?;
                Some(Part {
                    sequence: place,
                    tokens: text.window()[self.network.cache().lengths()[place]..].into(),
                    asked: Asked::draws(text.draws(&[]).scored(None)),
                })
            });
            let parts: Vec<Part> = parts.collect();
            let places: Vec<usize> = parts.iter().map(|part| part.sequence).collect();
            self.network.submit(&parts);
            for (place, drawn) in places.into_iter().zip(self.network.drawn()) {
                if let Some(text) = &mut texts[place] {
                    text.tokens.extend(&drawn.tokens);
                    drafted[place].extend(drawn.tokens);
                }
            }
        }
        for (text, drafted) in texts.iter_mut().zip(&drafted) {
            if let Some(text) = text {
                text.tokens.truncate(text.tokens.len() - drafted.len());
            }
        }
        let seconds = started.elapsed().as_secs_f64() / rounds.max(1) as f64;
        (drafted, (rounds > 0).then_some(seconds))
    }

    /// Reads a part of what the draft model has not read yet of the texts that it is asked for, but for the last few
    /// tokens. Returns whether there was any.
    fn read(&mut self, texts: &[Option<Text>], most: &[usize]) -> bool {
        let mut room = STEP_TOKENS;
        let mut parts = Vec::new();
        for (place, (text, &most)) in texts.iter().zip(most).enumerate() {
            let Some(text) = text.as_ref().filter(|_| most > 0) else {
                continue;
            };
            let unread = &text.window()[self.network.cache().lengths()[place]..];
            // Two are what a step leaves unread when all of its draft is accepted.
            if unread.len() > 2 && room > 0 {
                let tokens = &unread[..room.min(unread.len() - 1)];
                room -= tokens.len();
                parts.push(Part {
                    sequence: place,
                    tokens: tokens.into(),
                    asked: Asked::default(),
                });
            }
        }
        if !parts.is_empty() {
            self.network.submit(&parts);
            self.network.drawn();
        }
        !parts.is_empty()
    }
}
