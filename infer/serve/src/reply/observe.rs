//! What replies tell metrics.

use std::sync::Arc;
use std::time::Instant;

use crate::job::{Event, Finish, Sent};
use crate::metrics::{Endpoint, Metrics};

/// Counts and measures what happens to the choices of a request. Choices that have not ended when it is dropped are cancelled.
#[derive(Debug)]
pub struct Observer {
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    arrived: Instant,
    choices: Vec<Choice>,
}

#[derive(Debug, Clone, Default)]
struct Choice {
    started: Option<Instant>,
    /// When its last token was drawn.
    last: Option<Instant>,
    over: bool,
}

impl Observer {
    /// Of a request that has arrived.
    pub fn new(
        metrics: Arc<Metrics>,
        endpoint: Endpoint,
        arrived: Instant,
        choices: usize,
    ) -> Self {
        Self {
            metrics,
            endpoint,
            arrived,
            choices: vec![Choice::default(); choices],
        }
    }

    /// Looks at an event of a choice; `prompt_tokens` is the length of the prompt for the first choice of each, and 0 for others.
    pub fn observe(&mut self, sent: &Sent, prompt_tokens: usize) {
        let choice = &mut self.choices[sent.choice];
        let seconds = |since: Instant| sent.at.saturating_duration_since(since).as_secs_f64();
        match &sent.event {
            Event::Started { queued, .. } => {
                choice.started = Some(sent.at);
                self.metrics.queue_seconds.observe(queued.as_secs_f64());
                self.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
            }
            Event::Prompt(_) => (),
            Event::Token { .. } => {
                self.metrics.generation_tokens.inc();
                match choice.last.replace(sent.at) {
                    Some(last) => self.metrics.inter_token.observe(seconds(last)),
                    None => {
                        self.metrics
                            .time_to_first_token
                            .observe(seconds(self.arrived));
                        let started = choice.started.unwrap_or(self.arrived);
                        self.metrics.prefill_seconds.observe(seconds(started));
                    }
                }
            }
            Event::Ended { finish, .. } => {
                choice.over = true;
                self.metrics.request_seconds.observe(seconds(self.arrived));
                self.count(match finish {
                    Finish::Stop(_) => "stop",
                    Finish::Length => "length",
                });
            }
            Event::Failed => {
                choice.over = true;
                self.count("error");
            }
        }
    }

    fn count(&self, finish: &str) {
        let labels = [self.endpoint.label(), finish];
        self.metrics.requests.with_label_values(&labels).inc();
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        for _ in self.choices.iter().filter(|choice| !choice.over) {
            self.count("cancelled");
        }
    }
}
