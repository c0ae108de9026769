//! Replies of replicas, as they go on to clients.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::response::Parts;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::client::Connection;
use super::replica::{Failure, Held, Replica};
use crate::error::ApiError;
use crate::lifecycle::{Lifecycle, OpenRequest, Phase};
use crate::reply::event;

/// What stands between two events of a stream.
const BETWEEN: &[u8] = b"\n\n";

/// Waits until no more of a reply can be expected: its replica is lost, or the proxy must stop.
pub async fn interrupted(replica: Arc<Replica>, lifecycle: Lifecycle) -> ApiError {
    tokio::select! {
        () = replica.lost() => ApiError::ReplicaFailed,
        () = lifecycle.reached(Phase::Stopping) => ApiError::ShuttingDown,
    }
}

/// The body of a reply, byte for byte. When its replica fails, a stream ends with an event that says so, and another reply
/// with its connection: its client then knows that it is not whole.
pub struct Forwarded {
    /// What comes.
    pub body: Incoming,
    /// The events, if it is a stream.
    pub events: Option<Events>,
    /// Is ready when nothing more comes.
    pub interrupted: Pin<Box<dyn Future<Output = ApiError> + Send>>,
    /// The replica.
    pub held: Held,
    /// Whether the last byte is sent.
    pub over: bool,
    /// Where it comes from.
    pub _connection: Connection,
    /// The request is open as long as this lives.
    pub _open: OpenRequest,
}

impl Forwarded {
    /// The end of a reply that is not whole.
    fn fail(&mut self, error: &ApiError) -> io::Result<Frame<Bytes>> {
        self.over = true;
        if self.events.is_none() {
            return Err(io::Error::other(error.to_string()));
        }
        let mut text = String::new();
        event(&error.body().to_string(), &mut text);
        Ok(Frame::data(text.into()))
    }
}

impl Body for Forwarded {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            if let Poll::Ready(error) = self.interrupted.as_mut().poll(context) {
                return Poll::Ready(Some(self.fail(&error)));
            }
            let bytes = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                // A trailer is no data.
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    let reason = format!("it did not finish a reply: {error}");
                    self.held.replica().failed(Failure::Silent(reason));
                    return Poll::Ready(Some(self.fail(&ApiError::ReplicaFailed)));
                }
                None => {
                    self.over = true;
                    self.events.take().map_or_else(Bytes::new, Events::rest)
                }
            };
            let bytes = match &mut self.events {
                Some(events) => events.whole(bytes),
                None => bytes,
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        match self.events {
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}

/// The events of a stream, each of which is sent whole, so that one about a fault can stand behind the last.
#[derive(Debug, Default)]
pub struct Events {
    /// The beginning of an event.
    begun: Vec<u8>,
}

impl Events {
    /// Those of a reply that is a stream.
    pub fn of(head: &Parts) -> Option<Self> {
        let kind = head.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        kind.starts_with("text/event-stream").then(Self::default)
    }

    /// What is whole, with these bytes.
    fn whole(&mut self, bytes: Bytes) -> Bytes {
        if self.begun.is_empty() && bytes.ends_with(BETWEEN) {
            return bytes;
        }
        // The end may have begun before.
        let searched = self.begun.len().saturating_sub(BETWEEN.len() - 1);
        self.begun.extend_from_slice(&bytes);
        let mut ends = self.begun[searched..].windows(BETWEEN.len());
        let Some(end) = ends.rposition(|bytes| bytes == BETWEEN) else {
            return Bytes::new();
        };
        let rest = self.begun.split_off(searched + end + BETWEEN.len());
        std::mem::replace(&mut self.begun, rest).into()
    }

    /// What is left at the end.
    fn rest(self) -> Bytes {
        self.begun.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn events_stay_whole_however_they_come(
            events in prop::collection::vec("[ab]{1,3}(\n[ab]{1,2})?", 0..8), cuts in prop::collection::vec(0usize..8, 0..20),
        ) {
            let stream: String = events.iter().map(|event| format!("{event}\n\n")).collect();
            let (mut reader, mut sent, mut left) = (Events::default(), Vec::new(), stream.as_bytes());
            for cut in cuts {
                let (piece, rest) = left.split_at(cut.min(left.len()));
                let whole = reader.whole(Bytes::copy_from_slice(piece));
                prop_assert!(whole.is_empty() || whole.ends_with(BETWEEN));
                sent.extend_from_slice(&whole);
                left = rest;
            }
            sent.extend_from_slice(&reader.whole(Bytes::copy_from_slice(left)));
            prop_assert_eq!(String::from_utf8(sent).unwrap(), stream);
            prop_assert!(reader.rest().is_empty());
        }
    }
}
