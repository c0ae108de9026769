//! What HTTP and the scheduler say to each other: jobs go one way, events the other.
//!
//! A request becomes one [`Job`] for each choice of each prompt. The scheduler sends what happens to a job through its
//! [`Events`]; all jobs of a request share one [`Inbox`]. When the client goes away the inbox is dropped, which
//! [`Events::is_closed`] tells the scheduler.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use firebox_model::sampling::{Sampling, Scored};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::pictures::RequestPictures;
use crate::text::TextWriter;

/// Takes jobs and generates their texts, on threads of its own.
pub trait Submit: fmt::Debug + Send + Sync {
    /// The most sequences that wait for their turn, and so the most jobs of a request.
    fn most(&self) -> usize;

    /// Puts the jobs of a request at the end of the queue: all of them or none. Returns at once.
    ///
    /// # Errors
    ///
    /// When they are not taken.
    fn submit(&self, jobs: Vec<Job>) -> Result<(), Rejected>;

    /// Takes no jobs any more and drops those that it has, so that each fails.
    fn abort(&self);
}

/// Why jobs are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// The queue has no place for them now.
    QueueFull {
        /// When to try again.
        retry_after: Duration,
    },
    /// The scheduler has ended.
    Closed,
}

/// One text to generate: one choice of one prompt of a request.
#[derive(Debug)]
pub struct Job {
    /// Tokens of the prompt: at least one, all in the model's vocabulary or standing for a picture, and no more than the context holds beside `count`.
    pub prompt: Arc<[u32]>,
    /// What the prompt sees: a picture for each token that stands for one. Not together with `prompt_scores`.
    pub pictures: Option<Arc<RequestPictures>>,
    /// The most tokens to generate; may be 0.
    pub count: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What is added to the logits of some tokens, each of which is in the vocabulary and occurs once.
    pub bias: Arc<[(u32, f32)]>,
    /// Tokens that end the text like an end-of-text token.
    pub stop_ids: Arc<[u32]>,
    /// Whether an end-of-text token is a token like others.
    pub ignore_eos: bool,
    /// How many of the likeliest tokens to name with the log-probability of each generated token; `None` if log-probabilities are
    /// not wanted.
    pub scores: Option<usize>,
    /// Whether the log-probabilities of the prompt's tokens are wanted too. Only together with `scores`.
    pub prompt_scores: bool,
    /// Makes text of the tokens.
    pub text: TextWriter,
    /// Takes what happens.
    pub events: Events,
}

/// What happens to a job, in this order: [`Started`](Self::Started) once, [`Prompt`](Self::Prompt) any number of times,
/// [`Token`](Self::Token) for each token that is drawn, and [`Ended`](Self::Ended); or [`Failed`](Self::Failed) at any time.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The text has its place, and its prompt is being read.
    Started {
        /// How long it waited for that.
        queued: Duration,
        /// Tokens of its prompt that need not be computed.
        cached_tokens: usize,
    },
    /// Log-probabilities of further tokens of the prompt, from its second one on.
    Prompt(Vec<Scored>),
    /// A token was drawn.
    Token {
        /// The token, which may be the one that ends the text.
        id: u32,
        /// What can be shown of the text after it; often empty, and always for a token that ends the text.
        text: String,
        /// Where its own text begins: [`TextWriter::offset`] before it was pushed.
        offset: usize,
        /// Its log-probability, if that was wanted.
        scored: Option<Scored>,
    },
    /// The text has ended.
    Ended {
        /// Why.
        finish: Finish,
        /// What was held back of the text: see [`TextWriter::finish`].
        text: String,
    },
    /// The text cannot go on, by a fault of ours.
    Failed,
}

/// Why a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// It came to its end.
    Stop(StopReason),
    /// It has as many tokens as were asked for.
    Length,
}

/// What ended a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// An end-of-text token.
    Eos,
    /// One of the request's tokens.
    Token(u32),
    /// One of the request's texts.
    Text(String),
}

/// Sends the events of one job. If it is dropped before the job's end, the job has [`Failed`](Event::Failed).
#[derive(Debug)]
pub struct Events {
    choice: usize,
    over: bool,
    sender: UnboundedSender<Sent>,
}

/// Nobody waits for the events of this job any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub struct Gone;

impl Events {
    /// Sends an event. It never waits.
    ///
    /// # Errors
    ///
    /// When the client is gone; then the job is best dropped.
    pub fn send(&mut self, event: Event) -> Result<(), Gone> {
        self.over |= matches!(event, Event::Ended { .. } | Event::Failed);
        let sent = Sent {
            choice: self.choice,
            at: Instant::now(),
            event,
        };
        self.sender.send(sent).map_err(|_| Gone)
    }

    /// Whether the client is gone.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if !self.over {
            // Nobody may be there to take it.
            let _ = self.send(Event::Failed);
        }
    }
}

/// An event of one of a request's jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// Number of the job in its request.
    pub choice: usize,
    /// When it was sent.
    pub at: Instant,
    /// What happened.
    pub event: Event,
}

/// Receives the events of all jobs of a request.
#[derive(Debug)]
pub struct Inbox(UnboundedReceiver<Sent>);

impl Inbox {
    /// An inbox for as many jobs, and where each sends its events.
    pub fn new(jobs: usize) -> (Self, Vec<Events>) {
        let (sender, receiver) = unbounded_channel();
        let events = (0..jobs).map(|choice| Events {
            choice,
            over: false,
            sender: sender.clone(),
        });
        (Self(receiver), events.collect())
    }

    /// The next event; `None` after the last one of the last job.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Sent>> {
        self.0.poll_recv(context)
    }

    /// Closes the inbox, which tells the jobs that their client is gone, and takes the next of the events that were sent before.
    pub fn close_and_take(&mut self) -> Option<Sent> {
        self.0.close();
        self.0.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn received(inbox: &mut Inbox) -> Vec<Option<(usize, Event)>> {
        let mut context = Context::from_waker(Waker::noop());
        let mut events = Vec::new();
        while let Poll::Ready(sent) = inbox.poll_next(&mut context) {
            let last = sent.is_none();
            events.push(sent.map(|sent| (sent.choice, sent.event)));
            if last {
                break;
            }
        }
        events
    }

    fn ended() -> Event {
        Event::Ended {
            finish: Finish::Length,
            text: String::new(),
        }
    }

    #[test]
    fn a_job_that_is_dropped_before_its_end_has_failed() {
        let (mut inbox, events) = Inbox::new(2);
        let [mut first, second] = <[Events; 2]>::try_from(events).unwrap();
        assert_eq!(first.send(ended()), Ok(()));
        drop((first, second));
        let expected = [Some((0, ended())), Some((1, Event::Failed)), None];
        assert_eq!(received(&mut inbox), expected);
    }

    #[test]
    fn a_job_sees_that_its_client_is_gone() {
        let (inbox, mut events) = Inbox::new(1);
        assert!(!events[0].is_closed());
        drop(inbox);
        assert!(events[0].is_closed());
        assert_eq!(events[0].send(Event::Failed), Err(Gone));
    }
}
