//! Bodies of requests, within bounds of size and time.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::error::ApiError;

/// Reads a body.
///
/// # Errors
///
/// When it is larger than `limit` bytes, which is said before it is read whole, does not come in time, or ends early.
pub async fn read(request: Request, limit: usize, within: Duration) -> Result<Vec<u8>, ApiError> {
    let waits = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    let too_large = |body| {
        // A client that waits for a permission to send gets none. Others read a reply only after they have sent everything.
        if !waits {
            tokio::spawn(timeout(within, discard(body)));
        }
        Err(ApiError::TooLarge { limit })
    };
    if body.size_hint().lower() > limit as u64 {
        return too_large(body);
    }
    let mut bytes = Vec::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::InvalidJson {
                reason: "the body ends early".to_owned(),
            })?;
            // A trailer is no data.
            bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            if bytes.len() > limit {
                return Ok(false);
            }
        }
        Ok(true)
    };
    match timeout(within, read).await {
        Ok(Ok(true)) => Ok(bytes),
        Ok(Ok(false)) => too_large(body),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ApiError::Timeout { after: within }),
    }
}

async fn discard(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
}
