//! The paths that generate texts.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::response::Response;

use super::{App, body, respond};
use crate::error::ApiError;
use crate::job::Rejected;
use crate::lifecycle::Phase;
use crate::metrics::Endpoint;
use crate::prepare::{self, Prepared};
use crate::reply::{Asked, Reply, StreamBody, new_id};
use crate::request::{Body as Fields, ChatRequest, CompletionRequest, StreamOptions};

/// `/v1/completions`
pub async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, Endpoint::Completions, request).await
}

/// `/v1/chat/completions`
pub async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(app, Endpoint::Chat, request).await
}

async fn answer(app: Arc<App>, endpoint: Endpoint, request: Request) -> Result<Response, ApiError> {
    /// More tokens with log-probabilities than this are written on another thread.
    const MANY: usize = 256;
    let accepted = accept(app.clone(), endpoint, request).await;
    let (reply, stream) = accepted.inspect_err(|error| {
        let rejected = &app.metrics.rejected;
        rejected.with_label_values(&[error.code()]).inc();
    })?;
    let Some(options) = stream else {
        let ended = reply.ended().await?;
        let json = match ended.scored() > MANY {
            true => app.with_text(|_| Ok(ended.json().to_string())).await?,
            false => ended.json().to_string(),
        };
        return Ok(respond::written(StatusCode::OK, json));
    };
    let body = StreamBody::begin(reply, options).await?;
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A request that was read.
struct Read {
    prepared: Prepared,
    n: usize,
    logprobs: Option<usize>,
    stream: Option<StreamOptions>,
}

/// Reads a request and submits its jobs.
async fn accept(
    app: Arc<App>,
    endpoint: Endpoint,
    request: Request,
) -> Result<(Reply, Option<StreamOptions>), ApiError> {
    let arrived = Instant::now();
    if app.lifecycle.phase() > Phase::Ready {
        return Err(ApiError::ShuttingDown);
    }
    let options = &app.options;
    let bytes = body::read(request, options.body_limit, options.read_timeout).await?;
    let open = app.lifecycle.accept().ok_or(ApiError::ShuttingDown)?;
    let work = move |app: &App| read(app, endpoint, &bytes);
    let read = app.clone().with_text(work).await?;
    let Prepared {
        jobs,
        inbox,
        prompts,
    } = read.prepared;
    let asked = Asked {
        id: new_id(endpoint)?,
        endpoint,
        prompts,
        n: read.n,
        logprobs: read.logprobs,
        arrived,
    };
    let submitted = app.scheduler.submit(jobs);
    submitted.map_err(|rejected| match rejected {
        Rejected::QueueFull { retry_after } => ApiError::Overloaded { retry_after },
        Rejected::Closed => ApiError::ShuttingDown,
    })?;
    let (served, metrics) = (app.served.clone(), app.metrics.clone());
    let reply = Reply::new(served, metrics, open, asked, inbox);
    Ok((reply, read.stream))
}

fn read(app: &App, endpoint: Endpoint, bytes: &[u8]) -> Result<Read, ApiError> {
    match endpoint {
        Endpoint::Completions => {
            let body = Fields::read(bytes, CompletionRequest::KNOWN)?;
            app.ignore(&body.unknown);
            let request = CompletionRequest::read(&body)?;
            let (prompts, n) = (request.prompts.len(), request.generation.n);
            check_texts(app, prompts, n)?;
            Ok(Read {
                prepared: prepare::completion(&app.served, &request)?,
                n: request.generation.n,
                logprobs: request.logprobs,
                stream: request.generation.stream,
            })
        }
        Endpoint::Chat => {
            let body = Fields::read(bytes, ChatRequest::KNOWN)?;
            app.ignore(&body.unknown);
            let request = ChatRequest::read(&body)?;
            check_texts(app, 1, request.generation.n)?;
            Ok(Read {
                prepared: prepare::chat(&app.served, &request)?,
                n: request.generation.n,
                logprobs: request.logprobs,
                stream: request.generation.stream,
            })
        }
    }
}

/// Checks, before any prompt is encoded, that the queue can hold the texts of a request.
fn check_texts(app: &App, prompts: usize, n: usize) -> Result<(), ApiError> {
    let (texts, most) = (prompts * n, app.scheduler.most());
    match texts <= most {
        true => Ok(()),
        false => Err(ApiError::InvalidValue {
            param: if n > 1 { "n" } else { "prompt" }.to_owned(),
            message: format!(
                "the request has {texts} texts (prompts times n); the queue of this server holds {most}"
            ),
        }),
    }
}
