//! What each text takes part in a step with.

use std::time::Instant;

use super::Engine;
use super::draft::Drafted;
use crate::network::Network;

/// Logits of scored tokens of a step, of all their vocabulary: 64 MiB.
const SCORED_LOGITS: usize = 1 << 24;

/// What a text takes part in a step with.
#[derive(Debug)]
pub struct Part {
    pub place: usize,
    /// Those that are read, and the drafted ones.
    pub tokens: Vec<u32>,
    pub drafted: Drafted,
    /// Whether the next token is drawn, since all of the text is read then.
    pub draws: bool,
}

impl Part {
    /// Whether it reads nothing but the token that was drawn last.
    pub fn is_next(&self) -> bool {
        self.draws && self.tokens.len() == self.drafted.len() + 1
    }
}

/// How much a text is to read in a step.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    pub place: usize,
    /// Tokens, at least one.
    pub tokens: usize,
    /// Whether the next token is drawn.
    pub draws: bool,
    /// The most tokens to draft.
    pub most: usize,
}

/// Seconds of drafting.
#[derive(Debug, Clone, Copy)]
pub struct DraftSeconds {
    /// To draft one token for each text; `None` where that is not known.
    pub round: Option<f64>,
    /// All drafting of the step.
    pub all: f64,
}

impl<N: Network + ?Sized> Engine<'_, N> {
    /// What each text of a group that does not wait is to read, in the order in which they came where there are prompts to
    /// read; and the number of tokens that are wanted of the draft for each.
    pub(super) fn reads(&self, group: usize, waits: &[bool]) -> (Vec<Read>, usize) {
        let config = self.network.config();
        let cached = self.network.cache().lengths();
        let texts = self.places(group).filter_map(|place| {
            let text = self.texts[place].as_ref()?;
            (text.end().is_none() && !waits[place]).then_some((place, text))
        });
        let mut texts: Vec<_> = texts.collect();
        texts.sort_unstable_by_key(|(_, text)| text.number);
        let writes = |&&(place, text): &&(usize, _)| {
            let text: &super::text::Text = text;
            text.unread(cached[place]).len() == 1 && text.remaining() > 0
        };
        let writing = texts.iter().filter(writes).count();
        let depth = match self.drafter.drafts() {
            true => self.pace.draft_tokens(writing),
            false => 0,
        };
        let mut room = self.options.step_tokens;
        let mut scored = (SCORED_LOGITS / config.vocab_size).max(1);
        let mut reads = Vec::with_capacity(texts.len());
        for entry in &texts {
            let &(place, text) = entry;
            let unread = text.unread(cached[place]).len();
            if writes(&entry) {
                // Neither beyond the context nor beyond what is to be generated, of which a step draws one itself.
                let most = depth
                    .min(config.context_length - text.window().len())
                    .min(text.remaining() - 1);
                reads.push(Read {
                    place,
                    tokens: 1,
                    draws: true,
                    most,
                });
                continue;
            }
            let mut tokens = unread.min(room);
            if text.needs_scores() {
                tokens = tokens.min(scored);
                scored -= tokens;
            }
            room -= tokens;
            if tokens > 0 {
                reads.push(Read {
                    place,
                    tokens,
                    draws: tokens == unread && text.remaining() > 0,
                    most: 0,
                });
            }
        }
        reads.sort_unstable_by_key(|read| read.place);
        (reads, depth)
    }

    /// The tokens that are read, with drafts where they are wanted, and the seconds of drafting.
    pub(super) fn parts(&mut self, reads: Vec<Read>) -> (Vec<Part>, DraftSeconds) {
        let started = Instant::now();
        let mut most = vec![0; self.texts.len()];
        for read in &reads {
            most[read.place] = read.most;
        }
        let (mut drafted, round) = match most.iter().any(|&most| most > 0) {
            true => self.drafter.draft(&mut self.texts, &most),
            false => (vec![Vec::new(); most.len()], None),
        };
        let seconds = DraftSeconds {
            round,
            all: started.elapsed().as_secs_f64(),
        };
        let cached = self.network.cache().lengths();
        let parts = reads.into_iter().map(|read| {
            let text = self.texts[read.place].as_ref();
            let unread = text
                .expect("a text in its place")
                .unread(cached[read.place]);
            let drafted = std::mem::take(&mut drafted[read.place]);
            Part {
                place: read.place,
                tokens: [&unread[..read.tokens], &drafted].concat(),
                drafted,
                draws: read.draws,
            }
        });
        (parts.collect(), seconds)
    }
}
