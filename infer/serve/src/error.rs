//! What is wrong with a request, as its client is told.

use std::time::Duration;

use axum::http::StatusCode;
use firebox_console::numbers::{bytes as memory, counted, grouped};
use serde_json::{Value, json};

/// Why a request has no answer. Its text is a sentence that says what was wrong and what is allowed; it never has a path, an
/// address or the text of a panic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body is not a JSON object.
    #[error("the body is not a JSON object: {reason}")]
    InvalidJson {
        /// What is wrong.
        reason: String,
    },
    /// A field is not there.
    #[error("{param} is missing; it must be {allowed}")]
    Missing {
        /// The field.
        param: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A field has a value of another type.
    #[error("{param} is {found}; it must be {allowed}")]
    InvalidType {
        /// The field.
        param: String,
        /// The type of its value, in words.
        found: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// A field has a value that is not allowed.
    #[error("{message}")]
    InvalidValue {
        /// The field.
        param: String,
        /// The value, and what it may be.
        message: String,
    },
    /// A field asks for what this server does not do.
    #[error("{param} is not supported{}", because(reason))]
    Unsupported {
        /// The field.
        param: String,
        /// Why, or what to do instead; may be empty.
        reason: String,
    },
    /// The prompt, or the prompt together with the tokens that were asked for, is beyond the context.
    #[error(
        "the prompt has {} tokens and {} more were asked for, but the model's context is {} tokens",
        grouped(*.prompt as u64), grouped(*.count as u64), grouped(*.context as u64)
    )]
    ContextLength {
        /// The field that has the prompt.
        param: &'static str,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate.
        count: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A very long prompt has more tokens than the context; how many was not found out.
    #[error("the prompt has more tokens than the model's context of {}", grouped(*.context as u64))]
    PromptLength {
        /// The field that has the prompt.
        param: &'static str,
        /// Tokens of the context.
        context: usize,
    },
    /// The key is missing or wrong.
    #[error("{}", match given {
        true => "the API key is wrong",
        false => "an API key is required: send the header `authorization: Bearer KEY`",
    })]
    InvalidApiKey {
        /// Whether there was one.
        given: bool,
    },
    /// Another model than the served one.
    #[error("there is no model {name:?}; this server has {served:?}")]
    ModelNotFound {
        /// The name that was asked for.
        name: String,
        /// The served model.
        served: String,
    },
    /// No such path.
    #[error("there is no {path:?} here")]
    NotFound {
        /// The path.
        path: String,
    },
    /// A path that has other methods.
    #[error("{path:?} does not take {method}")]
    MethodNotAllowed {
        /// The path.
        path: String,
        /// The method.
        method: String,
    },
    /// The body is larger than the limit.
    #[error("the body is larger than {} bytes", grouped(*.limit as u64))]
    TooLarge {
        /// The most bytes.
        limit: usize,
    },
    /// The pictures of a request take more memory than those of all requests may.
    #[error(
        "a request with {} holds {} of memory while it waits; this server has {} for pictures",
        counted(*.pictures as u128, "picture"), memory(u128::from(*.bytes)), memory(u128::from(*.limit))
    )]
    PicturesTooLarge {
        /// Number of pictures.
        pictures: usize,
        /// Their bytes.
        bytes: u64,
        /// The most bytes.
        limit: u64,
    },
    /// The pictures of requests that wait leave no room for others.
    #[error(
        "the pictures of requests that wait take all memory that this server has for them; try again in {} seconds",
        seconds(*.retry_after)
    )]
    PicturesFull {
        /// When to try again.
        retry_after: Duration,
    },
    /// Headers or body do not come.
    #[error("the request did not come within {} seconds", after.as_secs())]
    Timeout {
        /// How long they had.
        after: Duration,
    },
    /// The queue is full.
    #[error("the queue is full; try again in {} seconds", seconds(*.retry_after))]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The server has no model yet.
    #[error("the model is being loaded")]
    Loading,
    /// The server takes no requests any more.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// None of the servers behind this address is healthy.
    #[error("none of the servers behind this address is healthy")]
    Unavailable,
    /// The server that a request was sent to has failed.
    #[error("the server that answered has failed")]
    ReplicaFailed,
    /// A fault of ours.
    #[error("the server failed to answer; its log says more")]
    Internal,
}

/// When a client may ask again where no server takes requests, since one may stand there by then.
const RESTART: Duration = Duration::from_secs(5);

impl ApiError {
    /// The status of the reply.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::InvalidJson { .. }
            | Self::Missing { .. }
            | Self::InvalidType { .. }
            | Self::InvalidValue { .. }
            | Self::Unsupported { .. }
            | Self::ContextLength { .. }
            | Self::PromptLength { .. } => StatusCode::BAD_REQUEST,
            Self::InvalidApiKey { .. } => StatusCode::UNAUTHORIZED,
            Self::ModelNotFound { .. } | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } | Self::PicturesTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Overloaded { .. } | Self::PicturesFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Loading | Self::ShuttingDown | Self::Unavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::ReplicaFailed => StatusCode::BAD_GATEWAY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The field `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InvalidApiKey { .. } => "authentication_error",
            Self::Overloaded { .. } | Self::PicturesFull { .. } => "rate_limit_error",
            Self::Loading
            | Self::ShuttingDown
            | Self::Unavailable
            | Self::ReplicaFailed
            | Self::Internal => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The field `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidJson { .. } => "invalid_json",
            Self::Missing { .. } => "missing",
            Self::InvalidType { .. } => "invalid_type",
            Self::InvalidValue { .. } => "invalid_value",
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::ContextLength { .. } | Self::PromptLength { .. } => "context_length_exceeded",
            Self::InvalidApiKey { .. } => "invalid_api_key",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::NotFound { .. } => "not_found",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::TooLarge { .. } | Self::PicturesTooLarge { .. } => "too_large",
            Self::Timeout { .. } => "timeout",
            Self::Overloaded { .. } | Self::PicturesFull { .. } => "overloaded",
            Self::Loading => "loading",
            Self::ShuttingDown => "shutting_down",
            Self::Unavailable => "unavailable",
            Self::ReplicaFailed => "replica_failed",
            Self::Internal => "internal",
        }
    }

    /// The field `param`: the field of the request that is wrong.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Missing { param, .. }
            | Self::InvalidType { param, .. }
            | Self::InvalidValue { param, .. }
            | Self::Unsupported { param, .. } => Some(param),
            Self::ContextLength { param, .. } | Self::PromptLength { param, .. } => Some(param),
            Self::ModelNotFound { .. } => Some("model"),
            Self::PicturesTooLarge { .. } => Some("messages"),
            _ => None,
        }
    }

    /// The header `retry-after`, in seconds.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Overloaded { retry_after } | Self::PicturesFull { retry_after } => {
                Some(seconds(*retry_after))
            }
            Self::Loading | Self::ShuttingDown | Self::Unavailable => Some(seconds(RESTART)),
            _ => None,
        }
    }

    /// The object that clients read.
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.to_string(), "type": self.kind(), "param": self.param(), "code": self.code(),
        } })
    }
}

/// Whole seconds, at least one.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs_f64().ceil().max(1.0) as u64
}

fn because(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_reads_four_keys() {
        let error = ApiError::ContextLength {
            param: "prompt",
            prompt: 4000,
            count: 16,
            context: 2048,
        };
        let expected = json!({ "error": {
            "message": "the prompt has 4,000 tokens and 16 more were asked for, but the model's context is 2,048 tokens",
            "type": "invalid_request_error", "param": "prompt", "code": "context_length_exceeded",
        } });
        assert_eq!(error.body(), expected);
        assert_eq!(ApiError::Internal.body()["error"]["param"], Value::Null);
    }

    #[test]
    fn a_full_queue_says_when_to_try_again_in_whole_seconds() {
        let after = |millis| ApiError::Overloaded {
            retry_after: Duration::from_millis(millis),
        };
        assert_eq!(after(0).retry_after(), Some(1));
        assert_eq!(after(1200).retry_after(), Some(2));
        assert_eq!(
            after(1200).to_string(),
            "the queue is full; try again in 2 seconds"
        );
    }
}
