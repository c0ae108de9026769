//! Many texts at once.

use std::collections::VecDeque;
use std::time::Instant;

use super::draft::{Drafted, Drafter};
use super::pace::{Pace, Step};
use super::verify::verify;
use super::{Draft, End, Ended, Options, Receiver, Request, Statistics};
use crate::cache::CacheShape;
use crate::config::ModelConfig;
use crate::network::{self, Network};
use crate::sampling::{Draws, Sampling};

/// The most tokens of prompts that a step reads, which bounds its memory.
pub const STEP_TOKENS: usize = 1024;

/// A text in the making.
#[derive(Debug)]
pub struct Text {
    /// Of its request.
    number: usize,
    sampling: Sampling,
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
            sampling: request.sampling,
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

    /// What is drawn after the text, along a draft.
    pub fn draws(&self, draft: &[u32]) -> Draws<'_> {
        Draws::new(self.sampling, &self.tokens, self.prompt, draft)
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

/// A step that was submitted.
struct Flight {
    /// Which of the groups of texts it is of.
    group: usize,
    parts: Vec<Part>,
    /// Tokens that were wanted of the draft for each text.
    wanted: usize,
    draft: DraftSeconds,
    started: Instant,
}

/// Continues texts, up to `options.batch` at once, and tells the receiver. A text takes the place of one that ended; its
/// request is asked for no earlier.
///
/// The texts take turns in `options.in_flight` groups: while a step of one group is under way, the steps of the others are
/// submitted, so that every stage of a pipeline has something to do.
///
/// What is generated for a request is what [`generate`](super::generate) gives, but for rounding.
///
/// # Panics
///
/// When a prompt is empty or has a token that is not in the vocabulary, a draft model has a vocabulary of another size,
/// or `options.batch` or `options.in_flight` is 0.
pub fn generate_all(
    network: &mut (impl Network + ?Sized),
    requests: impl IntoIterator<Item = Request>,
    options: &Options,
    receiver: &mut impl Receiver,
) -> Statistics {
    if let Draft::Model(draft) = options.draft {
        assert_eq!(
            draft.config().vocab_size,
            network.config().vocab_size,
            "the vocabularies of a model and its draft"
        );
    }
    assert!(options.batch > 0, "a batch has at least one text");
    assert!(options.in_flight > 0, "at least one step is under way");
    let groups = options.in_flight.min(options.batch);
    network.begin(options.batch);
    let mut batch = Batch {
        network,
        eos_ids: options.eos_ids,
        texts: (0..options.batch).map(|_| None).collect(),
        groups,
        drafter: Drafter::new(options.draft, options.batch),
        pace: Pace::new(options.draft_tokens),
        finished: None,
        statistics: Statistics::default(),
    };
    let mut requests = requests.into_iter().enumerate();
    let mut in_flight: VecDeque<Flight> = VecDeque::new();
    // In the order in which their last steps ended.
    let mut idle: VecDeque<usize> = (0..groups).collect();
    loop {
        for _ in 0..idle.len() {
            let group = idle.pop_front().expect("as many as were counted");
            batch.fill(group, &mut requests, receiver);
            match batch.submit(group) {
                Some(flight) => in_flight.push_back(flight),
                None => idle.push_back(group),
            }
        }
        let Some(flight) = in_flight.pop_front() else {
            if batch.texts.iter().all(Option::is_none) {
                return batch.statistics;
            }
            continue;
        };
        idle.push_back(flight.group);
        batch.finish(flight, receiver);
    }
}

struct Batch<'a, N: ?Sized> {
    network: &'a mut N,
    eos_ids: &'a [u32],
    /// By place in the cache.
    texts: Vec<Option<Text>>,
    /// Number of groups; a text's is the remainder of its place.
    groups: usize,
    drafter: Drafter<'a>,
    pace: Pace,
    /// When the last step was finished.
    finished: Option<Instant>,
    statistics: Statistics,
}

impl<N: Network + ?Sized> Batch<'_, N> {
    /// The places of a group.
    fn places(&self, group: usize) -> impl Iterator<Item = usize> + use<N> {
        (group..self.texts.len()).step_by(self.groups)
    }

    /// Takes out the texts of a group that ended, and gives free places to the next requests.
    fn fill(
        &mut self,
        group: usize,
        requests: &mut impl Iterator<Item = (usize, Request)>,
        receiver: &mut impl Receiver,
    ) {
        for place in self.places(group) {
            let text = &mut self.texts[place];
            let ended = text.take_if(|text| text.end.is_some());
            if let Some(ended) = &ended {
                ended.tell(receiver);
            }
            while text.is_none()
                && let Some((number, request)) = requests.next()
            {
                let new = text.insert(Text::new(number, request, self.network.config()));
                if new.end.is_some() {
                    new.tell(receiver);
                    *text = None;
                }
            }
            if let Some(ended) = ended {
                // What the next text begins with stays.
                let cached = self.network.cache().lengths()[place];
                let alike = text.as_ref().map_or(0, |text| text.alike(&ended));
                let kept = alike.min(cached);
                self.statistics.shared += kept;
                self.network.truncate(place, kept);
                self.drafter.truncate(place, kept);
            }
        }
    }

    /// Gives texts of a group what others have read of the same beginning, in whole blocks, where that is more than they have
    /// themselves. Returns which texts wait for another one to read what they begin with.
    fn share(&mut self, group: usize) -> Vec<bool> {
        let block = self.network.cache().block_tokens();
        let mut waits = vec![false; self.texts.len()];
        for place in 0..self.texts.len() {
            let cached = self.network.cache().lengths();
            let own = cached[place];
            let Some(text) = &self.texts[place] else {
                continue;
            };
            if (text.window().len() - 1) / block * block <= own {
                // It has as many whole blocks as it could get.
                continue;
            }
            // Those that are further, or as far and in front, so that no two wait for each other.
            let others = self.texts.iter().enumerate().filter(|&(other, _)| {
                !waits[other] && (cached[other] > own || cached[other] == own && other < place)
            });
            let alike = others.filter_map(|(other, of)| {
                let of = of.as_ref()?;
                let alike = text.alike(of);
                let alike = match of.end {
                    None => alike,
                    // It reads no more.
                    Some(_) => alike.min(cached[other]),
                };
                let alike = alike / block * block;
                Some((alike, alike.min(cached[other]), other))
            });
            let longest = alike.max().filter(|(alike, ..)| *alike > own);
            let Some((alike, read, other)) = longest else {
                continue;
            };
            if read < alike {
                waits[place] = true;
            } else if place % self.groups == group {
                self.network.truncate(place, 0);
                self.network.fork(other, alike, place);
                self.statistics.shared += alike - own;
            }
        }
        waits
    }

    /// Begins a step of a group; `None` if it has nothing to do now.
    fn submit(&mut self, group: usize) -> Option<Flight> {
        let started = Instant::now();
        let context = self.network.config().context_length;
        for place in self.places(group) {
            let text = self.texts[place].as_mut();
            if text.is_some_and(|text| text.cut(context)) {
                self.network.truncate(place, 0);
                self.drafter.truncate(place, 0);
            }
        }
        let waits = self.share(group);
        let (parts, wanted, draft) = self.parts(group, &waits);
        if parts.is_empty() {
            return None;
        }
        let of_network = parts.iter().map(|part| {
            let text = self.texts[part.place].as_ref();
            let text = text.expect("a text in its place");
            network::Part {
                sequence: part.place,
                tokens: part.tokens.as_slice().into(),
                draws: part.draws.then(|| text.draws(&part.drafted)),
            }
        });
        self.network.submit(&of_network.collect::<Vec<_>>());
        let cache = self.network.cache();
        let held = cache.held_blocks() * cache.block_tokens();
        let bytes = held * CacheShape::from(self.network.config()).token_bytes();
        self.statistics.cache_bytes = self.statistics.cache_bytes.max(bytes);
        Some(Flight {
            group,
            parts,
            wanted,
            draft,
            started,
        })
    }

    /// Takes what came of a step.
    fn finish(&mut self, flight: Flight, receiver: &mut impl Receiver) {
        let Flight {
            parts,
            wanted,
            draft,
            started,
            ..
        } = flight;
        let before = self.statistics;
        let drawn = self.network.drawn();
        for (part, drawn) in parts.iter().filter(|part| part.draws).zip(drawn) {
            let accepted = self.take(part, &drawn, receiver);
            self.pace.compared(part.drafted.len(), accepted);
        }
        // Of steps that overlap, each counts for the time since the one before.
        let started = self.finished.map_or(started, |before| before.max(started));
        self.finished = Some(Instant::now());
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

    /// What each text of a group that does not wait takes part with, the number of tokens that were wanted of the draft for
    /// each, and the seconds of drafting.
    fn parts(&mut self, group: usize, waits: &[bool]) -> (Vec<Part>, usize, DraftSeconds) {
        let context = self.network.config().context_length;
        let mut unread = vec![0; self.texts.len()];
        for place in self.places(group) {
            if let Some(text) = &self.texts[place] {
                unread[place] = text.window().len() - self.network.cache().lengths()[place];
            }
        }
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

    /// Appends to a text what was drawn. Returns how many drafted tokens were drawn.
    fn take(&mut self, part: &Part, drawn: &[u32], receiver: &mut impl Receiver) -> usize {
        let text = self.texts[part.place]
            .as_mut()
            .expect("a text in its place");
        let (read, before) = (text.window().len(), text.tokens.len());
        let is_eos = |id: u32| self.eos_ids.contains(&id);
        let accepted = verify(drawn, &mut text.tokens, &part.drafted, is_eos);
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
        self.network.truncate(part.place, read + accepted);
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
