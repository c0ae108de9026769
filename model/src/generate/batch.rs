//! Many texts at once.

use std::time::Instant;

use burn::tensor::Tensor;

use super::draft::{Drafted, Drafter};
use super::pace::{Pace, Step};
use super::verify::verify;
use super::{Draft, End, Ended, Options, Receiver, Request, Statistics};
use crate::cache::KeyValueCache;
use crate::config::ModelConfig;
use crate::decode::Piece;
use crate::language_model::LanguageModel;
use crate::sampling::Sampler;

/// The most tokens of prompts that a step reads, which bounds its memory.
pub const STEP_TOKENS: usize = 1024;

/// Room in a cache for a text to begin with, in tokens.
const FIRST_ROOM: usize = 64;

/// A text in the making.
#[derive(Debug)]
pub struct Text {
    /// Of its request.
    number: usize,
    sampler: Sampler,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    /// Number of tokens of the prompt.
    prompt: usize,
    /// Where the part that the model reads begins.
    start: usize,
    /// The most tokens to generate.
    count: usize,
    cut: Option<usize>,
    end: Option<End>,
}

impl Text {
    fn new(number: usize, request: Request, config: &ModelConfig) -> Self {
        let prompt = request.prompt.len();
        assert!(prompt > 0, "a prompt has at least one token");
        let known = |&id: &u32| (id as usize) < config.vocab_size;
        assert!(
            request.prompt.iter().all(known),
            "a prompt's tokens are in the vocabulary"
        );
        Self {
            number,
            sampler: Sampler::new(request.sampling),
            tokens: request.prompt,
            prompt,
            start: prompt.saturating_sub(config.context_length),
            count: request.count,
            cut: None,
            end: (request.count == 0).then_some(End::Count),
        }
    }

    /// The tokens that the model reads.
    pub fn window(&self) -> &[u32] {
        &self.tokens[self.start..]
    }

    /// How many tokens the part that the model reads has in common with that of another text at their beginning, but for
    /// the last one, whose logits are needed.
    fn alike(&self, other: &Self) -> usize {
        let own = self.window();
        let alike = own[..own.len() - 1].iter().zip(other.window());
        alike.take_while(|(a, b)| a == b).count()
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// The next token, of these logits.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let (prompt, generated) = self.tokens.split_at(self.prompt);
        self.sampler.sample(logits, prompt, generated)
    }

    /// Drops the older half when there are more tokens than the context has; returns whether it did.
    fn cut(&mut self, context: usize) -> bool {
        let exceeds = self.window().len() > context;
        if exceeds {
            self.cut = self.cut.or(Some(self.generated()));
            self.start = self.tokens.len() - (context / 2).max(1);
        }
        exceeds
    }

    /// Tells the receiver of the end, if it has come.
    fn tell(&self, receiver: &mut impl Receiver) {
        if let Some(end) = self.end {
            let ended = Ended {
                end,
                tokens: self.generated(),
                cut: self.cut,
            };
            receiver.ended(self.number, ended);
        }
    }
}

/// What a text takes part in a step with.
struct Part {
    place: usize,
    tokens: Vec<u32>,
    drafted: Drafted,
    /// Whether the next token is drawn, since all of the text is read then.
    draws: bool,
}

/// Continues texts, up to `options.batch` at once, and tells the receiver. A text takes the place of one that ended; its
/// request is asked for no earlier.
///
/// What is generated for a request is what [`generate`](super::generate) gives, but for rounding.
///
/// # Panics
///
/// When a prompt is empty or has a token that is not in the vocabulary, a draft model has a vocabulary of another size,
/// or `options.batch` is 0.
pub fn generate_all(
    model: &LanguageModel,
    requests: impl IntoIterator<Item = Request>,
    options: &Options,
    receiver: &mut impl Receiver,
) -> Statistics {
    let config = model.config();
    if let Draft::Model(draft) = options.draft {
        assert_eq!(
            draft.config().vocab_size,
            config.vocab_size,
            "the vocabularies of a model and its draft"
        );
    }
    assert!(options.batch > 0, "a batch has at least one text");
    let device = model.embedding.lazy_device();
    let mut batch = Batch {
        model,
        eos_ids: options.eos_ids,
        texts: (0..options.batch).map(|_| None).collect(),
        cache: KeyValueCache::new(
            config,
            options.batch,
            FIRST_ROOM.min(config.context_length),
            &device,
        ),
        drafter: Drafter::new(options.draft, options.batch),
        pace: Pace::new(options.draft_tokens),
        statistics: Statistics::default(),
    };
    let mut requests = requests.into_iter().enumerate();
    loop {
        batch.fill(&mut requests, receiver);
        if batch.texts.iter().all(Option::is_none) {
            return batch.statistics;
        }
        batch.step(receiver);
    }
}

struct Batch<'a> {
    model: &'a LanguageModel,
    eos_ids: &'a [u32],
    /// By place in the cache.
    texts: Vec<Option<Text>>,
    cache: KeyValueCache,
    drafter: Drafter<'a>,
    pace: Pace,
    statistics: Statistics,
}

impl Batch<'_> {
    /// Takes out the texts that ended, and gives free places to the next requests.
    fn fill(
        &mut self,
        requests: &mut impl Iterator<Item = (usize, Request)>,
        receiver: &mut impl Receiver,
    ) {
        for (place, text) in self.texts.iter_mut().enumerate() {
            let ended = text.take_if(|text| text.end.is_some());
            if let Some(ended) = &ended {
                ended.tell(receiver);
            }
            while text.is_none()
                && let Some((number, request)) = requests.next()
            {
                let new = text.insert(Text::new(number, request, self.model.config()));
                if new.end.is_some() {
                    new.tell(receiver);
                    *text = None;
                }
            }
            if let Some(ended) = ended {
                // What the next text begins with stays.
                let cached = self.cache.lengths()[place];
                let alike = text.as_ref().map_or(0, |text| text.alike(&ended));
                let kept = alike.min(cached);
                self.statistics.shared += kept;
                self.cache.truncate(place, kept);
                self.drafter.truncate(place, kept);
            }
        }
    }

    /// Gives texts what others have read of the same beginning, in whole blocks, where that is more than they have
    /// themselves. Returns which texts wait for another one to read what they begin with.
    fn share(&mut self) -> Vec<bool> {
        let block = self.cache.block_tokens();
        let mut waits = vec![false; self.texts.len()];
        for place in 0..self.texts.len() {
            let cached = self.cache.lengths();
            let own = cached[place];
            let Some(text) = &self.texts[place] else {
                continue;
            };
            // Those that are further, or as far and in front, so that no two wait for each other.
            let others = self.texts.iter().enumerate().filter(|&(other, _)| {
                !waits[other] && (cached[other] > own || cached[other] == own && other < place)
            });
            let alike = others.filter_map(|(other, of)| {
                let alike = text.alike(of.as_ref()?) / block * block;
                Some((alike, alike.min(cached[other]), other))
            });
            match alike.max() {
                Some((alike, read, other)) if alike > own && read == alike => {
                    self.cache.truncate(place, 0);
                    self.cache.fork(other, alike, place);
                    self.statistics.shared += alike - own;
                }
                Some((alike, ..)) => waits[place] = alike > own,
                None => {}
            }
        }
        waits
    }

    fn step(&mut self, receiver: &mut impl Receiver) {
        let started = Instant::now();
        let context = self.model.config().context_length;
        for place in 0..self.texts.len() {
            let text = self.texts[place].as_mut();
            if text.is_some_and(|text| text.cut(context)) {
                self.cache.truncate(place, 0);
                self.drafter.truncate(place, 0);
            }
        }
        let waits = self.share();
        let (parts, wanted, draft) = self.parts(&waits);
        let pieces = parts.iter().map(|part| Piece {
            sequence: part.place,
            tokens: &part.tokens,
            logits: usize::from(part.draws) * (part.drafted.len() + 1),
        });
        let logits = rows(
            self.model
                .decode(&pieces.collect::<Vec<_>>(), &mut self.cache),
        );
        let held = self.cache.held_blocks() * self.cache.block_bytes();
        self.statistics.cache_bytes = self.statistics.cache_bytes.max(held);
        let vocab_size = self.model.config().vocab_size;
        let before = self.statistics;
        let mut logits = logits.as_slice();
        for part in parts.iter().filter(|part| part.draws) {
            let (of_part, rest) = logits.split_at((part.drafted.len() + 1) * vocab_size);
            logits = rest;
            let accepted = self.draw(part, of_part, receiver);
            self.pace.compared(part.drafted.len(), accepted);
        }
        // Steps that read prompts tell nothing of those that do not.
        if parts
            .iter()
            .all(|part| part.tokens.len() == part.drafted.len() + 1)
        {
            self.pace.record(Step {
                texts: parts.len(),
                wanted,
                drafted: self.statistics.drafted - before.drafted,
                tokens: self.statistics.tokens - before.tokens,
                seconds: started.elapsed().as_secs_f64(),
                draft_seconds: draft.all,
                round_seconds: draft.round,
            });
        }
    }

    /// What each text that does not wait takes part with, the number of tokens that were wanted of the draft for each, and
    /// the seconds of drafting.
    fn parts(&mut self, waits: &[bool]) -> (Vec<Part>, usize, DraftSeconds) {
        let context = self.model.config().context_length;
        let unread: Vec<usize> = self
            .texts
            .iter()
            .zip(self.cache.lengths())
            .map(|(text, cached)| text.as_ref().map_or(0, |text| text.window().len() - cached))
            .collect();
        let writing = unread.iter().filter(|&&unread| unread == 1).count();
        let depth = match self.drafter.drafts() {
            true => self.pace.draft_tokens(writing),
            false => 0,
        };
        let most = self
            .texts
            .iter()
            .zip(&unread)
            .map(|(text, &unread)| match text {
                // Neither beyond the context nor beyond what is to be generated, of which a step draws one itself.
                Some(text) if unread == 1 => depth
                    .min(context - text.window().len())
                    .min(text.count - text.generated() - 1),
                _ => 0,
            });
        let most: Vec<usize> = most.collect();
        let started = Instant::now();
        let (drafted, round) = match most.iter().any(|&most| most > 0) {
            true => self.drafter.draft(&mut self.texts, &most),
            false => (vec![Vec::new(); most.len()], None),
        };
        let seconds = DraftSeconds {
            round,
            all: started.elapsed().as_secs_f64(),
        };
        let mut room = STEP_TOKENS;
        let mut parts = Vec::with_capacity(self.texts.len());
        for (place, drafted) in drafted.into_iter().enumerate() {
            let Some(text) = self.texts[place].as_ref().filter(|_| !waits[place]) else {
                continue;
            };
            let window = text.window();
            let unread = &window[window.len() - unread[place]..];
            let read = match unread.len() {
                1 => 1,
                prompt => prompt.min(room),
            };
            if read == 0 {
                continue;
            }
            if unread.len() > 1 {
                room -= read;
            }
            parts.push(Part {
                place,
                draws: read == unread.len(),
                tokens: [&unread[..read], &drafted].concat(),
                drafted,
            });
        }
        (parts, depth, seconds)
    }

    /// Draws the next tokens of a text. Returns how many drafted tokens were drawn.
    fn draw(&mut self, part: &Part, logits: &[f32], receiver: &mut impl Receiver) -> usize {
        let text = self.texts[part.place]
            .as_mut()
            .expect("a text in its place");
        let (read, before) = (text.window().len(), text.tokens.len());
        let is_eos = |id: u32| self.eos_ids.contains(&id);
        let (sampler, tokens) = (&mut text.sampler, &mut text.tokens);
        let accepted = verify(sampler, logits, tokens, text.prompt, &part.drafted, is_eos);
        for place in before..text.tokens.len() {
            let id = text.tokens[place];
            if is_eos(id) {
                text.end = Some(End::Eos);
                text.tokens.truncate(place);
                break;
            }
            if !receiver.token(text.number, id) {
                text.end = Some(End::Stopped);
                text.tokens.truncate(place + 1);
                break;
            }
        }
        if text.end.is_none() && text.generated() == text.count {
            text.end = Some(End::Count);
        }
        self.cache.truncate(part.place, read + accepted);
        self.drafter.truncate(part.place, read + accepted);
        self.statistics.draws += 1;
        self.statistics.tokens += text.tokens.len() - before;
        self.statistics.drafted += part.drafted.len();
        self.statistics.accepted += accepted;
        accepted
    }
}

/// Seconds of drafting.
#[derive(Debug, Clone, Copy)]
pub struct DraftSeconds {
    /// To draft one token for each text; `None` where that is not known.
    pub round: Option<f64>,
    /// All drafting of the step.
    pub all: f64,
}

/// Logits on the host, in row-major order.
pub fn rows(logits: Option<Tensor<2>>) -> Vec<f32> {
    logits.map_or_else(Vec::new, |logits| {
        let data = logits.into_data();
        data.try_into_vec().expect("logits in f32")
    })
}
