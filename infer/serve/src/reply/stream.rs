//! Replies as server-sent events.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame};
use serde_json::{Value, json};

use super::{Reply, set_finish};
use crate::error::ApiError;
use crate::metrics::Endpoint;
use crate::request::StreamOptions;

/// A frame of a stream has about so many bytes at most.
const FRAME: usize = 16 << 10;

/// The body of a streamed reply.
#[derive(Debug)]
pub struct StreamBody {
    reply: Reply,
    options: StreamOptions,
    /// What was received and not sent.
    ready: Option<Bytes>,
    over: bool,
}

impl StreamBody {
    /// Waits until a reply has something to send. From then on, a fault is an event of the stream.
    ///
    /// # Errors
    ///
    /// When a choice has failed by then.
    pub async fn begin(reply: Reply, options: StreamOptions) -> Result<Self, ApiError> {
        let mut body = Self {
            reply,
            options,
            ready: None,
            over: false,
        };
        let first = poll_fn(|context| body.poll_events(context)).await?;
        body.ready = Some(first);
        Ok(body)
    }

    /// All chunks that are ready, of one event at least.
    fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, ApiError>> {
        let mut chunks = String::new();
        while chunks.len() < FRAME && !self.over {
            let choice = match self.reply.poll_event(context) {
                Poll::Ready(Ok(choice)) => choice,
                Poll::Ready(Err(error)) if chunks.is_empty() => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => {
                    self.fail(&error, &mut chunks);
                    break;
                }
                Poll::Pending if chunks.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            };
            self.chunks_of(choice, &mut chunks);
            if self.reply.open == 0 {
                self.end(&mut chunks);
            }
        }
        Poll::Ready(Ok(chunks.into()))
    }

    /// Writes what is to be sent of a choice.
    fn chunks_of(&mut self, index: usize, chunks: &mut String) {
        let choice = &mut self.reply.choices[index];
        // What is repeated of a prompt goes out with the first token.
        let shows = !choice.text.is_empty() && choice.drawn;
        if !shows && choice.finish.is_none() {
            return;
        }
        let begins = !std::mem::replace(&mut choice.begun, true);
        let text = std::mem::take(&mut choice.text);
        let finish = choice.finish.clone();
        match self.reply.asked.endpoint {
            Endpoint::Completions => {
                let logprobs = self.reply.take_logprobs(index);
                let mut json = json!({ "index": index, "text": text, "logprobs": logprobs });
                set_finish(&mut json, finish.as_ref());
                self.chunk("text_completion", json, chunks);
            }
            Endpoint::Chat => {
                if begins {
                    let role = json!({ "role": "assistant", "content": "" });
                    self.delta(index, role, Value::Null, chunks);
                }
                if !text.is_empty() {
                    let logprobs = self.reply.take_logprobs(index);
                    self.delta(index, json!({ "content": text }), logprobs, chunks);
                }
                if finish.is_some() {
                    let left = !self.reply.choices[index].entries.is_empty();
                    let logprobs = match left {
                        true => self.reply.take_logprobs(index),
                        false => Value::Null,
                    };
                    let mut json = json!({ "index": index, "delta": {}, "logprobs": logprobs });
                    set_finish(&mut json, finish.as_ref());
                    self.chunk("chat.completion.chunk", json, chunks);
                }
            }
        }
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, chunks: &mut String) {
        let json = json!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null,
        });
        self.chunk("chat.completion.chunk", json, chunks);
    }

    fn chunk(&self, object: &str, choice: Value, chunks: &mut String) {
        let mut chunk = self.reply.envelope(object, vec![choice]);
        if self.options.continuous_usage {
            chunk["usage"] = self.reply.usage.json();
        } else if self.options.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk.to_string(), chunks);
    }

    /// Writes what stands after the last choice.
    fn end(&mut self, chunks: &mut String) {
        self.over = true;
        if self.options.include_usage {
            let object = match self.reply.asked.endpoint {
                Endpoint::Completions => "text_completion",
                Endpoint::Chat => "chat.completion.chunk",
            };
            let mut chunk = self.reply.envelope(object, Vec::new());
            chunk["usage"] = self.reply.usage.json();
            event(&chunk.to_string(), chunks);
        }
        event("[DONE]", chunks);
    }

    /// Writes a fault, after which nothing comes.
    fn fail(&mut self, error: &ApiError, chunks: &mut String) {
        self.over = true;
        event(&error.body().to_string(), chunks);
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(ready) = self.ready.take() {
            return Poll::Ready(Some(Ok(Frame::data(ready))));
        }
        if self.over {
            return Poll::Ready(None);
        }
        let bytes = match std::task::ready!(self.poll_events(context)) {
            Ok(bytes) => bytes,
            Err(error) => {
                let mut chunks = String::new();
                self.fail(&error, &mut chunks);
                chunks.into()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.over && self.ready.is_none()
    }
}

/// Writes an event: one line, and an empty one. What some clients take for the end of a line is escaped.
pub(crate) fn event(data: &str, chunks: &mut String) {
    chunks.push_str("data: ");
    for c in data.chars() {
        match c {
            '\u{2028}' => chunks.push_str("\\u2028"),
            '\u{2029}' => chunks.push_str("\\u2029"),
            '\u{85}' => chunks.push_str("\\u0085"),
            c => chunks.push(c),
        }
    }
    chunks.push_str("\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_also_for_clients_that_split_at_other_ends() {
        let mut chunks = String::new();
        let text = json!({ "text": "a\n\u{85}\u{2028}\u{2029}ü" });
        event(&text.to_string(), &mut chunks);
        assert_eq!(
            chunks,
            "data: {\"text\":\"a\\n\\u0085\\u2028\\u2029ü\"}\n\n"
        );
        let read: Value = serde_json::from_str(&chunks[6..]).unwrap();
        assert_eq!(read, text);
    }
}
