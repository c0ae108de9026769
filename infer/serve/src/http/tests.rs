mod clients;
mod fuzz;

use serde_json::{Value, json};

use super::*;
use crate::job::Rejected;
use crate::testing::{
    Answer, CONTEXT, Client, Script, Server, TEMPLATE, served, served_with_template,
};

fn plain() -> Server {
    Server::scripted(Script::default())
}

#[test]
fn a_completion_has_its_text_and_usage() {
    let server = plain();
    let body = json!({ "prompt": "fire", "max_tokens": 9, "user": "x", "model": "tiny" });
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let mut reply = answer.json();
    assert!(reply["id"].as_str().unwrap().starts_with("cmpl-"));
    assert!(reply["created"].as_u64().unwrap() > 1_700_000_000);
    for key in ["id", "created", "system_fingerprint"] {
        reply.as_object_mut().unwrap().remove(key).unwrap();
    }
    let expected = json!({
        "object": "text_completion", "model": "tiny",
        "choices": [{
            "index": 0, "text": "a ünd \u{FFFD}", "logprobs": null, "finish_reason": "length", "stop_reason": null,
        }],
        "usage": {
            "prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13,
            "prompt_tokens_details": { "cached_tokens": 1 },
        },
    });
    assert_eq!(reply, expected);
}

#[test]
fn choices_are_sorted_and_a_prompt_counts_once() {
    let server = plain();
    let body = json!({ "prompt": ["a", "bc"], "n": 3, "max_tokens": 2 });
    let reply = server.post("/v1/completions", &body).json();
    let choices = reply["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices
        .iter()
        .map(|choice| choice["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    assert_eq!(reply["usage"]["prompt_tokens"], 3);
    assert_eq!(reply["usage"]["completion_tokens"], 12);
    assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
    let text = server.ask("GET /metrics").body;
    for line in [
        "firebox_prompt_tokens_total 3",
        "firebox_generation_tokens_total 12",
        "firebox_requests_total{endpoint=\"completions\",finish=\"length\"} 6",
        "firebox_time_to_first_token_seconds_count 6",
        "firebox_inter_token_seconds_count 6",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}: {text}");
    }
}

#[test]
fn stop_strings_tokens_and_ends_are_reasons() {
    let server = plain();
    let finish = |body: Value| {
        let choice = server.post("/v1/completions", &body).json()["choices"][0].clone();
        (
            choice["text"].clone(),
            choice["finish_reason"].clone(),
            choice["stop_reason"].clone(),
        )
    };
    let with = |name: &str, value: Value| {
        let mut body = json!({ "prompt": "a", "max_tokens": 30 });
        body[name] = value;
        finish(body)
    };
    assert_eq!(
        with("stop", json!(["nd", "x"])),
        (json!("a ü"), json!("stop"), json!("nd"))
    );
    assert_eq!(
        with("stop_token_ids", json!([100])),
        (json!("a ün"), json!("stop"), json!(100))
    );
    server.scheduler.script.lock().unwrap().tokens = vec![97, 256];
    assert_eq!(
        with("stop", json!([])),
        (json!("a"), json!("stop"), Value::Null)
    );
    let (text, reason, _) = with("ignore_eos", json!(true));
    assert_eq!((text, reason), (json!("a".repeat(15)), json!("length")));
}

/// The texts, log-probabilities and ends of the choices of chunks, joined.
fn joined(chunks: &[Value], choices: usize) -> Vec<Value> {
    let mut joined = vec![json!({ "text": "", "logprobs": null }); choices];
    for choice in chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
    {
        let own = &mut joined[choice["index"].as_u64().unwrap() as usize];
        assert!(
            own.get("finish_reason").is_none(),
            "nothing comes after the end"
        );
        let piece = choice
            .get("text")
            .unwrap_or_else(|| &choice["delta"]["content"]);
        own["text"] =
            (own["text"].as_str().unwrap().to_owned() + piece.as_str().unwrap_or("")).into();
        for (key, values) in choice["logprobs"].as_object().into_iter().flatten() {
            let all = own["logprobs"].as_object().cloned().unwrap_or_default();
            let mut all = Value::Object(all);
            let mut list = all[key].as_array().cloned().unwrap_or_default();
            list.extend(values.as_array().unwrap().iter().cloned());
            all[key] = list.into();
            own["logprobs"] = all;
        }
        if !choice["finish_reason"].is_null() {
            own["finish_reason"] = choice["finish_reason"].clone();
        }
    }
    joined
}

#[test]
fn a_stream_says_what_a_whole_reply_says() {
    let server = plain();
    for (echo, count, stop) in [
        (false, 20, json!(null)),
        (true, 20, json!("火 a")),
        (true, 0, json!(null)),
        (true, 1, json!(null)),
    ] {
        let mut body = json!({
            "prompt": [[0x78, 0xE2, 0x80, 0xA8], [0xC3, 0xBC, 0xE7]], "n": 2, "max_tokens": count, "echo": echo, "logprobs": 2, "stop": stop,
        });
        let whole = server.post("/v1/completions", &body).json();
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        let answer = server.post("/v1/completions", &body);
        assert_eq!(
            answer.header("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        assert!(!answer.body.contains('\u{2028}'));
        let mut chunks = answer.chunks();
        let usage = chunks.pop().unwrap();
        assert_eq!(
            (&usage["choices"], &usage["usage"]),
            (&json!([]), &whole["usage"])
        );
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk["usage"].is_null() && chunk["id"] == usage["id"])
        );
        for (found, expected) in joined(&chunks, 4)
            .iter()
            .zip(whole["choices"].as_array().unwrap())
        {
            for key in ["text", "logprobs", "finish_reason"] {
                assert_eq!(found[key], expected[key], "{key}");
            }
        }
    }
}

#[test]
fn an_echo_has_an_entry_for_each_token_of_prompt_and_text() {
    let server = plain();
    let body = json!({ "prompt": "für", "max_tokens": 3, "echo": true, "logprobs": 1 });
    let choice = server.post("/v1/completions", &body).json()["choices"][0].clone();
    assert_eq!(choice["text"], "füra \u{FFFD}");
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!(["f", "\u{FFFD}", "\u{FFFD}", "r", "a", " ", "\u{FFFD}"])
    );
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2, 3, 4, 5]));
    assert_eq!(
        (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), 7);
    // lm-eval tells greedy tokens by this.
    for entry in 1..7 {
        let top = logprobs["top_logprobs"][entry].as_object().unwrap();
        assert_eq!(
            top.values().next(),
            Some(&logprobs["token_logprobs"][entry])
        );
    }
    // A prompt that fills the context can be scored.
    let body = json!({ "prompt": vec![1; CONTEXT], "max_tokens": 0, "echo": true, "logprobs": 1 });
    let reply = server.post("/v1/completions", &body).json();
    let logprobs = &reply["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), CONTEXT);
}

#[test]
fn the_first_chunk_of_a_chat_has_the_role_and_comes_with_the_first_text() {
    let server = plain();
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    let mut body = json!({ "messages": messages, "max_tokens": 9, "logprobs": true, "top_logprobs": 2, "stop": "nd" });
    let whole = server.post("/v1/chat/completions", &body).json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(
        whole["choices"][0]["message"],
        json!({ "role": "assistant", "content": "a ü" })
    );
    assert_eq!(whole["usage"]["prompt_tokens"], "user:Hi\n".len());
    let content = whole["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(
        content.len() as u64,
        whole["usage"]["completion_tokens"].as_u64().unwrap()
    );
    assert_eq!(content[2]["bytes"], json!([0xC3]));
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);

    body["stream"] = json!(true);
    body["stream_options"] = json!({ "continuous_usage_stats": true });
    let chunks = server.post("/v1/chat/completions", &body).chunks();
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk")
    );
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": "" })
    );
    assert_eq!(chunks[1]["choices"][0]["delta"], json!({ "content": "a" }));
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(joined(&chunks, 1)[0]["text"], "a ü");
    assert_eq!(
        joined(&chunks, 1)[0]["logprobs"],
        whole["choices"][0]["logprobs"]
    );
}

#[test]
fn a_chat_without_a_template_says_so() {
    let messages = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    let refused = |served| {
        let answer =
            Server::new(served, Options::default()).post("/v1/chat/completions", &messages);
        assert_eq!(
            answer.error(),
            (400, "invalid_value".to_owned(), Some("messages".to_owned()))
        );
        answer.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(refused(served()).contains("no chat template"));
    assert!(refused(served_with_template("{% for %}")).contains("cannot be read"));
    let raises = "{{ raise_exception('never ' + messages[0].role) }}";
    assert!(refused(served_with_template(raises)).ends_with("refuses the messages: never user"));
}

#[test]
fn what_does_not_fit_the_model_is_refused_with_the_numbers() {
    let server = plain();
    for (body, code, param, message) in [
        (
            json!({ "prompt": "a", "max_tokens": 64 }),
            "context_length_exceeded",
            "prompt",
            "the prompt has 1 tokens and 64 more were asked for, but the model's context is 64 tokens",
        ),
        (
            json!({ "prompt": vec![1; 64] }),
            "context_length_exceeded",
            "prompt",
            "the prompt has 64 tokens and 1 more were asked for, but the model's context is 64 tokens",
        ),
        // So long a text is not encoded to its end.
        (
            json!({ "prompt": "a".repeat((1 << 20) + 1) }),
            "context_length_exceeded",
            "prompt",
            "the prompt has more tokens than the model's context of 64",
        ),
        (
            json!({ "prompt": [257] }),
            "invalid_value",
            "prompt",
            "prompt has the token 257; the model's tokens are 0 to 256",
        ),
        (
            json!({ "prompt": "a", "stop_token_ids": [999] }),
            "invalid_value",
            "stop_token_ids",
            "stop_token_ids has the token 999; the model's tokens are 0 to 256",
        ),
        (
            json!({ "prompt": "a", "logit_bias": { "300": 1 } }),
            "invalid_value",
            "logit_bias",
            "logit_bias has the token 300; the model's tokens are 0 to 256",
        ),
        (
            json!({ "prompt": ["a", ""] }),
            "invalid_value",
            "prompt",
            "prompt is empty, and this model's texts begin with no token of their own; a client that cuts prompts to fit (lm-eval without max_length) may have left nothing of it",
        ),
    ] {
        let answer = server.post("/v1/completions", &body);
        assert_eq!(
            answer.error(),
            (400, code.to_owned(), Some(param.to_owned()))
        );
        assert_eq!(answer.json()["error"]["message"], message);
    }
    let long = json!({ "prompt": vec![1; 60] });
    assert_eq!(
        server.post("/v1/completions", &long).json()["usage"]["completion_tokens"],
        4
    );
    let other = server.post("/v1/completions", &json!({ "prompt": "a", "model": "gpt" }));
    assert_eq!(
        other.error(),
        (404, "model_not_found".to_owned(), Some("model".to_owned()))
    );
}

#[test]
fn errors_of_every_kind_have_one_shape() {
    let server = plain();
    let code = |answer: Answer| {
        let (status, code, _) = answer.error();
        (status, code)
    };
    assert_eq!(code(server.ask("GET /v2")), (404, "not_found".to_owned()));
    let wrong = server.ask("GET /v1/completions");
    assert_eq!(wrong.header("allow"), Some("post"));
    assert_eq!(code(wrong), (405, "method_not_allowed".to_owned()));
    assert_eq!(
        server.ask("DELETE /health").header("allow"),
        Some("get,head")
    );
    assert_eq!(
        code(server.post_text("/v1/completions", "{")),
        (400, "invalid_json".to_owned())
    );
    assert_eq!(
        code(server.post_text("/tokenize", "{}")),
        (400, "missing".to_owned())
    );

    let retry_after = Duration::from_secs(3);
    for (rejected, status, name, after) in [
        (
            Rejected::QueueFull { retry_after },
            429,
            "overloaded",
            Some("3"),
        ),
        (Rejected::Closed, 503, "shutting_down", Some("5")),
    ] {
        server.scheduler.script.lock().unwrap().rejected = Some(rejected);
        let answer = server.post("/v1/completions", &json!({ "prompt": "a" }));
        assert_eq!(answer.header("retry-after"), after);
        assert_eq!(code(answer), (status, name.to_owned()));
    }
    for (prompts, n, param) in [(501, 1, "prompt"), (200, 3, "n")] {
        let body = json!({ "prompt": vec!["a"; prompts], "n": n });
        let (status, code, found) = server.post("/v1/completions", &body).error();
        assert_eq!(
            (status, code.as_str(), found.as_deref()),
            (400, "invalid_value", Some(param))
        );
    }
    let text = server.metrics.text();
    assert!(
        text.contains("firebox_rejected_total{reason=\"overloaded\"} 1\n"),
        "{text}"
    );
    assert!(
        text.contains("{endpoint=\"completions\",finish=\"cancelled\"} 0\n"),
        "{text}"
    );
}

#[test]
fn paths_may_end_in_a_slash_and_have_heads() {
    let server = plain();
    for path in [
        "/health",
        "/v1/health/",
        "/v1/models",
        "/v1/models/tiny",
        "/v1/models/tiny/",
        "/version/",
        "/tokenizer_info",
        "/metrics/",
        "/",
    ] {
        assert_eq!(server.ask(&format!("GET {path}")).status, 200, "{path}");
        let head = server.ask(&format!("HEAD {path}"));
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
    let models = server.ask("GET /v1/models").json();
    assert_eq!(
        (&models["object"], &models["data"][0]["id"]),
        (&json!("list"), &json!("tiny"))
    );
    assert_eq!(server.ask("GET /v1/models/other").status, 404);
    assert_eq!(
        server.ask("GET /metrics").header("content-type"),
        Some("text/plain; version=0.0.4")
    );
}

#[test]
fn text_is_tokenized_and_back() {
    let server = plain();
    let tokens = server.post(
        "/tokenize",
        &json!({ "model": "tiny", "prompt": "a<|endoftext|>", "add_special_tokens": false }),
    );
    assert_eq!(
        tokens.json(),
        json!({ "count": 2, "max_model_len": CONTEXT, "tokens": [97, 256] })
    );
    let text = server.post("/detokenize/", &json!({ "tokens": [97, 256] }));
    assert_eq!(text.json(), json!({ "prompt": "a<|endoftext|>" }));
    assert_eq!(
        server
            .post("/detokenize", &json!({ "tokens": [999] }))
            .status,
        400
    );
    let info = server.ask("GET /tokenizer_info").json();
    assert_eq!(
        (&info["eos_token"], &info["bos_token"]),
        (&json!("<|endoftext|>"), &Value::Null)
    );
    assert_eq!(info["chat_template"], TEMPLATE);
}
