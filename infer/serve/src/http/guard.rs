//! What holds for all paths: keys, browsers, and faults.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE,
};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use firebox_console::panics::caught;
use sha2::{Digest, Sha256};

use super::Options;
use crate::error::ApiError;

/// Paths that need no key: probes have none, and the page has no secrets.
const OPEN: [&str; 3] = ["/", "/health", "/v1/health"];

/// Whom a server lets in.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// Digest of the key, since equal digests are compared in the same time as others; `None` lets everybody in.
    key: Option<[u8; 32]>,
}

impl Guard {
    /// Asks for the key of a server.
    pub fn new(options: &Options) -> Self {
        Self {
            key: options.api_key.as_deref().map(digest),
        }
    }

    fn check(self, request: &Request) -> Result<(), ApiError> {
        let path = request.uri().path();
        let path = path
            .strip_suffix('/')
            .filter(|path| !path.is_empty())
            .unwrap_or(path);
        let Some(key) = self.key.filter(|_| !OPEN.contains(&path)) else {
            return Ok(());
        };
        let header = request.headers().get(AUTHORIZATION);
        let given = header.and_then(|value| {
            let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        match given {
            Some(given) if digest(given) == key => Ok(()),
            _ => Err(ApiError::InvalidApiKey {
                given: header.is_some(),
            }),
        }
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Lets a request pass, and catches what goes wrong with it.
pub async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    // A browser's key would be anybody's.
    let for_browsers = guard.key.is_none();
    let mut response = if let Err(error) = guard.check(&request) {
        let mut response = error.into_response();
        let bearer = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        response
    } else if for_browsers && request.method() == Method::OPTIONS {
        preflight()
    } else {
        without_panic(next.run(request)).await
    };
    if for_browsers {
        let everybody = HeaderValue::from_static("*");
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, everybody);
    }
    response
}

/// What a browser asks before it sends a request to another origin.
fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, OPTIONS"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "*, authorization"),
        (ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// The reply, or that of a fault if there is none because of a panic.
async fn without_panic(reply: impl Future<Output = Response>) -> Response {
    let mut reply = pin!(reply);
    poll_fn(|context| match caught(|| reply.as_mut().poll(context)) {
        Ok(poll) => poll,
        Err(message) => {
            tracing::error!("a request failed: {message}");
            Poll::Ready(ApiError::Internal.into_response())
        }
    })
    .await
}

/// The reply of other paths.
pub async fn not_found(request: Request) -> ApiError {
    ApiError::NotFound {
        path: request.uri().path().to_owned(),
    }
}

/// The reply to other methods.
pub async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed {
        path: request.uri().path().to_owned(),
        method: request.method().to_string(),
    }
}
