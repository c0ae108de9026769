//! `serve` as a user runs it: the binary, and clients over HTTP.

#[path = "../src/testing.rs"]
mod testing;

mod server;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::activation::log_softmax;
use firebox_infer::engine::Engine;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::language_model::token_tensor;
use firebox_runtime::device;
use firebox_runtime::testing::values;
use serde_json::{Map, Value, json};
use server::{Server, config, infer};
use testing::TinyCheckpoint;

fn text(completion: &Value) -> &str {
    completion["choices"][0]["text"].as_str().unwrap()
}

const PROMPTS: [&str; 6] = [
    "fire",
    "a box",
    "für 火",
    "fire and ash",
    "fire and air",
    "b",
];

fn body(number: usize) -> Value {
    let prompt = PROMPTS[number % PROMPTS.len()];
    let (count, temperature) = (20 + 7 * (number % 5), [0.0, 0.9][number % 2]);
    json!({ "prompt": prompt, "max_tokens": count, "temperature": temperature, "seed": number })
}

/// What `generate` continues the prompt of [`body`] with.
fn generated(checkpoint: &Path, number: usize) -> String {
    let body = body(number);
    let prompt = body["prompt"].as_str().unwrap();
    let [count, temperature, seed] =
        ["max_tokens", "temperature", "seed"].map(|key| body[key].to_string());
    let path = checkpoint.to_str().unwrap();
    let mut command = infer(&["generate", path, "--prompt", prompt, "--seed", &seed]);
    command.args(["--max-tokens", &count, "--temperature", &temperature]);
    let output = command.output().unwrap();
    assert!(output.status.success());
    let shown = String::from_utf8(output.stdout).unwrap();
    let text = shown
        .strip_prefix(prompt)
        .and_then(|text| text.strip_suffix('\n'));
    text.unwrap().to_owned()
}

#[test]
fn texts_are_those_of_generate_at_any_load_with_ranks_and_drafts() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let expected: Vec<String> = (0..6)
        .map(|number| generated(tiny.path(), number))
        .collect();
    let layouts: [&[&str]; 4] = [
        &[],
        &[
            "--speculate",
            "prompt",
            "--speculate-tokens",
            "3",
            "--max-batch-tokens",
            "5",
        ],
        &["--tensor", "2", "--pipeline", "2"],
        // Little room: some texts begin anew.
        &[
            "--cache-memory",
            "22kB",
            "--block-tokens",
            "8",
            "--max-sequences",
            "8",
        ],
    ];
    for arguments in layouts {
        let server = Server::start(tiny.path(), arguments);
        let numbers: Vec<usize> = (0..24).collect();
        for concurrent in [1, 24] {
            for together in numbers.chunks(concurrent) {
                let request = |number: usize| server.request("/v1/completions", &body(number % 6));
                let streams = together.iter().map(|&number| server.send(&request(number)));
                let streams: Vec<TcpStream> = streams.collect();
                for (&number, stream) in together.iter().zip(streams) {
                    let (status, body) = Server::reply(stream);
                    assert_eq!(status, 200, "{body}");
                    let completion: Value = serde_json::from_str(&body).unwrap();
                    assert_eq!(
                        text(&completion),
                        expected[number % 6],
                        "{arguments:?}, {number}"
                    );
                }
            }
        }
        // The scheduler counts after it has answered.
        let waits = Instant::now();
        while server.metric("firebox_requests_running") != 0.0 {
            assert!(waits.elapsed() < Duration::from_secs(30));
        }
        server.terminate();
        assert_eq!(server.end().0, Some(0));
    }
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let engine = Engine::open(tiny.path(), &[], device::default_name(), WeightDtype::F32).unwrap();
    let server = Server::start(tiny.path(), &[]);
    let ids: Vec<u32> = "The fire burns in the box."
        .bytes()
        .map(u32::from)
        .collect();
    // Of the generated tokens too, each byte of the text is one. The scores are those without this bias.
    let ascii: Map<String, Value> = (128..257)
        .map(|id: u32| (id.to_string(), json!(-100)))
        .collect();
    for max_tokens in [0, 9] {
        let completion = server.complete(&json!({
            "prompt": ids, "echo": true, "logprobs": 3, "max_tokens": max_tokens,
            "temperature": 0, "ignore_eos": true, "logit_bias": ascii,
        }));
        let scores = &completion["choices"][0]["logprobs"];
        let tokens = scores["tokens"].as_array().unwrap();
        let found = scores["token_logprobs"].as_array().unwrap();
        assert_eq!(found.len(), ids.len() + max_tokens);
        assert_eq!((tokens.len(), &found[0]), (found.len(), &Value::Null));
        let text = completion["choices"][0]["text"].as_str().unwrap();
        assert_eq!(text.len(), found.len());
        let ids: Vec<u32> = text.bytes().map(u32::from).collect();
        let input = token_tensor([&ids[..]].into_iter(), &engine.model.device());
        let logits = engine.model.forward(input).logits.squeeze_dim::<2>(0);
        let rows = values(log_softmax(logits, 1));
        for place in 1..ids.len() {
            let row = &rows[(place - 1) * 257..place * 257];
            let found = found[place].as_f64().unwrap();
            let expected = f64::from(row[ids[place] as usize]);
            assert!((found - expected).abs() < 1e-5, "{place}");
            let likeliest = scores["top_logprobs"][place].as_object().unwrap();
            let largest = row.iter().copied().map(f64::from).fold(f64::MIN, f64::max);
            let first = likeliest.values().map(|value| value.as_f64().unwrap());
            assert!((first.fold(f64::MIN, f64::max) - largest).abs() < 1e-5);
        }
    }
}

#[test]
fn what_was_accepted_is_answered_before_the_end() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let server = Server::start(tiny.path(), &["--max-sequences", "2"]);
    let long = json!({ "prompt": "a", "max_tokens": 120, "ignore_eos": true });
    // More than run at once.
    let streams: Vec<TcpStream> = (0..12)
        .map(|_| server.send(&server.request("/v1/completions", &long)))
        .collect();
    let waits = Instant::now();
    // More than run at once have begun, and others wait.
    let mut begun = 0.0;
    while begun < 3.0 {
        begun = server.metric("firebox_queue_seconds_count");
        assert!(waits.elapsed() < Duration::from_secs(30));
    }
    server.terminate();
    let mut answered = 0.0;
    for stream in streams {
        let (status, body) = Server::reply(stream);
        let reply: Value = serde_json::from_str(&body).unwrap();
        match status {
            200 => {
                assert_eq!(reply["usage"]["completion_tokens"], 120);
                answered += 1.0;
            }
            // It came after the signal.
            503 => assert_eq!(reply["error"]["code"], "shutting_down"),
            _ => panic!("{status}: {body}"),
        }
    }
    assert!(answered >= begun, "{answered} of {begun}");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn requests_are_answered_when_a_replica_is_killed() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let expected: Vec<String> = (0..6)
        .map(|number| generated(tiny.path(), number))
        .collect();
    let server = Server::start(tiny.path(), &["--replicas", "3", "--threads", "3"]);
    let process = server.told.iter().find_map(|line| {
        let line = line.strip_prefix("replica 1 is process ")?;
        line.split(' ').next()
    });
    let process = process.unwrap_or_else(|| panic!("{:?}", server.told));
    let send = |number: usize, stream: bool| {
        let mut body = body(number % 6);
        body["stream"] = stream.into();
        server.send(&server.request("/v1/completions", &body))
    };
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, process]).status().unwrap();
        assert!(sent.success());
    };
    let all = |kills: bool| {
        let sent = (0..48).map(|number| {
            if kills && number == 24 {
                // It begins none of those that come now.
                signal("-STOP");
            }
            send(number, number % 4 == 3)
        });
        let sent: Vec<TcpStream> = sent.collect();
        if kills {
            signal("-KILL");
        }
        for (number, stream) in sent.into_iter().enumerate() {
            let (status, body) = Server::reply(stream);
            assert_eq!(status, 200, "{body}");
            match number % 4 {
                // A stream that had begun may break off, and says so.
                3 => assert!(
                    body.contains("data: [DONE]") || kills && body.contains("replica_failed"),
                    "{body}"
                ),
                _ => {
                    let completion: Value = serde_json::from_str(&body).unwrap();
                    assert_eq!(text(&completion), expected[number % 6], "{number}");
                }
            }
        }
    };
    all(true);
    assert!(server.metric("firebox_router_retries_total") > 0.0);
    all(false);
    let stream = server.send("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let (_, metrics) = Server::reply(stream);
    let up = metrics
        .lines()
        .filter(|line| line.starts_with("firebox_router_replica_up{"));
    let up: Vec<&str> = up
        .map(|line| line.split(' ').next_back().unwrap())
        .collect();
    assert_eq!(up.iter().filter(|&&up| up == "1").count(), 2, "{metrics}");
    server.terminate();
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log:?}");
    assert!(
        log.iter()
            .any(|line| line.contains("replica 1 has ended: signal: 9")),
        "{log:?}"
    );
}

#[test]
fn replicas_end_with_the_process_that_started_them() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let mut server = Server::start(tiny.path(), &["--replicas", "2"]);
    let replicas: Vec<&str> = server
        .told
        .iter()
        .filter(|line| line.contains(" is process "))
        .map(|line| line.split(' ').next_back().unwrap())
        .collect();
    assert_eq!(replicas.len(), 2, "{:?}", server.told);
    assert!(
        replicas
            .iter()
            .all(|&replica| TcpStream::connect(replica).is_ok())
    );
    // It cannot tell them.
    server.child.kill().unwrap();
    let began = Instant::now();
    while replicas
        .iter()
        .any(|&replica| TcpStream::connect(replica).is_ok())
    {
        assert!(began.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_replica_that_cannot_start_is_told_and_ends_the_others() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let path = tiny.path().to_str().unwrap();
    let mut command = infer(&["serve", path, "--port", "0", "--replicas", "2"]);
    let output = command.args(["--cache-memory", "1kB"]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("replica 0: error: --cache-memory"),
        "{errors}"
    );
}

#[test]
fn a_router_stands_in_front_of_servers() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let servers = [(); 2].map(|()| Server::start(tiny.path(), &[]));
    let [one, other] = servers
        .each_ref()
        .map(|server| format!("http://{}", server.address));
    let router = Server::with(&["--route", &format!("{one},{other}")]);
    for number in 0..6 {
        let completion = router.complete(&body(number));
        assert_eq!(text(&completion), generated(tiny.path(), number));
    }
    let tokens = servers
        .each_ref()
        .map(|server| server.metric("firebox_generation_tokens_total"));
    let label = |server: &Server| {
        router.metric(&format!(
            "firebox_generation_tokens_total{{replica=\"{}\"}}",
            server.address
        ))
    };
    assert_eq!(servers.each_ref().map(label), tokens);
    router.terminate();
    assert_eq!(router.end().0, Some(0));
}

#[test]
fn what_cannot_be_served_is_said_before_anything_is_served() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let path = tiny.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (code, arguments, words) in [
        (1, &["--port", &port][..], "127.0.0.1"),
        (2, &["--cache-memory", "1kB"], "--cache-memory"),
        (2, &["--speculate", "draft"], "must be draft=CHECKPOINT"),
        (2, &["--max-sequences", "0"], "--max-sequences"),
        (2, &["--api-key-file", "no/such/file"], "no/such/file"),
        (2, &["--route", "http://node1:8000"], "cannot be used with"),
        (2, &["--replicas", "0"], "--replicas"),
    ] {
        let output = infer(&["serve", path]).args(arguments).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(
            errors.contains(words) && !errors.contains("serving"),
            "{errors}"
        );
        assert!(output.stdout.is_empty());
    }
}

/// What a browser shows of the page, as HTML, once it is as `until` says, or after it has run for a long while.
fn page(address: &str, fragment: &str, until: impl Fn(&str) -> bool) -> String {
    let mut page = String::new();
    // The browser's own time passes faster than that of the server, which has less of it on a busy machine.
    for milliseconds in [8_000, 40_000, 200_000, 1_000_000, 5_000_000] {
        page = dump(address, fragment, milliseconds);
        if until(&page) {
            break;
        }
    }
    page
}

fn dump(address: &str, fragment: &str, milliseconds: usize) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg("--enable-logging=stderr")
        .arg(format!("--virtual-time-budget={milliseconds}"))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{address}/#{fragment}"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("chromium cannot be started (Debian: chromium): {error}"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!log.contains("Uncaught"), "{log}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Letters and digits of the text of an element without elements in it.
fn shown(page: &str, begin: &str, end: &str) -> String {
    let (_, rest) = page
        .split_once(begin)
        .unwrap_or_else(|| panic!("{begin}: {page}"));
    let (inner, _) = rest.split_once(end).unwrap();
    let mut tags = 0;
    let text = inner.chars().filter(|&c| {
        tags += usize::from(c == '<');
        let is_text = tags == 0;
        tags -= usize::from(c == '>' && tags > 0);
        is_text && c.is_ascii_alphanumeric()
    });
    text.collect()
}

#[test]
#[ignore = "needs Chromium (Debian: chromium)"]
fn the_page_generates_and_shows_the_experts_in_a_browser() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let server = Server::start(tiny.path(), &[]);
    // Letters and digits alone are compared, since HTML writes others in its own way.
    let asked = json!({ "prompt": "fire", "max_tokens": 24, "temperature": 0.9, "seed": 7 });
    let expected: String = text(&server.complete(&asked))
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    assert!(!expected.is_empty());
    let fragment = "prompt=fire&mode=completions&max_tokens=24&temperature=0.9&seed=7&run";
    let speed = |page: &str| shown(page, "<p class=\"hint\" id=\"speed\">", "</p>");
    // What the page says last of a text.
    let has_ended = |page: &str| speed(page).contains("firstafter");
    let page = page(&server.address, fragment, has_ended);
    assert_eq!(
        shown(&page, "<div id=\"text\" aria-live=\"polite\">", "</div>"),
        format!("fire{expected}"),
        "{page}"
    );
    assert_eq!(
        shown(&page, "<div id=\"error\" role=\"alert\">", "</div>"),
        ""
    );
    assert!(shown(&page, "<span id=\"model\">", "</span>").starts_with("tinycontextof128tokens"));
    assert!(has_ended(&page), "{}", speed(&page));
    // A row for each layer, a column for each expert.
    let mixture = config().moe.unwrap().experts.count;
    let (_, canvas) = page.split_once("<canvas id=\"heat\"").unwrap();
    let (canvas, _) = canvas.split_once('>').unwrap();
    assert!(canvas.contains(&format!("width=\"{mixture}\"")), "{canvas}");
    assert!(
        canvas.contains(&format!("height=\"{}\"", config().layers.len())),
        "{canvas}"
    );
    assert!(!page.contains("<section id=\"mixture\" hidden"));
}
