//! One request, and when its tokens come.

use std::io;
use std::time::Instant;

use firebox_serve::client::Client;
use serde::Deserialize;
use serde_json::Value;

/// What came of a request. Times are in seconds since the beginning of its load.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// When it was sent.
    pub sent: f64,
    /// When tokens came, and how many.
    pub arrivals: Vec<(f64, usize)>,
    /// When its reply ended.
    pub ended: f64,
    /// Tokens of its prompt; 0 if the server did not say.
    pub prompt_tokens: usize,
    /// Tokens that were generated for it.
    pub new_tokens: usize,
    /// What went wrong, if anything did.
    pub fault: Option<Fault>,
}

/// Why a request has no whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind, such as `429 overloaded`.
    pub kind: String,
    /// What was said.
    pub message: String,
}

impl Fault {
    fn new(kind: impl Into<String>, message: impl ToString) -> Self {
        Self {
            kind: kind.into(),
            message: message.to_string(),
        }
    }

    fn of_connection(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused",
            io::ErrorKind::TimedOut => "no connection",
            _ => "connection lost",
        };
        Self::new(kind, error)
    }

    /// Of an error's object.
    fn of_error(status: Option<u16>, error: &Value) -> Self {
        let text = |key: &str| error[key].as_str();
        let name = text("code").or(text("type")).unwrap_or("error");
        let kind = match status {
            Some(status) => format!("{status} {name}"),
            None => format!("stream: {name}"),
        };
        Self::new(kind, text("message").unwrap_or_default())
    }
}

impl Record {
    /// Seconds from sending to the first token.
    pub fn time_to_first_token(&self) -> Option<f64> {
        Some(self.arrivals.first()?.0 - self.sent)
    }

    /// Seconds between the arrivals of tokens.
    pub fn between_tokens(&self) -> impl Iterator<Item = f64> {
        self.arrivals.windows(2).map(|pair| pair[1].0 - pair[0].0)
    }

    /// Seconds of a token after the first ones.
    pub fn time_per_output_token(&self) -> Option<f64> {
        let (first, last) = (self.arrivals.first()?, self.arrivals.last()?);
        let tokens = self
            .new_tokens
            .checked_sub(first.1)
            .filter(|&rest| rest > 0)?;
        Some((last.0 - first.0) / tokens as f64)
    }

    /// Seconds from sending to the end of the reply.
    pub fn end_to_end(&self) -> f64 {
        self.ended - self.sent
    }
}

/// A chunk of a stream, as far as it counts here.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: usize,
    #[serde(default)]
    completion_tokens: usize,
}

/// Sends a request for a streamed completion, and reads its reply to the end.
pub(super) async fn ask(client: Client, body: String, began: Instant) -> Record {
    let mut record = Record {
        sent: began.elapsed().as_secs_f64(),
        arrivals: Vec::new(),
        ended: 0.0,
        prompt_tokens: 0,
        new_tokens: 0,
        fault: None,
    };
    let read = read(&client, body, began, &mut record).await;
    record.fault = read.err();
    record.ended = began.elapsed().as_secs_f64();
    record
}

async fn read(
    client: &Client,
    body: String,
    began: Instant,
    record: &mut Record,
) -> Result<(), Fault> {
    let reply = client.post("/v1/completions", body).await;
    let mut reply = reply.map_err(Fault::of_connection)?;
    if reply.status() != 200 || !reply.is_stream() {
        let status = reply.status();
        let whole = reply.whole().await.map_err(Fault::of_connection)?;
        return Err(match serde_json::from_slice::<Value>(&whole) {
            Ok(body) if body["error"].is_object() => Fault::of_error(Some(status), &body["error"]),
            _ => Fault::new(
                format!("{status}, not a stream"),
                String::from_utf8_lossy(&whole[..whole.len().min(200)]),
            ),
        });
    }
    let mut is_done = false;
    while let Some(event) = reply.event().await.map_err(Fault::of_connection)? {
        if event == "[DONE]" {
            is_done = true;
            continue;
        }
        let now = began.elapsed().as_secs_f64();
        let chunk: Chunk = serde_json::from_str(&event)
            .map_err(|error| Fault::new("a chunk that is not JSON", error))?;
        if let Some(error) = chunk.error {
            return Err(Fault::of_error(None, &error));
        }
        // Where a server does not count along, each chunk with text is a token.
        let shows = |choice: &Choice| choice.text.as_ref().is_some_and(|text| !text.is_empty());
        let so_far = match chunk.usage {
            Some(usage) => {
                record.prompt_tokens = usage.prompt_tokens;
                usage.completion_tokens
            }
            None => record.new_tokens + usize::from(chunk.choices.iter().any(shows)),
        };
        if so_far > record.new_tokens {
            if !chunk.choices.is_empty() {
                record.arrivals.push((now, so_far - record.new_tokens));
            }
            record.new_tokens = so_far;
        }
    }
    if !is_done {
        return Err(Fault::new(
            "a stream without [DONE]",
            "the reply is not whole",
        ));
    }
    reply.keep();
    Ok(())
}
