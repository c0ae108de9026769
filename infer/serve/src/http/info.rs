//! The paths that say what is served.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{App, body, respond};
use crate::error::ApiError;
use crate::lifecycle::Phase;
use crate::metrics::TEXT_FORMAT;
use crate::request::{Body as Fields, DetokenizeRequest, TokenizeRequest};
use crate::served::Served;

/// Fields of `tokenizer_config.json` that clients may expect to be there.
const TOKENIZER_FIELDS: [&str; 5] = [
    "eos_token",
    "bos_token",
    "pad_token",
    "unk_token",
    "tokenizer_class",
];

/// `/`
pub async fn page() -> Response {
    respond::text("text/html; charset=utf-8", include_str!("../page.html"))
}

/// `/health`
pub async fn health(State(app): State<Arc<App>>) -> Response {
    respond::health(match app.lifecycle.phase() {
        Phase::Ready => Ok(()),
        Phase::Draining | Phase::Stopping => Err(("draining", ApiError::ShuttingDown)),
    })
}

/// `/metrics`
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    respond::text(TEXT_FORMAT, app.metrics.text())
}

/// `/version`
pub async fn version() -> Response {
    let version = json!({ "version": env!("CARGO_PKG_VERSION") });
    respond::json(StatusCode::OK, &version)
}

/// `/v1/models`
pub async fn models(State(app): State<Arc<App>>) -> Response {
    let list = json!({ "object": "list", "data": [card(&app.served)] });
    respond::json(StatusCode::OK, &list)
}

/// `/v1/models/ID`
pub async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // What is no text is no name.
    let Path(id) = id.unwrap_or_else(|_| Path(char::REPLACEMENT_CHARACTER.to_string()));
    app.served.check_model(Some(id.trim_end_matches('/')))?;
    Ok(respond::json(StatusCode::OK, &card(&app.served)))
}

fn card(served: &Served) -> Value {
    json!({
        "id": served.name, "object": "model", "created": served.created, "owned_by": "firebox",
        "max_model_len": served.context, "input_modalities": input_modalities(served),
    })
}

/// What a request may have.
fn input_modalities(served: &Served) -> &'static [&'static str] {
    match served.pictures {
        Some(_) => &["text", "image"],
        None => &["text"],
    }
}

/// `/tokenizer_info`: the fields of `tokenizer_config.json`, with special tokens as texts.
pub async fn tokenizer(State(app): State<Arc<App>>) -> Response {
    let config = &app.served.config;
    let mut fields: Map<String, Value> = config.fields.clone();
    for name in TOKENIZER_FIELDS {
        fields.entry(name).or_insert(Value::Null);
    }
    for (&name, token) in &config.special_tokens {
        fields.insert(name.to_owned(), token.as_str().into());
    }
    fields.insert(
        "chat_template".to_owned(),
        config.chat_template.clone().into(),
    );
    respond::json(StatusCode::OK, &Value::Object(fields))
}

/// `/tokenize`
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let options = &app.options;
    let bytes = body::read(request, options.body_limit, options.read_timeout).await?;
    let work = move |app: &App| {
        let body = Fields::read(&bytes, TokenizeRequest::KNOWN)?;
        app.ignore(&body.unknown);
        let request = TokenizeRequest::read(&body)?;
        let served = &app.served;
        served.check_model(request.model.as_deref())?;
        let begin = request.add_special_tokens;
        let tokens = served.encode("prompt", &request.prompt, begin)?;
        Ok(json!({ "count": tokens.len(), "max_model_len": served.context, "tokens": tokens }))
    };
    Ok(respond::json(
        StatusCode::OK,
        &app.clone().with_text(work).await?,
    ))
}

/// `/detokenize`
pub async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let options = &app.options;
    let bytes = body::read(request, options.body_limit, options.read_timeout).await?;
    let work = move |app: &App| {
        let body = Fields::read(&bytes, DetokenizeRequest::KNOWN)?;
        app.ignore(&body.unknown);
        let request = DetokenizeRequest::read(&body)?;
        let served = &app.served;
        served.check_model(request.model.as_deref())?;
        served.check_ids("tokens", request.tokens.iter().copied())?;
        Ok(json!({ "prompt": served.tokenizer.decode_with(&request.tokens, true) }))
    };
    Ok(respond::json(
        StatusCode::OK,
        &app.clone().with_text(work).await?,
    ))
}
