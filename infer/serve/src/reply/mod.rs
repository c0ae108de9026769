//! From events to replies: whole ones, and streams of chunks.
//!
//! A [`Reply`] takes the events of all choices of a request, and keeps of each choice what was not sent yet. A whole reply sends
//! it at the end, a stream after every token that shows text.

mod logprobs;
mod observe;
mod stream;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use firebox_model::sampling::Scored;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::job::{Event, Finish, Inbox, Sent, StopReason};
use crate::lifecycle::{OpenRequest, Phase};
use crate::metrics::{Endpoint, Metrics};
use crate::served::Served;

use logprobs::Entry;
use observe::Observer;

pub use stream::StreamBody;
pub(crate) use stream::event;

/// What a reply says of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptInfo {
    /// Its tokens.
    pub ids: Arc<[u32]>,
    /// Its text, if the reply repeats it.
    pub echo: Option<Echo>,
}

/// The text of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Echo {
    /// The text.
    pub text: String,
    /// Its characters.
    pub length: usize,
    /// Where each token begins, in characters.
    pub offsets: Vec<usize>,
}

/// What a reply is made of, beside events.
#[derive(Debug)]
pub struct Asked {
    /// The reply's name; see [`new_id`].
    pub id: String,
    /// What it answers.
    pub endpoint: Endpoint,
    /// The prompts.
    pub prompts: Vec<PromptInfo>,
    /// Choices of each prompt.
    pub n: usize,
    /// How many of the likeliest tokens come with log-probabilities, if those are wanted.
    pub logprobs: Option<usize>,
    /// When the request came.
    pub arrived: Instant,
}

/// A reply that comes into being.
#[derive(Debug)]
pub struct Reply {
    served: Arc<Served>,
    open_request: OpenRequest,
    asked: Asked,
    /// In seconds since 1970.
    created: u64,
    choices: Vec<Choice>,
    /// Choices that have not ended.
    open: usize,
    usage: Usage,
    /// Whether a choice of a prompt has begun, for each prompt.
    begun: Vec<bool>,
    observer: Observer,
    inbox: Inbox,
}

/// What was not sent yet of a choice.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    entries: Vec<Entry>,
    /// Tokens of its prompt that have their entry.
    prompt_entries: usize,
    finish: Option<Finish>,
    /// Whether a token was drawn.
    drawn: bool,
    /// Whether something of it was sent.
    begun: bool,
}

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    prompt: usize,
    completion: usize,
    cached: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

impl Reply {
    /// The reply to a request whose jobs send to `inbox`.
    pub fn new(
        served: Arc<Served>,
        metrics: Arc<Metrics>,
        open_request: OpenRequest,
        asked: Asked,
        inbox: Inbox,
    ) -> Self {
        let choices = asked.prompts.len() * asked.n;
        let prompts = asked.prompts.iter();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            created: now.map_or(0, |since| since.as_secs()),
            choices: (0..choices).map(|_| Choice::default()).collect(),
            open: choices,
            usage: Usage {
                prompt: prompts.map(|prompt| prompt.ids.len()).sum(),
                ..Usage::default()
            },
            begun: vec![false; asked.prompts.len()],
            observer: Observer::new(metrics, asked.endpoint, asked.arrived, choices),
            served,
            open_request,
            asked,
            inbox,
        }
    }

    /// Waits until all choices have ended.
    ///
    /// # Errors
    ///
    /// When one of them has failed.
    pub async fn ended(mut self) -> Result<Ended, ApiError> {
        while self.open > 0 {
            poll_fn(|context| self.poll_event(context)).await?;
        }
        Ok(Ended(self))
    }

    /// Takes the next event, and returns the number of its choice.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, ApiError>> {
        let sent = std::task::ready!(self.inbox.poll_next(context));
        let Some(sent) = sent else {
            // Each choice says how it ended, so this is never reached while one is open.
            return Poll::Ready(Err(self.fault()));
        };
        let choice = sent.choice;
        Poll::Ready(self.take(sent).map(|()| choice))
    }

    fn take(&mut self, sent: Sent) -> Result<(), ApiError> {
        let number = sent.choice;
        self.observe(&sent);
        let prompt = &self.asked.prompts[number / self.asked.n];
        let echo = prompt.echo.as_ref();
        let scored = self.asked.logprobs.is_some();
        let choice = &mut self.choices[number];
        match sent.event {
            Event::Started { cached_tokens, .. } => {
                // The other choices of a prompt share what the first one to begin has read.
                if !std::mem::replace(&mut self.begun[number / self.asked.n], true) {
                    self.usage.cached += cached_tokens;
                }
                if let Some(echo) = echo {
                    choice.text.push_str(&echo.text);
                    if scored {
                        choice.push_prompt(prompt, echo, None);
                    }
                }
            }
            Event::Prompt(scores) => {
                if let Some(echo) = echo {
                    for scored in scores {
                        choice.push_prompt(prompt, echo, Some(scored));
                    }
                }
            }
            Event::Token {
                id,
                text,
                offset,
                scored: score,
            } => {
                self.usage.completion += 1;
                choice.drawn = true;
                choice.text.push_str(&text);
                if scored {
                    let before = echo.map_or(0, |echo| echo.length);
                    choice.entries.push(Entry {
                        id,
                        offset: before + offset,
                        scored: score,
                    });
                }
            }
            Event::Ended { finish, text } => {
                choice.text.push_str(&text);
                choice.finish = Some(finish);
                self.open -= 1;
            }
            Event::Failed => return Err(self.fault()),
        }
        Ok(())
    }

    /// Tells metrics of an event. A prompt counts with its first choice.
    fn observe(&mut self, sent: &Sent) {
        let Asked { prompts, n, .. } = &self.asked;
        let prompt_tokens = match sent.choice % n {
            0 => prompts[sent.choice / n].ids.len(),
            _ => 0,
        };
        self.observer.observe(sent, prompt_tokens);
    }

    /// Why a choice can fail: the server ends, or it is at fault.
    fn fault(&self) -> ApiError {
        match self.open_request.phase() {
            Phase::Stopping => ApiError::ShuttingDown,
            _ => ApiError::Internal,
        }
    }

    fn whole_choice(&mut self, index: usize) -> Value {
        let logprobs = self.take_logprobs(index);
        let choice = &mut self.choices[index];
        let text = std::mem::take(&mut choice.text);
        let mut json = match self.asked.endpoint {
            Endpoint::Completions => json!({ "index": index, "text": text }),
            Endpoint::Chat => json!({
                "index": index, "message": { "role": "assistant", "content": text },
            }),
        };
        json["logprobs"] = logprobs;
        set_finish(&mut json, choice.finish.as_ref());
        json
    }

    /// The log-probabilities of a choice that were not sent; null if none are wanted.
    fn take_logprobs(&mut self, index: usize) -> Value {
        let entries = std::mem::take(&mut self.choices[index].entries);
        let tokenizer = &self.served.tokenizer;
        match (self.asked.logprobs, self.asked.endpoint) {
            (None, _) => Value::Null,
            (Some(_), Endpoint::Completions) => logprobs::of_completion(&entries, tokenizer),
            (Some(count), Endpoint::Chat) => logprobs::of_chat(&entries, count, tokenizer),
        }
    }

    /// What all objects of a reply have.
    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.asked.id,
            "object": object,
            "created": self.created,
            "model": self.served.name,
            "choices": choices,
            "system_fingerprint": self.served.fingerprint,
        })
    }
}

/// A reply whose choices have all ended.
#[derive(Debug)]
pub struct Ended(Reply);

impl Ended {
    /// Tokens whose log-probabilities it has: writing them is most of the work.
    pub fn scored(&self) -> usize {
        self.0
            .choices
            .iter()
            .map(|choice| choice.entries.len())
            .sum()
    }

    /// The whole reply.
    pub fn json(self) -> Value {
        let Self(mut reply) = self;
        let choices = 0..reply.choices.len();
        let choices: Vec<Value> = choices.map(|index| reply.whole_choice(index)).collect();
        let object = match reply.asked.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion",
        };
        let mut whole = reply.envelope(object, choices);
        whole["usage"] = reply.usage.json();
        whole
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // Tokens that were drawn count, also where nobody reads them.
        while let Some(sent) = self.inbox.close_and_take() {
            self.observe(&sent);
        }
    }
}

impl Choice {
    /// The entry of the prompt's next token.
    fn push_prompt(&mut self, prompt: &PromptInfo, echo: &Echo, scored: Option<Scored>) {
        let next = self.prompt_entries;
        self.prompt_entries += 1;
        self.entries.push(Entry {
            id: prompt.ids[next],
            offset: echo.offsets[next],
            scored,
        });
    }
}

/// Why a choice has ended, if it has.
fn set_finish(choice: &mut Value, finish: Option<&Finish>) {
    let (reason, detail) = match finish {
        None => {
            choice["finish_reason"] = Value::Null;
            return;
        }
        Some(Finish::Length) => ("length", Value::Null),
        Some(Finish::Stop(StopReason::Eos)) => ("stop", Value::Null),
        Some(Finish::Stop(StopReason::Token(id))) => ("stop", (*id).into()),
        Some(Finish::Stop(StopReason::Text(text))) => ("stop", text.as_str().into()),
    };
    choice["finish_reason"] = reason.into();
    choice["stop_reason"] = detail;
}

/// A name that no other reply has.
///
/// # Errors
///
/// When the system gives no randomness.
pub fn new_id(endpoint: Endpoint) -> Result<String, ApiError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!("the system gives no randomness: {error}");
        ApiError::Internal
    })?;
    let prefix = match endpoint {
        Endpoint::Completions => "cmpl-",
        Endpoint::Chat => "chatcmpl-",
    };
    Ok(format!("{prefix}{:032x}", u128::from_le_bytes(bytes)))
}
