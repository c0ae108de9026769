//! Many texts at once, which may come and go while others are in the making.

use std::collections::VecDeque;
use std::time::Instant;

use super::draft::Drafter;
use super::pace::{Pace, Step};
use super::parts::{DraftSeconds, Part};
use super::text::Text;
use super::{Draft, End, Options, Receiver, Request, Statistics};
use crate::cache::CacheShape;
use crate::config::ModelConfig;
use crate::moe::loads::ExpertLoads;
use crate::network::{self, Network, Session};
use crate::sampling::{Asked, Drawn};
use crate::vision::{Picture, PictureKeys};

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

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Tokens that the network read for them.
    pub tokens: usize,
    /// Seconds since it began or the step before ended, whichever was later.
    pub seconds: f64,
    /// For each text with a draft, the tokens that were drafted and those that were accepted.
    pub drafts: Vec<[usize; 2]>,
}

/// Continues texts, up to [`Options::batch`] at once. A text takes the place of one that ended.
///
/// The texts take turns in [`Options::in_flight`] groups: while a step of one group is under way, the steps of the others are
/// submitted, so that every stage of a pipeline has something to do.
///
/// What is generated for a request is what [`generate`](super::generate) gives, but for rounding.
pub struct Engine<'a, N: Network + ?Sized> {
    pub(super) network: &'a mut N,
    pub(super) options: Options<'a>,
    /// By place in the cache; those that have ended too, until another text takes their place or their blocks.
    pub(super) texts: Vec<Option<Text>>,
    /// By place, when its text was last of use.
    pub(super) used: Vec<u64>,
    /// In the order in which they came.
    pub(super) waiting: VecDeque<Text>,
    /// Number of groups; a text's is the remainder of its place.
    pub(super) groups: usize,
    /// Groups of which no step is under way, in the order in which their last steps ended.
    idle: VecDeque<usize>,
    in_flight: VecDeque<Flight>,
    pub(super) drafter: Drafter<'a>,
    pub(super) pace: Pace,
    /// When the last step was finished.
    finished: Option<Instant>,
    requests: usize,
    pub(super) clock: u64,
    pub(super) statistics: Statistics,
}

impl<'a, N: Network + ?Sized> Engine<'a, N> {
    /// Begins anew with the network.
    ///
    /// # Panics
    ///
    /// When a draft model has a vocabulary of another size, `batch`, `in_flight` or `step_tokens` is 0, or a bounded cache
    /// has no room for a text of the whole context and a block more.
    pub fn new(network: &'a mut N, options: Options<'a>) -> Self {
        let config = network.config();
        if let Draft::Model(draft) = options.draft {
            assert_eq!(
                draft.config().vocab_size,
                config.vocab_size,
                "the vocabularies of a model and its draft"
            );
        }
        assert!(options.batch > 0, "a batch has at least one text");
        assert!(options.in_flight > 0, "at least one step is under way");
        assert!(options.step_tokens > 0, "a step reads at least one token");
        let least = least_blocks(config.context_length, options.block_tokens);
        assert!(
            options.blocks.is_none_or(|blocks| blocks >= least),
            "a cache of at least {least} blocks"
        );
        let groups = options.in_flight.min(options.batch);
        let places = options.batch + options.kept;
        network.begin(Session {
            sequences: places,
            blocks: options.blocks,
            block_tokens: options.block_tokens,
            counts_experts: options.counts_experts,
        });
        Self {
            network,
            texts: (0..places).map(|_| None).collect(),
            used: vec![0; places],
            waiting: VecDeque::new(),
            groups,
            idle: (0..groups).collect(),
            in_flight: VecDeque::new(),
            drafter: Drafter::new(options.draft, places),
            pace: Pace::new(options.draft_tokens),
            finished: None,
            requests: 0,
            clock: 0,
            statistics: Statistics::default(),
            options,
        }
    }

    /// Adds a request, and returns the number of its text. One that has nothing to compute ends at once.
    ///
    /// # Panics
    ///
    /// When the prompt is empty or has a token that is not in the vocabulary, or one that is to be scored exceeds the context.
    pub fn push(&mut self, request: Request, receiver: &mut impl Receiver) -> usize {
        let number = self.requests;
        self.requests += 1;
        let mut text = Text::new(number, request, self.network.config());
        match text.is_complete() {
            true => text.finish(End::Count, None, receiver),
            false => self.waiting.push_back(text),
        }
        number
    }

    /// Ends a text, if it has not ended, with [`End::Stopped`].
    pub fn cancel(&mut self, number: usize, receiver: &mut impl Receiver) {
        let waiting = self.waiting.iter().position(|text| text.number == number);
        if let Some(mut text) = waiting.and_then(|place| self.waiting.remove(place)) {
            text.finish(End::Stopped, None, receiver);
        }
        let mut texts = self.texts.iter_mut().flatten();
        let text = texts.find(|text| text.number == number && text.end().is_none());
        if let Some(text) = text {
            text.finish(End::Stopped, None, receiver);
        }
    }

    /// The configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        self.network.config()
    }

    /// The keys and values of pictures, for [`Request::pictures`]; texts that see the same pictures can share them.
    ///
    /// # Panics
    ///
    /// As [`Network::look`].
    pub fn look(&mut self, pictures: &[Picture]) -> PictureKeys {
        self.network.look(pictures)
    }

    /// Number of requests so far, which is the number of the next one's text.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// Number of texts in the making.
    pub fn running(&self) -> usize {
        let mut running = 0;
        for text in self.texts.iter().flatten() {
            running += usize::from(text.end().is_none());
        }
        running
    }

    /// Number of texts that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Blocks of the cache that texts in the making hold, and all blocks. What is kept of texts that have ended counts as
    /// free.
    pub fn blocks(&self) -> [usize; 2] {
        let cache = self.network.cache();
        let texts = self.texts.iter().enumerate();
        let running =
            texts.filter(|(_, text)| text.as_ref().is_some_and(|text| text.end().is_none()));
        [
            cache.held_blocks_of(running.map(|(place, _)| place)),
            cache.blocks(),
        ]
    }

    /// What was counted so far.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// See [`Network::expert_loads`].
    pub fn expert_loads(&mut self) -> Vec<ExpertLoads> {
        self.network.expert_loads()
    }

    /// Submits the steps that can be, waits for the oldest one, and tells the receiver what came of it; `None` if there is
    /// nothing to do.
    pub fn step(&mut self, receiver: &mut impl Receiver) -> Option<StepReport> {
        loop {
            for _ in 0..self.idle.len() {
                let group = self.idle.pop_front().expect("as many as were counted");
                self.fill(group);
                match self.submit(group, receiver) {
                    Some(flight) => self.in_flight.push_back(flight),
                    None => self.idle.push_back(group),
                }
            }
            if let Some(flight) = self.in_flight.pop_front() {
                self.idle.push_back(flight.group);
                return Some(self.finish(flight, receiver));
            }
            if self.waiting.is_empty() && self.running() == 0 {
                return None;
            }
        }
    }

    /// Whether there is nothing to do: no text is in the making or waits, and no step is under way.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty() && self.running() == 0
    }

    /// Whether no step of a group is under way.
    pub(super) fn is_idle(&self, group: usize) -> bool {
        let mut in_flight = self.in_flight.iter();
        in_flight.all(|flight| flight.group != group)
    }

    /// Whether a step is under way.
    pub(super) fn is_waiting_for_steps(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// The places of a group.
    pub(super) fn places(&self, group: usize) -> impl Iterator<Item = usize> + use<N> {
        (group..self.texts.len()).step_by(self.groups)
    }

    /// Begins a step of a group; `None` if it has nothing to do now.
    fn submit(&mut self, group: usize, receiver: &mut impl Receiver) -> Option<Flight> {
        let started = Instant::now();
        let context = self.network.config().context_length;
        for place in self.places(group) {
            let text = self.texts[place].as_mut();
            if text.is_some_and(|text| text.end().is_none() && text.cut(context)) {
                self.network.truncate(place, 0);
                self.drafter.truncate(place, 0);
            }
        }
        let waits = self.share(group);
        let (reads, wanted) = self.reads_that_fit(group, &waits)?;
        for read in &reads {
            let text = self.texts[read.place].as_mut();
            text.expect("a text in its place").begin(receiver);
        }
        let (parts, draft) = self.parts(reads);
        let of_network = parts.iter().map(|part| {
            let text = self.texts[part.place].as_ref();
            let text = text.expect("a text in its place");
            let cached = self.network.cache().lengths()[part.place];
            network::Part {
                sequence: part.place,
                tokens: part.tokens.as_slice().into(),
                asked: Asked {
                    targets: text.targets(cached, part.tokens.len() - part.drafted.len()),
                    draws: part.draws.then(|| text.draws(&part.drafted)),
                },
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
    fn finish(&mut self, flight: Flight, receiver: &mut impl Receiver) -> StepReport {
        let Flight {
            parts,
            wanted,
            draft,
            started,
            ..
        } = flight;
        self.clock += 1;
        let before = self.statistics;
        let mut report = StepReport::default();
        for (part, drawn) in parts.iter().zip(self.network.drawn()) {
            report.tokens += part.tokens.len();
            let text = self.texts[part.place].as_mut();
            let text = text.expect("a text in its place");
            self.used[part.place] = self.clock;
            let cached = self.network.cache().lengths()[part.place];
            if text.end().is_some() {
                // It was cancelled meanwhile, and the drafted tokens are not its own.
                let kept = cached.min(text.window().len());
                self.network.truncate(part.place, kept);
                self.drafter.truncate(part.place, kept);
                continue;
            }
            let Drawn {
                tokens,
                targets,
                scores,
            } = drawn;
            text.take_scores(targets, receiver);
            if part.draws {
                let (read, written) = (text.window().len(), text.tokens.len());
                let drawn = (tokens, scores);
                let accepted = text.take(drawn, &part.drafted, self.options.eos_ids, receiver);
                self.statistics.draws += 1;
                self.statistics.tokens += text.tokens.len() - written;
                self.statistics.drafted += part.drafted.len();
                self.statistics.accepted += accepted;
                self.network.truncate(part.place, read + accepted);
                self.drafter.truncate(part.place, read + accepted);
                self.pace.compared(part.drafted.len(), accepted);
                if !part.drafted.is_empty() {
                    report.drafts.push([part.drafted.len(), accepted]);
                }
            } else if text.is_complete() {
                text.finish(End::Count, None, receiver);
            }
        }
        // Of steps that overlap, each counts for the time since the one before.
        let started = self.finished.map_or(started, |before| before.max(started));
        self.finished = Some(Instant::now());
        report.seconds = started.elapsed().as_secs_f64();
        // Steps that read prompts tell nothing of those that do not.
        if parts.iter().all(Part::is_next) {
            self.pace.record(Step {
                texts: parts.len(),
                wanted,
                drafted: self.statistics.drafted - before.drafted,
                tokens: self.statistics.tokens - before.tokens,
                seconds: report.seconds,
                draft_seconds: draft.all,
                round_seconds: draft.round,
            });
        }
        report
    }
}

impl<N: Network + ?Sized> Drop for Engine<'_, N> {
    /// Takes the results of steps under way, so that the network can be used again.
    fn drop(&mut self) {
        // A network that has failed has none.
        if !std::thread::panicking() {
            self.in_flight
                .drain(..)
                .for_each(|_| drop(self.network.drawn()));
        }
    }
}

/// The fewest blocks of a bounded cache: those of a text of the whole context, and one that is written while another text
/// holds it too.
pub fn least_blocks(context: usize, block_tokens: usize) -> usize {
    context.div_ceil(block_tokens) + 1
}

/// Continues texts, and tells the receiver. A request is asked for when a place is free, and no earlier. See [`Engine`].
///
/// # Panics
///
/// As [`Engine::new`] and [`Engine::push`].
pub fn generate_all(
    network: &mut (impl Network + ?Sized),
    requests: impl IntoIterator<Item = Request>,
    options: &Options,
    receiver: &mut impl Receiver,
) -> Statistics {
    let mut engine = Engine::new(network, *options);
    let mut requests = requests.into_iter();
    loop {
        while engine.running() + engine.waiting() < options.batch
            && let Some(request) = requests.next()
        {
            engine.push(request, receiver);
        }
        if engine.step(receiver).is_none() {
            return engine.statistics;
        }
    }
}
