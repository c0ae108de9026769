use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::job::Rejected;
use crate::lifecycle::Phase;
use crate::testing::{
    Answer, CONTEXT, Client, Script, Server, TEMPLATE, request, served, served_with_template,
    wait_until,
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
        (Rejected::TooMany { most: 4 }, 400, "invalid_value", None),
        (Rejected::Closed, 503, "shutting_down", Some("5")),
    ] {
        server.scheduler.script.lock().unwrap().rejected = Some(rejected);
        let answer = server.post("/v1/completions", &json!({ "prompt": "a" }));
        assert_eq!(answer.header("retry-after"), after);
        assert_eq!(code(answer), (status, name.to_owned()));
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

#[test]
fn a_key_locks_everything_but_probes() {
    let options = Options {
        api_key: Some("secret".to_owned()),
        ..Options::default()
    };
    let server = Server::new(served(), options);
    assert_eq!(server.ask("GET /health").status, 200);
    assert_eq!(server.ask("GET /v1/health/").status, 200);
    let refused = server.ask("GET /v1/models");
    assert_eq!(refused.header("www-authenticate"), Some("bearer"));
    assert_eq!(refused.error(), (401, "invalid_api_key".to_owned(), None));
    assert_eq!(server.ask("OPTIONS /v1/models").status, 401);
    let with = |key: &str| {
        let request = format!(
            "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {key}\r\n\r\n"
        );
        server.send(request.as_bytes()).status
    };
    assert_eq!(
        [
            "Bearer secret",
            "bearer secret",
            "Bearer secrets",
            "secret",
            "Basic secret"
        ]
        .map(with),
        [200, 200, 401, 401, 401]
    );
    assert_eq!(
        server
            .ask("GET /health")
            .header("access-control-allow-origin"),
        None
    );
}

#[test]
fn browsers_of_other_origins_may_ask() {
    let server = plain();
    let preflight = server.ask("OPTIONS /v1/completions");
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.header("access-control-allow-methods"),
        Some("get, head, post, options")
    );
    assert_eq!(
        server
            .ask("GET /nowhere")
            .header("access-control-allow-origin"),
        Some("*")
    );
}

#[test]
fn bodies_are_bounded_in_size_and_time() {
    let options = Options {
        body_limit: 1000,
        read_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let server = Server::new(served(), options);
    let large = "x".repeat(100_000);
    assert_eq!(
        server.post_text("/v1/completions", &large).error(),
        (413, "too_large".to_owned(), None)
    );
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let chunked = format!(
        "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    assert_eq!(server.send(chunked.as_bytes()).error().0, 413);
    // Before the body comes.
    let waits = format!("{head}content-length: 2000\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(server.send(waits.as_bytes()).error().0, 413);
    let slow = format!("{head}content-length: 900\r\n\r\n{{");
    assert_eq!(
        server.send(slow.as_bytes()).error(),
        (408, "timeout".to_owned(), None)
    );
    // Headers that do not come, and a connection without any.
    assert_eq!(
        server.send(head.as_bytes()).error(),
        (408, "timeout".to_owned(), None)
    );
    let mut silent = TcpStream::connect(server.address).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    let body = "{\"prompt\": \"a\", \"max_tokens\": 1}";
    let chunked = format!(
        "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    assert_eq!(server.send(chunked.as_bytes()).status, 200);
}

#[test]
fn a_fault_is_a_status_before_the_first_byte_and_an_event_after_it() {
    let server = plain();
    let body = |stream: bool| json!({ "prompt": "a", "max_tokens": 9, "stream": stream });
    let fails_after = |count| server.scheduler.script.lock().unwrap().fails_after = Some(count);
    for (count, stream) in [(0, false), (5, false), (0, true)] {
        fails_after(count);
        let answer = server.post("/v1/completions", &body(stream));
        assert_eq!(answer.error(), (500, "internal".to_owned(), None));
    }
    fails_after(2);
    let events = server.post("/v1/completions", &body(true)).events();
    assert_eq!(events.len(), 3);
    let error: Value = serde_json::from_str(&events[2]).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    let text = server.metrics.text();
    assert!(
        text.contains("{endpoint=\"completions\",finish=\"error\"} 4\n"),
        "{text}"
    );
}

#[test]
fn a_client_that_goes_away_is_noticed_while_it_waits_and_while_it_reads() {
    let server = Server::scripted(Script {
        pause: Duration::from_millis(5),
        tokens: vec![97],
        ..Script::default()
    });
    for stream in [false, true] {
        let body = json!({ "prompt": "a", "max_tokens": 60, "stream": stream }).to_string();
        let mut client = TcpStream::connect(server.address).unwrap();
        client
            .write_all(request("/v1/completions", &body).as_bytes())
            .unwrap();
        if stream {
            client.read_exact(&mut [0; 64]).unwrap();
        } else {
            wait_until(|| *server.scheduler.submitted.lock().unwrap() == 1);
        }
        client.shutdown(Shutdown::Both).unwrap();
        drop(client);
        let seen = usize::from(stream) + 1;
        wait_until(|| server.scheduler.cancelled.lock().unwrap().len() == seen);
    }
    let drawn = server.scheduler.cancelled.lock().unwrap().clone();
    assert!(drawn.iter().all(|&drawn| drawn < 60), "{drawn:?}");
    wait_until(|| server.app.lifecycle().open() == 0);
    let text = server.metrics.text();
    assert!(
        text.contains("{endpoint=\"completions\",finish=\"cancelled\"} 2\n"),
        "{text}"
    );
}

#[test]
fn a_server_answers_what_it_has_accepted_before_it_ends() {
    let server = Server::scripted(Script {
        pause: Duration::from_millis(20),
        ..Script::default()
    });
    let body = json!({ "prompt": "a", "max_tokens": 30 }).to_string();
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect(server.address).unwrap();
        client
            .write_all(request("/v1/completions", &body).as_bytes())
            .unwrap();
        clients.push(client);
    }
    wait_until(|| server.app.lifecycle().open() == 3);
    server.app.lifecycle().advance(Phase::Draining);
    let health = server.ask("GET /health");
    assert_eq!(
        (health.status, health.json()),
        (503, json!({ "status": "draining" }))
    );
    assert_eq!(health.header("retry-after"), Some("5"));
    let refused = server.post_text("/v1/completions", &body);
    assert_eq!(refused.error(), (503, "shutting_down".to_owned(), None));
    for client in &mut clients {
        assert_eq!(
            Answer::read(client).json()["usage"]["completion_tokens"],
            30
        );
    }
    assert_eq!(server.outcome(), Outcome::Drained);
}

#[test]
fn a_server_that_must_stop_tells_its_clients() {
    let server = Server::scripted(Script {
        pause: Duration::from_millis(20),
        tokens: vec![97],
        ..Script::default()
    });
    let mut clients: Vec<TcpStream> = Vec::new();
    for stream in [false, true] {
        let body = json!({ "prompt": "a", "max_tokens": 60, "stream": stream }).to_string();
        let mut client = TcpStream::connect(server.address).unwrap();
        client
            .write_all(request("/v1/completions", &body).as_bytes())
            .unwrap();
        clients.push(client);
    }
    let began = &mut [0; 12];
    clients[1].peek(began).unwrap();
    wait_until(|| server.app.lifecycle().open() == 2);
    server.app.lifecycle().advance(Phase::Stopping);
    assert_eq!(
        Answer::read(&mut clients[0]).error(),
        (503, "shutting_down".to_owned(), None)
    );
    let events = Answer::read(&mut clients[1]).events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down");
    assert_eq!(server.outcome(), Outcome::Stopped);
}

#[test]
fn connections_are_kept() {
    let server = plain();
    let mut client = TcpStream::connect(server.address).unwrap();
    let get = "GET /version HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = get.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    client
        .write_all(format!("{get}{get}{last}").as_bytes())
        .unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3);
}
