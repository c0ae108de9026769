//! The thread that has the model: it takes jobs from requests, and sends them what is generated.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use firebox_model::config::{FeedForwardKind, ModelConfig};
use firebox_model::generate::{self, End, Ended, Engine, Receiver, Request, StepReport};
use firebox_model::moe::loads::{ExpertLoads, even_share};
use firebox_model::network::Network;
use firebox_model::sampling::Scored;
use firebox_model::vision::PictureKeys;

use crate::job::{Event, Finish, Job, Rejected, StopReason, Submit};
use crate::metrics::Metrics;
use crate::pictures::RequestPictures;

/// How often the loads of experts are asked for. Where many ranks hold the model, this also shows that all of them are there
/// while there is nothing else to do.
const LOADS_EVERY: Duration = Duration::from_millis(500);

/// How much of the seconds that sequences took before counts beside the last one.
const DECAY: f64 = 0.9;

/// The longest time after which a client is asked to try again.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Hands jobs to the thread that has the model. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Scheduler(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Jobs have come, or there will be no more.
    changed: Condvar,
    /// The most sequences that wait for their turn.
    most: usize,
}

#[derive(Debug, Default)]
struct Queue {
    /// Jobs that the thread has not taken, with the times when they came.
    jobs: Vec<(Instant, Job)>,
    /// Sequences that it has taken and that wait.
    waiting: usize,
    /// Those that it generates.
    running: usize,
    /// The most sequences that run at once.
    batch: usize,
    /// Seconds of a sequence from its place in the batch to its end, of the last ones.
    seconds: Option<f64>,
    is_closed: bool,
}

impl Scheduler {
    /// A scheduler whose queue holds up to `most` sequences that wait for their turn.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            most,
        }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        let queue = self.0.queue.lock();
        queue.unwrap_or_else(PoisonError::into_inner)
    }

    /// Generates the texts of jobs with a model until [`abort`](Submit::abort) is called. When it returns or panics, the jobs
    /// that are left fail, and no more are taken.
    ///
    /// # Panics
    ///
    /// As [`Engine::new`].
    pub fn run(
        &self,
        network: &mut (impl Network + ?Sized),
        options: generate::Options,
        metrics: &Metrics,
    ) {
        let closed = Closed(self);
        self.queue().batch = options.batch;
        let batch = options.batch;
        let mut engine = Engine::new(network, options);
        let mut told = Told {
            jobs: HashMap::new(),
            metrics,
            finished: Vec::new(),
        };
        let mixture = Mixture::of(engine.config());
        let mut preempted = 0;
        let mut looked = Instant::now();
        let mut waiting: VecDeque<(Instant, Job)> = VecDeque::new();
        let mut looked_at = LookedAt::default();
        while let Some(jobs) = closed.0.take(&engine, waiting.len()) {
            waiting.extend(jobs);
            waiting.retain(|(_, job)| !job.events.is_closed());
            // What is seen of pictures takes memory, and is computed when there is a place for the text.
            while let Some((came, mut job)) = waiting.pop_front_if(|(_, job)| {
                job.pictures.is_none() || engine.running() + engine.waiting() < batch
            }) {
                let pictures = job.pictures.take();
                let keys = pictures.map(|pictures| looked_at.keys(&pictures, &mut engine));
                let (request, open) = Open::new(job, came, keys);
                // The numbers of texts are those of requests.
                told.jobs.insert(engine.requests(), open);
                engine.push(request, &mut told);
            }
            for number in told.gone() {
                engine.cancel(number, &mut told);
            }
            let report = engine.step(&mut told);
            if let Some(report) = report {
                count_step(metrics, &report, mixture);
            }
            let statistics = engine.statistics();
            let more =
                statistics.preempted - std::mem::replace(&mut preempted, statistics.preempted);
            metrics.preemptions.inc_by(more as u64);
            metrics.running.set(engine.running() as i64);
            let queued = self.queue().jobs.len() + waiting.len();
            metrics.waiting.set((engine.waiting() + queued) as i64);
            let [held, all] = engine.blocks();
            metrics.cache_blocks.set(held as i64);
            metrics.cache_usage.set(held as f64 / all.max(1) as f64);
            if engine.is_done() || looked.elapsed() >= LOADS_EVERY {
                looked = Instant::now();
                count_loads(metrics, &engine.expert_loads());
            }
            let finished = std::mem::take(&mut told.finished);
            if !finished.is_empty() {
                let mut queue = self.queue();
                for seconds in finished {
                    let before = queue.seconds.unwrap_or(seconds);
                    queue.seconds = Some(DECAY * before + (1.0 - DECAY) * seconds);
                }
            }
        }
        metrics.running.set(0);
        metrics.waiting.set(0);
    }

    /// The jobs that have come, for the thread with this engine, which holds `held` others that wait; it waits for some, though not for long, where it has nothing else
    /// to do. `None` when there will be no more.
    fn take<N: Network + ?Sized>(
        &self,
        engine: &Engine<N>,
        held: usize,
    ) -> Option<Vec<(Instant, Job)>> {
        let mut queue = self.queue();
        queue.waiting = engine.waiting() + held;
        queue.running = engine.running();
        if engine.is_done() {
            let is_empty = |queue: &mut Queue| queue.jobs.is_empty() && !queue.is_closed;
            let changed = &self.0.changed;
            let waited = changed.wait_timeout_while(queue, LOADS_EVERY, is_empty);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if queue.is_closed {
            return None;
        }
        let jobs = std::mem::take(&mut queue.jobs);
        // Until the next time, they wait.
        queue.waiting += jobs.len();
        Some(jobs)
    }
}

impl Submit for Scheduler {
    fn most(&self) -> usize {
        self.0.most
    }

    fn submit(&self, jobs: Vec<Job>) -> Result<(), Rejected> {
        let Shared { changed, most, .. } = &*self.0;
        let mut queue = self.queue();
        if queue.is_closed {
            return Err(Rejected::Closed);
        }
        let waiting = queue.waiting + queue.jobs.len();
        // Those that have a place at once do not wait.
        let room = most + queue.batch.saturating_sub(queue.running);
        if waiting + jobs.len() > room {
            let rounds = waiting.div_ceil(queue.batch.max(1)) as f64;
            let seconds = rounds * queue.seconds.unwrap_or(0.0);
            let seconds = seconds.clamp(1.0, LONGEST_RETRY.as_secs_f64());
            return Err(Rejected::QueueFull {
                retry_after: Duration::from_secs_f64(seconds.ceil()),
            });
        }
        let now = Instant::now();
        queue.jobs.extend(jobs.into_iter().map(|job| (now, job)));
        changed.notify_one();
        Ok(())
    }

    fn abort(&self) {
        let mut queue = self.queue();
        queue.is_closed = true;
        let jobs = std::mem::take(&mut queue.jobs);
        self.0.changed.notify_all();
        drop(queue);
        // Each fails.
        drop(jobs);
    }
}

/// Takes no jobs any more from the moment when it is dropped.
struct Closed<'a>(&'a Scheduler);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The keys and values of pictures that texts see or have seen, by what is shown: texts that see the same ones share them, and
/// with them what they begin with.
#[derive(Default)]
struct LookedAt(HashMap<[u8; 32], Weak<PictureKeys>>);

impl LookedAt {
    fn keys<N: Network + ?Sized>(
        &mut self,
        pictures: &RequestPictures,
        engine: &mut Engine<N>,
    ) -> Arc<PictureKeys> {
        let known = &mut self.0;
        if let Some(keys) = known.get(&pictures.hash).and_then(Weak::upgrade) {
            return keys;
        }
        known.retain(|_, keys| keys.strong_count() > 0);
        let keys = Arc::new(engine.look(&pictures.pictures));
        known.insert(pictures.hash, Arc::downgrade(&keys));
        keys
    }
}

/// The experts of a model.
#[derive(Debug, Clone, Copy)]
struct Mixture {
    layers: usize,
    experts: usize,
    /// Experts that a token visits in each of the layers.
    top_k: usize,
}

impl Mixture {
    /// `None` for a dense model.
    fn of(config: &ModelConfig) -> Option<Self> {
        let experts = &config.moe.as_ref()?.experts;
        let layers = config.layers.iter();
        let mixtures = layers.filter(|layer| layer.feed_forward == FeedForwardKind::Moe);
        Some(Self {
            layers: mixtures.count(),
            experts: experts.count,
            top_k: experts.top_k,
        })
    }
}

fn count_step(metrics: &Metrics, report: &StepReport, mixture: Option<Mixture>) {
    if let Some(mixture) = mixture {
        let experts = mixture.experts as f64;
        let share = even_share(mixture.top_k, mixture.experts, report.tokens as f64);
        metrics
            .even_experts
            .inc_by(mixture.layers as f64 * experts * share);
    }
    metrics.step_tokens.observe(report.tokens as f64);
    metrics.step_seconds.observe(report.seconds);
    for &[drafted, accepted] in &report.drafts {
        metrics.drafts.inc();
        metrics.draft_tokens.inc_by(drafted as u64);
        metrics.accepted_tokens.inc_by(accepted as u64);
        for position in 0..accepted {
            let label = position.to_string();
            let counter = metrics.accepted_by_position.with_label_values(&[&label]);
            counter.inc();
        }
    }
}

fn count_loads(metrics: &Metrics, loads: &[ExpertLoads]) {
    for (counters, loads) in metrics.expert_tokens.iter().zip(loads) {
        for (counter, &tokens) in counters.iter().zip(&loads.tokens) {
            counter.inc_by(tokens);
        }
        for (experts, &steps) in loads.visited.iter().enumerate() {
            for _ in 0..steps {
                metrics.step_experts.observe(experts as f64);
            }
        }
    }
}

/// A job that has not ended.
#[derive(Debug)]
struct Open {
    job: Job,
    came: Instant,
    began: Option<Instant>,
    /// The stop string that ends it.
    stopped: Option<String>,
}

impl Open {
    fn new(job: Job, came: Instant, pictures: Option<Arc<PictureKeys>>) -> (Request, Self) {
        let request = Request {
            pictures,
            bias: job.bias.to_vec(),
            stop_ids: job.stop_ids.to_vec(),
            ignores_eos: job.ignore_eos,
            likeliest: job.scores,
            scores_prompt: job.prompt_scores,
            ..Request::new(job.prompt.to_vec(), job.count, job.sampling)
        };
        let open = Self {
            job,
            came,
            began: None,
            stopped: None,
        };
        (request, open)
    }

    /// Its place in the batch, if it has none yet.
    fn begin(&mut self, shared: usize) {
        if self.began.is_none() {
            let now = Instant::now();
            self.began = Some(now);
            // Whether the client is gone is seen before the next step.
            let _ = self.job.events.send(Event::Started {
                queued: now - self.came,
                cached_tokens: shared,
            });
        }
    }
}

/// Sends what is generated to the jobs.
struct Told<'a> {
    /// By the numbers of their texts.
    jobs: HashMap<usize, Open>,
    metrics: &'a Metrics,
    /// Seconds of the sequences that ended.
    finished: Vec<f64>,
}

impl Told<'_> {
    /// The texts of clients that are gone.
    fn gone(&self) -> Vec<usize> {
        let gone = self
            .jobs
            .iter()
            .filter(|(_, open)| open.job.events.is_closed());
        gone.map(|(&number, _)| number).collect()
    }
}

impl Receiver for Told<'_> {
    fn began(&mut self, text: usize, shared: usize) {
        let Some(open) = self.jobs.get_mut(&text) else {
            return;
        };
        if !open.job.prompt_scores {
            self.metrics
                .prefix_queries
                .inc_by(open.job.prompt.len() as u64);
            self.metrics.prefix_hits.inc_by(shared as u64);
        }
        open.begin(shared);
    }

    fn prompt_scored(&mut self, text: usize, scores: Vec<Scored>) {
        if let Some(open) = self.jobs.get_mut(&text) {
            let _ = open.job.events.send(Event::Prompt(scores));
        }
    }

    fn token(&mut self, text: usize, token: generate::Token) -> bool {
        let Some(open) = self.jobs.get_mut(&text) else {
            return false;
        };
        // A fault with one text ends that text alone.
        let written = catch_unwind(AssertUnwindSafe(|| open.job.text.push(token.id)));
        let Ok(written) = written else {
            self.jobs.remove(&text);
            return false;
        };
        open.stopped = written.stopped;
        let sent = open.job.events.send(Event::Token {
            id: token.id,
            text: written.text,
            offset: written.offset,
            scored: token.scored,
        });
        sent.is_ok() && open.stopped.is_none()
    }

    fn ended(&mut self, text: usize, ended: Ended) {
        let Some(mut open) = self.jobs.remove(&text) else {
            return;
        };
        open.begin(ended.shared);
        let finish = match (ended.end, open.stopped.take()) {
            (End::Eos, _) => {
                let token = ended.last.expect("the token that ends a text");
                let id = token.id;
                let _ = open.job.events.send(Event::Token {
                    id,
                    text: String::new(),
                    offset: open.job.text.offset(),
                    scored: token.scored,
                });
                Finish::Stop(match open.job.stop_ids.contains(&id) {
                    true => StopReason::Token(id),
                    false => StopReason::Eos,
                })
            }
            (End::Count, _) => Finish::Length,
            (End::Stopped, Some(stop)) => Finish::Stop(StopReason::Text(stop)),
            // The client is gone.
            (End::Stopped, None) => return,
        };
        if let Some(began) = open.began {
            self.finished.push(began.elapsed().as_secs_f64());
        }
        let text = catch_unwind(AssertUnwindSafe(|| open.job.text.finish()));
        if let Ok(text) = text {
            let _ = open.job.events.send(Event::Ended { finish, text });
        }
    }
}

#[cfg(test)]
mod tests;
