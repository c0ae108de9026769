//! Replies of JSON.

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json as object};

use crate::error::ApiError;

/// A reply of one JSON object.
pub fn json(status: StatusCode, value: &Value) -> Response {
    written(status, value.to_string())
}

/// A reply of one JSON object that is written already.
pub fn written(status: StatusCode, json: String) -> Response {
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The same with when to try again, in seconds.
pub fn json_later(status: StatusCode, value: &Value, retry_after: Option<u64>) -> Response {
    let mut response = json(status, value);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// The reply of `/health`: that all is well, or in a word what is not, and the error of a request that comes now.
pub fn health(state: Result<(), (&str, ApiError)>) -> Response {
    match state {
        Ok(()) => json(StatusCode::OK, &object!({ "status": "ok" })),
        Err((word, error)) => json_later(
            error.status(),
            &object!({ "status": word }),
            error.retry_after(),
        ),
    }
}

/// A reply of a text of this content type.
pub fn text(kind: &'static str, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        json_later(self.status(), &self.body(), self.retry_after())
    }
}
