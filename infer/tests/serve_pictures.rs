//! `serve` with pictures in its requests, as a user runs it.

#[path = "../src/testing.rs"]
mod testing;

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use firebox_model::config::ModelConfig;
use serde_json::{Value, json};
use server::{Server, config, infer};
use testing::{TinyCheckpoint, seeing_config};

/// More than a block of the cache: a token is a byte.
const PROMPT: &str = "This picture shows a fire ";

fn seeing() -> TinyCheckpoint {
    let config = ModelConfig {
        context_length: 128,
        ..seeing_config()
    };
    TinyCheckpoint::new(&config, 5)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/pictures")
        .join(name)
}

fn data(name: &str) -> String {
    let file = fs::read(fixture(name)).unwrap();
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}

/// What `generate` continues a prompt behind pictures with.
fn generated(checkpoint: &Path, prompt: &str, pictures: &[&str], count: usize) -> String {
    let path = checkpoint.to_str().unwrap();
    let count = count.to_string();
    let mut command = infer(&["generate", path, "--prompt", prompt, "--temperature", "0"]);
    command.args(["--max-tokens", &count]);
    for picture in pictures {
        command.arg("--image").arg(fixture(picture));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8(output.stdout).unwrap();
    let text = shown
        .strip_prefix(prompt)
        .and_then(|text| text.strip_suffix('\n'));
    text.unwrap().to_owned()
}

/// A message with pictures and a text.
fn body(urls: &[String], text: &str, count: usize) -> Value {
    let pictures = urls.iter();
    let pictures = pictures.map(|url| json!({ "type": "image_url", "image_url": { "url": url } }));
    let text = json!({ "type": "text", "text": text });
    let content: Vec<Value> = pictures.chain([text]).collect();
    let messages = json!([{ "role": "user", "content": content }]);
    json!({ "messages": messages, "max_tokens": count, "temperature": 0 })
}

#[track_caller]
fn content((status, reply): (u16, Value)) -> (String, u64) {
    assert_eq!(status, 200, "{reply}");
    let text = &reply["choices"][0]["message"]["content"];
    let cached = &reply["usage"]["prompt_tokens_details"]["cached_tokens"];
    (text.as_str().unwrap().to_owned(), cached.as_u64().unwrap())
}

#[test]
fn texts_are_those_of_generate_whoever_else_is_served() {
    let tiny = seeing();
    // Pictures, their number of tokens, and whether another text is asked for beside.
    let seen: [&[&str]; 6] = [
        &["opaque.png"],
        &["palette.png"],
        &["opaque.png", "palette.png"],
        &["palette.png", "opaque.png"],
        &["opaque.png"],
        &["transparent.png"],
    ];
    let count = |index: usize| 20 + 5 * index;
    let expected: Vec<String> = (0..6)
        .map(|index| generated(tiny.path(), PROMPT, seen[index], count(index)))
        .collect();
    assert_ne!(expected[0], expected[1]);
    assert_ne!(expected[2], expected[3]);
    let text_alone = generated(tiny.path(), PROMPT, &[], 40);
    let options: [&[&str]; 5] = [
        &[],
        &["--tensor", "2"],
        &["--pipeline", "2", "--tensor", "2", "--max-sequences", "3"],
        // Two at a time, so that others wait; and prompts in pieces, with drafts.
        &["--max-sequences", "2"],
        &[
            "--max-batch-tokens",
            "7",
            "--speculate",
            "prompt",
            "--speculate-tokens",
            "3",
        ],
    ];
    for arguments in options {
        let server = Server::start(tiny.path(), arguments);
        let ask = |index: usize| {
            let urls: Vec<String> = seen[index].iter().map(|name| data(name)).collect();
            let body = body(&urls, PROMPT, count(index));
            server.send(&server.request("/v1/chat/completions", &body))
        };
        let blind = json!({ "prompt": PROMPT, "max_tokens": 40, "temperature": 0 });
        let ask_blind = || server.send(&server.request("/v1/completions", &blind));
        // All at once, each twice.
        let asked: Vec<_> = (0..12)
            .map(|number| (number % 6, ask(number % 6)))
            .collect();
        let blind = [ask_blind(), ask_blind()];
        for (index, stream) in asked {
            let (status, reply) = Server::reply(stream);
            let reply = serde_json::from_str(&reply).unwrap();
            let (text, _) = content((status, reply));
            assert_eq!(text, expected[index], "{arguments:?}, {index}");
        }
        for stream in blind {
            let (_, reply) = Server::reply(stream);
            let reply: Value = serde_json::from_str(&reply).unwrap();
            assert_eq!(reply["choices"][0]["text"], text_alone, "{arguments:?}");
        }
        assert_eq!(server.metric("firebox_requests_waiting"), 0.0);
    }
}

#[test]
fn a_text_is_taken_over_from_one_that_sees_the_same() {
    let tiny = seeing();
    let server = Server::start(tiny.path(), &[]);
    let asked = |name: &str| content(server.chat(&body(&[data(name)], PROMPT, 10)));
    let (first, cached) = asked("opaque.png");
    assert_eq!(cached, 0);
    // The same bytes shown once more, and in another file.
    let (again, cached) = asked("opaque.png");
    assert!(again == first && cached >= 16, "{cached} tokens");
    // Another picture behind the same text, and none at all.
    let (other, cached) = asked("palette.png");
    assert!(other != first && cached == 0, "{cached} tokens");
    let blind = json!({ "prompt": PROMPT, "max_tokens": 10, "temperature": 0 });
    let reply = server.complete(&blind);
    assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    // Choices of one request see the picture together.
    let mut several = body(&[data("transparent.png")], PROMPT, 10);
    several["n"] = json!(3);
    let (status, reply) = server.chat(&several);
    assert_eq!(status, 200, "{reply}");
    let texts = reply["choices"].as_array().unwrap().iter();
    let texts: Vec<&Value> = texts.map(|choice| &choice["message"]["content"]).collect();
    assert!(texts.len() == 3 && texts.iter().all(|text| *text == texts[0]));
}

#[test]
fn files_of_the_folder_are_read_and_nothing_is_fetched() {
    let tiny = seeing();
    let folder = fixture("");
    let folder = folder.to_str().unwrap();
    let server = Server::start(
        tiny.path(),
        &["--image-folder", folder, "--max-pictures", "2"],
    );
    let told = server.told.join("\n");
    assert!(told.contains("up to 2 pictures"), "{told}");
    let expected = content(server.chat(&body(&[data("opaque.png")], PROMPT, 10))).0;
    let whole = fixture("opaque.png").canonicalize().unwrap();
    for url in [
        "opaque.png".to_owned(),
        format!("file://{}", whole.display()),
    ] {
        assert_eq!(content(server.chat(&body(&[url], PROMPT, 10))).0, expected);
    }
    let refused = |urls: &[String], words: &str| {
        let (status, reply) = server.chat(&body(urls, PROMPT, 10));
        let message = reply["error"]["message"].as_str().unwrap().to_owned();
        assert!(
            status == 400 && message.contains(words),
            "{status}: {message}"
        );
    };
    refused(&["../golden_vision.rs".to_owned()], "there is no file");
    refused(&["file:///etc/passwd".to_owned()], "there is no file");
    refused(
        &["settings.json".to_owned()],
        "settings.json is of an unknown kind",
    );
    refused(
        &["http://127.0.0.1:1/a.png".to_owned()],
        "fetches no addresses",
    );
    refused(
        &["data:image/png;base64,aGVsbG8=".to_owned()],
        "is of an unknown kind",
    );
    refused(&vec![data("opaque.png"); 3], "messages have 3 pictures");
    // It goes on.
    assert_eq!(
        content(server.chat(&body(&["opaque.png".to_owned()], PROMPT, 10))).0,
        expected
    );
    let many = json!({ "messages": [
        { "role": "user", "content": "a" },
        { "role": "user", "content": body(&[data("opaque.png")], "b", 1)["messages"][0]["content"] },
    ] });
    let (status, reply) = server.chat(&many);
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(
        status == 400 && message.contains("a single message"),
        "{message}"
    );
    let request = "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (_, models) = Server::reply(server.send(request));
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!(
        models["data"][0]["input_modalities"],
        json!(["text", "image"])
    );
}

#[test]
fn pictures_that_wait_have_a_bound() {
    let tiny = seeing();
    // Two tiles of 28 × 28 pixels are 18,816 bytes.
    let server = Server::start(
        tiny.path(),
        &["--max-sequences", "1", "--picture-memory", "20000"],
    );
    let ask = |count| body(&vec![data("opaque.png"); count], PROMPT, 10);
    let (status, reply) = server.chat(&ask(2));
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(
        status == 413 && message.contains("a request with 2 pictures holds 36.8 KiB"),
        "{status}: {message}"
    );
    // While another client's texts take their turns, one picture waits, and a second one finds no room.
    let texts = json!({ "prompt": [PROMPT, PROMPT, PROMPT, PROMPT], "max_tokens": 90, "n": 128 });
    let busy = server.send(&server.request("/v1/completions", &texts));
    while server.metric("firebox_requests_waiting") < 400.0 {}
    let (sender, replies) = mpsc::channel();
    for _ in 0..2 {
        let (sender, stream) = (
            sender.clone(),
            server.send(&server.request("/v1/chat/completions", &ask(1))),
        );
        thread::spawn(move || sender.send(Server::reply(stream)));
    }
    let (status, reply) = replies.recv().unwrap();
    assert!(
        status == 429 && reply.contains("pictures of requests that wait"),
        "{status}: {reply}"
    );
    drop(busy);
    let (status, reply) = replies.recv().unwrap();
    assert_eq!(status, 200, "{reply}");
    // It left room behind.
    content(server.chat(&ask(1)));
}

#[test]
fn a_template_writes_pictures_where_they_stand() {
    let tiny = seeing();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    fs::write(tiny.path().join("chat_template.jinja"), template).unwrap();
    let server = Server::start(tiny.path(), &[]);
    // This tokenizer has no text for a picture: it stands before all.
    let expected = generated(tiny.path(), "user: a fire\n", &["opaque.png"], 12);
    let found = content(server.chat(&body(&[data("opaque.png")], "a fire", 12))).0;
    assert_eq!(found, expected);
}

#[test]
fn a_model_of_text_alone_refuses_pictures() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    fs::write(
        tiny.path().join("chat_template.jinja"),
        "{{ messages[0].content }}",
    )
    .unwrap();
    let server = Server::start(tiny.path(), &[]);
    let (status, reply) = server.chat(&body(&[data("opaque.png")], "a", 3));
    assert_eq!(
        (status, &reply["error"]["code"]),
        (400, &json!("unsupported_parameter"))
    );
    assert_eq!(
        reply["error"]["param"],
        "messages[0].content[0].image_url.url"
    );
    let folder = fixture("");
    let path = tiny.path().to_str().unwrap();
    let output = infer(&[
        "serve",
        path,
        "--port",
        "0",
        "--image-folder",
        folder.to_str().unwrap(),
    ])
    .output()
    .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("--image-folder:") && errors.contains("sees no pictures"),
        "{errors}"
    );
}
