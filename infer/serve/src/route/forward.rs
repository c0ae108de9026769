//! Requests that a replica answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use tokio::task::spawn_blocking;

use super::client::{Outgoing, Reply, send};
use super::replica::{Failure, Replica};
use super::reply::{Events, Forwarded, interrupted};
use super::{Proxy, affinity};
use crate::error::ApiError;
use crate::http::body;
use crate::lifecycle::Phase;

/// Every path that is not the proxy's own.
pub async fn forward(
    State(proxy): State<Arc<Proxy>>,
    request: Request,
) -> Result<Response, ApiError> {
    if proxy.lifecycle.phase() > Phase::Ready {
        return Err(ApiError::ShuttingDown);
    }
    let options = &proxy.options;
    let outgoing = Outgoing::of(&request);
    let body = body::read(request, options.body_limit, options.read_timeout).await?;
    let outgoing = outgoing.with_body(body);
    let open = proxy.lifecycle.accept().ok_or(ApiError::ShuttingDown)?;

    let key = key(&outgoing).await;
    let held = proxy.choose(key, None);
    let mut held = held.ok_or_else(|| proxy.without_replica())?;
    let mut answer = proxy.ask(held.replica(), &outgoing).await;
    if is_refused(&answer)
        && let Some(other) = proxy.choose(key, Some(held.replica()))
    {
        proxy.metrics.retries.inc();
        answer = proxy.ask(other.replica(), &outgoing).await;
        held = other;
    }
    let Reply {
        head,
        body,
        connection,
    } = answer?;
    let interrupted = interrupted(held.replica().clone(), proxy.lifecycle.clone());
    let forwarded = Forwarded {
        body,
        events: Events::of(&head),
        interrupted: Box::pin(interrupted),
        held,
        over: false,
        _connection: connection,
        _open: open,
    };
    Ok(Response::from_parts(head, Body::new(forwarded)))
}

/// What a request's prompt has in common with others. A large body is read on another thread.
async fn key(outgoing: &Outgoing) -> Option<u64> {
    const LARGE: usize = 256 << 10;
    let body = outgoing.body().clone();
    match body.len() > LARGE {
        // Without a key it goes to any replica.
        true => spawn_blocking(move || affinity::key(&body))
            .await
            .unwrap_or(None),
        false => affinity::key(&body),
    }
}

/// Whether a replica has not begun to answer, or has a full queue, so that another one may answer.
fn is_refused(answer: &Result<Reply, ApiError>) -> bool {
    match answer {
        Ok(reply) => matches!(
            reply.head.status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ),
        Err(error) => *error == ApiError::ReplicaFailed,
    }
}

impl Proxy {
    /// Sends a request to a replica, and waits until the reply begins.
    async fn ask(&self, replica: &Arc<Replica>, outgoing: &Outgoing) -> Result<Reply, ApiError> {
        let sent = tokio::select! {
            sent = send(replica.address(), outgoing) => sent,
            error = interrupted(replica.clone(), self.lifecycle.clone()) => return Err(error),
        };
        match &sent {
            Ok(reply) if reply.head.status == StatusCode::SERVICE_UNAVAILABLE => {
                replica.failed(Failure::Refuses("it takes no requests".to_owned()));
            }
            Ok(_) => (),
            Err(error) => replica.failed(Failure::Silent(format!(
                "it did not answer a request: {error}"
            ))),
        }
        sent.map_err(|_| ApiError::ReplicaFailed)
    }
}
