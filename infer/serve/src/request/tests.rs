use std::fmt;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::error::ApiError;

/// A request that is read, or why it is not.
fn completion(body: &Value) -> Result<CompletionRequest, ApiError> {
    let bytes = body.to_string().into_bytes();
    CompletionRequest::read(&Body::read(&bytes, CompletionRequest::KNOWN)?)
}

fn chat(body: &Value) -> Result<ChatRequest, ApiError> {
    let bytes = body.to_string().into_bytes();
    ChatRequest::read(&Body::read(&bytes, ChatRequest::KNOWN)?)
}

/// A valid body with one field more.
fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

fn prompt_with(name: &str, value: Value) -> Value {
    with(json!({ "prompt": "a" }), name, value)
}

fn chat_with(name: &str, value: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "a" }]);
    with(json!({ "messages": messages }), name, value)
}

#[track_caller]
fn is_refused<T: fmt::Debug>(read: Result<T, ApiError>, code: &str, param: &str, message: &str) {
    let error = read.unwrap_err();
    let found = (error.code(), error.param(), error.to_string());
    assert_eq!(found, (code, Some(param), message.to_owned()));
}

#[test]
fn absent_fields_have_defaults() {
    let body = json!({ "prompt": "a", "seed": null, "stop": null, "stream_options": null });
    let CompletionRequest {
        generation,
        prompts,
        logprobs,
        echo,
    } = completion(&body).unwrap();
    assert_eq!(prompts, [Prompt::Text("a".to_owned())]);
    assert_eq!((logprobs, echo), (None, false));
    assert_eq!(generation.sampling.temperature, 1.0);
    assert_eq!(
        (generation.n, generation.seed, generation.stream),
        (1, None, None)
    );
    assert_eq!(
        (generation.max_tokens, generation.special_tokens),
        (None, false)
    );
}

#[test]
fn prompts_have_four_shapes() {
    let prompts = |prompt| completion(&json!({ "prompt": prompt })).map(|read| read.prompts);
    let text = |text: &str| Prompt::Text(text.to_owned());
    assert_eq!(prompts(json!("")), Ok(vec![text("")]));
    assert_eq!(prompts(json!(["a", "b"])), Ok(vec![text("a"), text("b")]));
    assert_eq!(prompts(json!([1, 2.0])), Ok(vec![Prompt::Ids(vec![1, 2])]));
    let many = Ok(vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
    assert_eq!(prompts(json!([[1], [2, 3]])), many);
    for (prompt, code, param, message) in [
        (
            json!(1),
            "invalid_type",
            "prompt",
            format!("prompt is a number; it must be {ALLOWED}"),
        ),
        (
            json!([]),
            "invalid_value",
            "prompt",
            format!("prompt is an empty list; it must be {ALLOWED}"),
        ),
        (
            json!([[]]),
            "invalid_value",
            "prompt[0]",
            "prompt[0] is an empty list; a prompt has at least one token".to_owned(),
        ),
        (
            json!([1, "a"]),
            "invalid_type",
            "prompt[1]",
            "prompt[1] is a text; it must be an integer".to_owned(),
        ),
        (
            json!(["a", 1]),
            "invalid_type",
            "prompt[1]",
            "prompt[1] is a number; it must be a text".to_owned(),
        ),
        (
            json!([1, -1]),
            "invalid_value",
            "prompt[1]",
            "prompt[1] is -1; it must be an integer from 0 to 4294967295".to_owned(),
        ),
        (
            json!([[1], [true]]),
            "invalid_type",
            "prompt[1][0]",
            "prompt[1][0] is true or false; it must be an integer".to_owned(),
        ),
        (
            json!([null]),
            "invalid_type",
            "prompt[0]",
            "prompt[0] is null; it must be a text, a list of token ids, or a token id".to_owned(),
        ),
        (
            json!(vec!["a"; 1025]),
            "invalid_value",
            "prompt",
            "prompt has more than 1024 prompts".to_owned(),
        ),
    ] {
        is_refused(prompts(prompt), code, param, &message);
    }
    is_refused(
        completion(&json!({})),
        "missing",
        "prompt",
        &format!("prompt is missing; it must be {ALLOWED}"),
    );
}

const ALLOWED: &str =
    "a text, a list of texts, a list of token ids, or a list of lists of token ids";

#[test]
fn ranges_are_checked_and_named() {
    for (name, value, message) in [
        (
            "max_tokens",
            json!(-1),
            "is -1; it must be an integer of at least 0",
        ),
        (
            "max_tokens",
            json!(1.5),
            "is 1.5; it must be an integer of at least 0",
        ),
        (
            "temperature",
            json!(2.1),
            "is 2.1; it must be a number from 0 to 2",
        ),
        (
            "top_p",
            json!(0),
            "is 0; it must be a number greater than 0 and at most 1",
        ),
        (
            "top_k",
            json!(-2),
            "is -2; it must be an integer from -1 to 4294967295",
        ),
        (
            "min_p",
            json!(1.01),
            "is 1.01; it must be a number from 0 to 1",
        ),
        ("n", json!(0), "is 0; it must be an integer from 1 to 128"),
        (
            "n",
            json!(129),
            "is 129; it must be an integer from 1 to 128",
        ),
        (
            "presence_penalty",
            json!(-3),
            "is -3; it must be a number from -2 to 2",
        ),
        (
            "frequency_penalty",
            json!(3),
            "is 3; it must be a number from -2 to 2",
        ),
        (
            "repetition_penalty",
            json!(0),
            "is 0; it must be a number greater than 0",
        ),
        (
            "logprobs",
            json!(21),
            "is 21; it must be an integer from 0 to 20",
        ),
        ("stop", json!(vec!["a"; 17]), "has more than 16 texts"),
        (
            "stop",
            json!(""),
            "is empty; it must be a text of at least one character",
        ),
    ] {
        let message = format!("{name} {message}");
        is_refused(
            completion(&prompt_with(name, value)),
            "invalid_value",
            name,
            &message,
        );
    }
    for (name, value, message) in [
        ("max_tokens", json!("4"), "is a text; it must be an integer"),
        ("temperature", json!("1"), "is a text; it must be a number"),
        ("stream", json!(1), "is a number; it must be true or false"),
        (
            "logprobs",
            json!(true),
            "is true or false; it must be an integer",
        ),
        (
            "stop",
            json!(3),
            "is a number; it must be a text or a list of texts",
        ),
        (
            "stop_token_ids",
            json!(3),
            "is a number; it must be a list of token ids",
        ),
        (
            "logit_bias",
            json!([1]),
            "is a list; it must be an object of token ids with numbers",
        ),
        ("model", json!(1), "is a number; it must be a text"),
        ("echo", json!("yes"), "is a text; it must be true or false"),
    ] {
        let message = format!("{name} {message}");
        is_refused(
            completion(&prompt_with(name, value)),
            "invalid_type",
            name,
            &message,
        );
    }
}

#[test]
fn fields_are_read() {
    let body = json!({
        "model": "m", "prompt": [5], "max_tokens": 0, "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1, "n": 2,
        "best_of": 2, "seed": -1, "stop": ["a", "b"], "stop_token_ids": [7], "ignore_eos": true,
        "logit_bias": { "5": 1, "3": -100 }, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1,
        "logprobs": 5, "echo": true, "stream": true, "skip_special_tokens": false, "include_stop_str_in_output": true,
        "stream_options": { "include_usage": true, "continuous_usage_stats": true, "other": 1 }, "suffix": "",
    });
    let CompletionRequest {
        generation, echo, ..
    } = completion(&body).unwrap();
    assert!(echo && generation.ignore_eos && generation.special_tokens && generation.include_stop);
    let all = Some(StreamOptions {
        include_usage: true,
        continuous_usage: true,
    });
    assert_eq!((generation.stream, generation.n), (all, 2));
    assert_eq!(generation.seed, Some(u64::MAX));
    assert_eq!(generation.bias, [(3, -100.0), (5, 1.0)]);
    assert_eq!((generation.stops.len(), generation.stop_ids), (2, vec![7]));
    let sampling = generation.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k),
        (0.0, 0.5, 0)
    );
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (0.1, 1.1));
    assert_eq!(
        (sampling.presence_penalty, sampling.frequency_penalty),
        (1.0, -1.0)
    );
}

#[test]
fn a_bias_names_its_token() {
    let bias = |bias| completion(&prompt_with("logit_bias", bias));
    is_refused(
        bias(json!({ "a": 1 })),
        "invalid_value",
        "logit_bias.a",
        "logit_bias.a has no token id for a name",
    );
    is_refused(
        bias(json!({ "3": 101 })),
        "invalid_value",
        "logit_bias.3",
        "logit_bias.3 is 101; it must be a number from -100 to 100",
    );
    let twice = br#"{"prompt": "a", "logit_bias": {"3": 1, "03": 2}}"#;
    let body = Body::read(twice, CompletionRequest::KNOWN).unwrap();
    let read = CompletionRequest::read(&body).unwrap();
    assert_eq!(read.generation.bias, [(3, 2.0)]);
}

#[test]
fn options_of_streams_are_for_streams() {
    is_refused(
        completion(&prompt_with(
            "stream_options",
            json!({ "include_usage": true }),
        )),
        "invalid_value",
        "stream_options",
        "stream_options is for streams; set stream to true or leave it out",
    );
}

#[test]
fn what_would_mislead_is_refused() {
    for (name, value, reason) in [
        (
            "suffix",
            json!("x"),
            ": text is generated after the prompt alone",
        ),
        ("best_of", json!(3), ": it must equal n"),
        (
            "tools",
            json!([{ "type": "function" }]),
            ": models are not given tools; leave it out, or set tool_choice to \"none\"",
        ),
        (
            "functions",
            json!([{}]),
            ": models are not given tools; leave it out, or set function_call to \"none\"",
        ),
        (
            "response_format",
            json!({ "type": "json_object" }),
            ": only {\"type\": \"text\"} is",
        ),
        (
            "modalities",
            json!(["text", "audio"]),
            ": only [\"text\"] is",
        ),
        ("audio", json!({}), ""),
        ("prediction", json!({}), ""),
    ] {
        let message = format!("{name} is not supported{reason}");
        is_refused(
            completion(&prompt_with(name, value.clone())),
            "unsupported_parameter",
            name,
            &message,
        );
        is_refused(
            chat(&chat_with(name, value)),
            "unsupported_parameter",
            name,
            &message,
        );
    }
    let mut unused = chat_with("tools", json!([{}]));
    unused["tool_choice"] = json!("none");
    unused["response_format"] = json!({ "type": "text" });
    unused["modalities"] = json!(["text"]);
    assert!(chat(&unused).is_ok());
    assert!(chat(&chat_with("tools", json!([]))).is_ok());
}

#[test]
fn messages_are_texts_or_parts_of_text() {
    let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b", "cache_control": {} }]);
    let messages = json!([{ "role": "system", "content": "s", "name": "x" }, { "role": "user", "content": parts }]);
    let read = chat(&json!({ "messages": messages, "max_tokens": 3, "max_completion_tokens": 5 }))
        .unwrap();
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: vec![Part::Text(content.to_owned())],
    };
    let texts: Vec<String> = read.messages.iter().map(|own| own.text("")).collect();
    assert_eq!(texts, ["s", "a\nb"]);
    assert_eq!(read.messages[0], message("system", "s"));
    assert_eq!(read.generation.max_tokens, Some(5));

    let content = |content| chat(&json!({ "messages": [{ "role": "user", "content": content }] }));
    is_refused(
        content(json!([{ "type": "input_audio", "input_audio": {} }])),
        "unsupported_parameter",
        "messages[0].content[0]",
        "messages[0].content[0] is not supported: it is a part of type \"input_audio\", and parts are of type \"text\" or \"image_url\"",
    );
    is_refused(
        content(json!(null)),
        "missing",
        "messages[0].content",
        "messages[0].content is missing; it must be a text or a list of parts of type \"text\" or \"image_url\"",
    );
    is_refused(
        chat(&json!({ "messages": [] })),
        "invalid_value",
        "messages",
        "messages is an empty list; it must have at least one message",
    );
    is_refused(
        chat(&json!({ "messages": [{ "content": "a" }] })),
        "missing",
        "messages[0].role",
        "messages[0].role is missing; it must be a text such as \"user\"",
    );
    is_refused(
        chat(&chat_with("max_tokens", json!(0))),
        "invalid_value",
        "max_tokens",
        "max_tokens is 0; it must be an integer of at least 1",
    );
}

#[test]
fn log_probabilities_of_chats_are_switched_on() {
    let logprobs = |wanted: Value, likeliest: Value| {
        let body = with(chat_with("logprobs", wanted), "top_logprobs", likeliest);
        chat(&body).map(|read| read.logprobs)
    };
    assert_eq!(logprobs(json!(true), json!(null)), Ok(Some(0)));
    assert_eq!(logprobs(json!(true), json!(20)), Ok(Some(20)));
    assert_eq!(logprobs(json!(false), json!(null)), Ok(None));
    assert_eq!(logprobs(json!(false), json!(0)), Ok(None));
    is_refused(
        logprobs(json!(null), json!(1)),
        "invalid_value",
        "top_logprobs",
        "top_logprobs is for log-probabilities; set logprobs to true or leave it out",
    );
}

#[test]
fn a_chat_template_is_given_an_object() {
    let variables = |given: Value| {
        let body = chat_with("chat_template_kwargs", given);
        chat(&body).map(|read| Value::from(read.variables))
    };
    let given = json!({ "enable_thinking": false, "names": ["a", { "b": 1.5 }] });
    assert_eq!(variables(given.clone()), Ok(given));
    assert_eq!(variables(json!(null)), Ok(json!({})));
    is_refused(
        variables(json!("a")),
        "invalid_type",
        "chat_template_kwargs",
        "chat_template_kwargs is a text; it must be an object, such as {\"enable_thinking\": false}",
    );
}

/// JSON of any kind, mostly small.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-5i64..200).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["", "a", "text", "none", "image_url", "5", "user"])
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        let keys = prop::sample::select(vec![
            "type",
            "text",
            "role",
            "content",
            "include_usage",
            "5",
            "x",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((keys, inner), 0..4).prop_map(|members| {
                let members = members
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value));
                Value::Object(members.collect())
            }),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Value> {
    let names: Vec<&str> = [CompletionRequest::KNOWN, ChatRequest::KNOWN]
        .concat()
        .concat();
    let member = (prop::sample::select(names), any_json());
    prop::collection::vec(member, 0..6).prop_map(|members| {
        let mut body = json!({ "prompt": "a", "messages": [{ "role": "user", "content": "a" }] });
        for (name, value) in members {
            body[name] = value;
        }
        body
    })
}

/// Reads bytes as every kind of request; each is read, or refused with a status of the client's.
fn read_all(bytes: &[u8]) -> Vec<Result<(), ApiError>> {
    vec![
        Body::read(bytes, CompletionRequest::KNOWN)
            .and_then(|body| CompletionRequest::read(&body).map(drop)),
        Body::read(bytes, ChatRequest::KNOWN).and_then(|body| ChatRequest::read(&body).map(drop)),
        Body::read(bytes, TokenizeRequest::KNOWN)
            .and_then(|body| TokenizeRequest::read(&body).map(drop)),
        Body::read(bytes, DetokenizeRequest::KNOWN)
            .and_then(|body| DetokenizeRequest::read(&body).map(drop)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_body_is_read_or_refused_as_the_clients_fault(body in any_body()) {
        for error in read_all(body.to_string().as_bytes()).into_iter().filter_map(Result::err) {
            prop_assert_eq!(error.status(), 400);
            prop_assert!(error.to_string().len() < 1000, "{error}");
        }
    }

    #[test]
    fn damaged_bodies_are_refused(body in any_body(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = body.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let cut = read_all(&bytes[..at]);
        prop_assert!(cut.iter().all(Result::is_err));
        for error in read_all(&bytes).into_iter().chain(cut).filter_map(Result::err) {
            prop_assert_eq!(error.status(), 400);
        }
    }
}

#[test]
fn pictures_are_parts_with_an_address() {
    let content = |parts: Value| {
        let read = chat(&json!({ "messages": [{ "role": "user", "content": parts }] }));
        Ok::<_, ApiError>(read?.messages.remove(0))
    };
    let read = content(json!([
        { "type": "text", "text": "a" },
        { "type": "image_url", "image_url": { "url": "data:,", "detail": "low" } },
        { "type": "text", "text": "b" },
        { "type": "text", "text": "c" },
        { "type": "image_url", "image_url": "b.png" },
    ]));
    let read = read.unwrap();
    assert_eq!(read.text("<i>"), "a<i>b\nc<i>");
    let urls: Vec<(&str, &str)> = read
        .pictures()
        .map(|picture| (picture.param.as_str(), picture.url.as_str()))
        .collect();
    assert_eq!(
        urls,
        [
            ("messages[0].content[1].image_url.url", "data:,"),
            ("messages[0].content[4].image_url", "b.png")
        ]
    );
    is_refused(
        content(json!([{ "type": "image_url" }])),
        "missing",
        "messages[0].content[0].image_url",
        "messages[0].content[0].image_url is missing; it must be an object such as {\"url\": \"data:image/png;base64,…\"}",
    );
    is_refused(
        content(json!([{ "type": "image_url", "image_url": {} }])),
        "missing",
        "messages[0].content[0].image_url.url",
        "messages[0].content[0].image_url.url is missing; it must be that of a picture, such as \"data:image/png;base64,…\"",
    );
    is_refused(
        content(json!([{ "type": "image_url", "image_url": 3 }])),
        "invalid_type",
        "messages[0].content[0].image_url",
        "messages[0].content[0].image_url is a number; it must be an object such as {\"url\": \"data:image/png;base64,…\"}",
    );
}
