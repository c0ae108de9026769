use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::job::Rejected;
use crate::testing::{Answer, Client, Script, Server, request, wait_until};

/// A proxy on a thread, which ends with the test.
struct Front {
    address: SocketAddr,
    proxy: Arc<Proxy>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Front {
    fn new(replicas: &[SocketAddr], options: Options) -> Self {
        let addresses = replicas.iter().map(|address| address.to_string().parse());
        let proxy = Arc::new(Proxy::new(addresses.map(Result::unwrap).collect(), options));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, has_begun) = mpsc::channel();
        let of_thread = proxy.clone();
        let thread = thread::spawn(move || {
            serve(listener, of_thread, move || begun.send(()).unwrap()).unwrap()
        });
        has_begun.recv().unwrap();
        Self {
            address,
            proxy,
            thread: Some(thread),
        }
    }

    fn of(servers: &[&Server]) -> Self {
        let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        Self::new(&addresses, Options::default())
    }

    fn outcome(mut self) -> Outcome {
        self.thread.take().unwrap().join().unwrap()
    }

    /// A connection on which a request is sent.
    fn begin(&self, body: &Value) -> TcpStream {
        let mut client = TcpStream::connect(self.address).unwrap();
        let request = request("/v1/completions", &body.to_string());
        client.write_all(request.as_bytes()).unwrap();
        client
    }
}

impl Client for Front {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.proxy.lifecycle.advance(Phase::Stopping);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

fn plain() -> Server {
    Server::scripted(Script::default())
}

fn slow() -> Server {
    Server::scripted(Script {
        pause: Duration::from_millis(60),
        tokens: vec![97],
        ..Script::default()
    })
}

fn submitted(server: &Server) -> usize {
    *server.scheduler.submitted.lock().unwrap()
}

/// A server that says it is well, and answers every request with these bytes before it closes the connection.
fn says(reply: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut read = Vec::new();
            // The body of these requests comes with the head.
            while !read.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                let mut bytes = [0; 4096];
                match stream.read(&mut bytes) {
                    Ok(count @ 1..) => read.extend_from_slice(&bytes[..count]),
                    _ => break,
                }
            }
            let reply = match read.starts_with(b"GET /health") {
                true => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                false => reply,
            };
            let _ = stream.write_all(reply.as_bytes());
        }
    });
    address
}

#[test]
fn replies_are_those_of_a_replica() {
    let servers = [plain(), plain()];
    let front = Front::of(&[&servers[0], &servers[1]]);
    let same = |ask: &dyn Fn(&dyn Client) -> Answer| {
        let (found, expected) = (ask(&front), ask(&servers[0]));
        let header = |answer: &Answer, name| answer.header(name).map(str::to_owned);
        for name in ["content-type", "content-length", "cache-control", "allow"] {
            assert_eq!(header(&found, name), header(&expected, name), "{name}");
        }
        assert_eq!(found.status, expected.status);
        (found, expected)
    };
    for line in [
        "GET /",
        "GET /version",
        "HEAD /v1/models",
        "GET /v1/models/other",
        "GET /v1/completions",
        "GET /nowhere",
    ] {
        let (found, expected) = same(&|client| client.ask(line));
        assert_eq!(found.body, expected.body, "{line}");
    }
    assert_eq!(
        front.ask("GET /v1/models").json()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(front.ask("OPTIONS /v1/completions").status, 204);
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    for (path, body) in [
        ("/tokenize", json!({ "prompt": "fire" })),
        ("/v1/completions", json!({ "prompt": 1 })),
        ("/v1/completions", json!({ "prompt": "a", "n": 3 })),
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "max_tokens": 9 }),
        ),
    ] {
        let (found, expected) = same(&|client| client.post(path, &body));
        let content = |answer: &Answer| {
            let mut content = answer.json();
            for name in ["id", "created"] {
                content.as_object_mut().unwrap().remove(name);
            }
            content
        };
        assert_eq!(content(&found), content(&expected), "{path}");
    }
    let body = json!({ "prompt": "a", "stream": true, "max_tokens": 20 });
    let (found, expected) = same(&|client| client.post("/v1/completions", &body));
    let texts = |answer: &Answer| -> String {
        let chunks = answer.chunks();
        let texts = chunks.iter().map(|chunk| &chunk["choices"][0]["text"]);
        texts.map(|text| text.as_str().unwrap()).collect()
    };
    assert_eq!(texts(&found), texts(&expected));
}

#[test]
fn a_prompt_stays_with_its_replica_until_that_is_busy() {
    let servers = [slow(), slow()];
    let front = Front::of(&[&servers[0], &servers[1]]);
    let body = json!({ "prompt": "fire", "max_tokens": 1 });
    for _ in 0..6 {
        assert_eq!(front.post("/v1/completions", &body).status, 200);
    }
    let mut counts = servers.each_ref().map(submitted);
    counts.sort_unstable();
    assert_eq!(counts, [0, 6]);
    let body = json!({ "prompt": "fire", "max_tokens": 40 });
    let clients: Vec<TcpStream> = (0..20).map(|_| front.begin(&body)).collect();
    for mut client in clients {
        assert_eq!(Answer::read(&mut client).status, 200);
    }
    assert!(
        servers
            .each_ref()
            .map(submitted)
            .iter()
            .all(|&count| count > 6)
    );
}

#[test]
fn a_request_goes_to_another_replica_when_one_fails_before_its_reply() {
    let good = plain();
    let rejecting = |rejected| {
        Server::scripted(Script {
            rejected: Some(rejected),
            ..Script::default()
        })
    };
    let ends = rejecting(Rejected::Closed);
    let full = rejecting(Rejected::QueueFull {
        retry_after: Duration::from_secs(2),
    });
    // The last one is gone.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let failing = [says(""), says("HTTP/1.1 200 O")];
    for bad in failing
        .into_iter()
        .chain([ends.address, full.address, gone])
    {
        let front = Front::new(&[bad, good.address], Options::default());
        for prompt in 0..30 {
            let body =
                json!({ "prompt": prompt.to_string(), "max_tokens": 1, "stream": prompt % 2 == 0 });
            assert_eq!(front.post("/v1/completions", &body).status, 200);
        }
        let none = front
            .ask("GET /metrics")
            .body
            .contains("router_retries_total 0\n");
        assert_eq!(none, bad == gone);
    }
    // Where all queues are full, the client is told when to come again.
    let front = Front::of(&[&full, &full]);
    let answer = front.post("/v1/completions", &json!({ "prompt": "a" }));
    assert_eq!(answer.error(), (429, "overloaded".to_owned(), None));
    assert_eq!(answer.header("retry-after"), Some("2"));
}

#[test]
fn two_failures_are_told() {
    let front = Front::new(&[says(""), says("")], Options::default());
    let answer = front.post("/v1/completions", &json!({ "prompt": "a" }));
    assert_eq!(answer.error(), (502, "replica_failed".to_owned(), None));
    let front = Front::of(&[]);
    let answer = front.post("/v1/completions", &json!({ "prompt": "a" }));
    assert_eq!(answer.error(), (503, "unavailable".to_owned(), None));
    assert_eq!(answer.header("retry-after"), Some("5"));
}

#[test]
fn a_stream_that_breaks_off_ends_with_an_error_and_a_whole_reply_with_its_connection() {
    let stream = says(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n\
         16\r\ndata: {\"a\":1}\n\ndata: {\r\n",
    );
    let front = Front::new(&[stream], Options::default());
    let events = front
        .post("/v1/completions", &json!({ "prompt": "a" }))
        .events();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0], "{\"a\":1}");
    let error: Value = serde_json::from_str(&events[1]).unwrap();
    assert_eq!(error["error"]["code"], "replica_failed");
    assert_eq!(error["error"]["type"], "server_error");

    let whole = says("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it");
    let front = Front::new(&[whole], Options::default());
    let answer = front.post("/v1/completions", &json!({ "prompt": "a" }));
    assert_eq!(
        (answer.header("content-length"), answer.body.len() < 100),
        (Some("100"), true)
    );
}

#[test]
fn health_is_that_of_the_best_replica() {
    let [one, other] = [plain(), plain()];
    let front = Front::of(&[&one, &other]);
    let health = || {
        let answer = front.ask("GET /v1/health/");
        (
            answer.status,
            answer.json()["status"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(health(), (200, "ok".to_owned()));
    let down = format!(
        "firebox_router_replica_up{{replica=\"{}\"}} 0\n",
        one.address
    );
    drop(one);
    wait_until(|| front.ask("GET /metrics").body.contains(&down));
    assert_eq!(health(), (200, "ok".to_owned()));
    drop(other);
    wait_until(|| health() == (503, "unavailable".to_owned()));
    assert_eq!(front.ask("GET /v1/models").status, 503);
}

#[test]
fn metrics_of_all_replicas_stand_together() {
    let servers = [plain(), plain()];
    // Prometheus refuses a line that comes twice.
    let front = Front::of(&[&servers[0], &servers[1], &servers[0]]);
    let body = json!({ "prompt": "fire", "max_tokens": 9 });
    front.post("/v1/completions", &body);
    let text = front.ask("GET /metrics/").body;
    let mut counts: Vec<&str> = Vec::new();
    for server in &servers {
        let line = format!(
            "firebox_generation_tokens_total{{replica=\"{}\"}} ",
            server.address
        );
        counts.push(
            text.lines()
                .find_map(|found| found.strip_prefix(&line))
                .unwrap(),
        );
        let up = format!(
            "firebox_router_replica_up{{replica=\"{}\"}} 1\n",
            server.address
        );
        assert_eq!(text.matches(&up).count(), 1, "{text}");
        let label = format!(
            "firebox_requests_total{{replica=\"{}\",endpoint=",
            server.address
        );
        assert!(text.contains(&label), "{text}");
    }
    counts.sort_unstable();
    assert_eq!(counts, ["0", "9"]);
    for comment in ["# HELP", "# TYPE"] {
        let comment = format!("{comment} firebox_generation_tokens_total ");
        assert_eq!(text.matches(&comment).count(), 1);
    }
}

#[test]
fn what_was_accepted_is_answered_before_the_end() {
    let servers = [slow(), slow()];
    let front = Front::of(&[&servers[0], &servers[1]]);
    let body = json!({ "prompt": "a", "max_tokens": 30 });
    let clients: Vec<TcpStream> = (0..8).map(|_| front.begin(&body)).collect();
    wait_until(|| front.proxy.lifecycle.open() == 8);
    front.proxy.lifecycle.advance(Phase::Draining);
    let health = front.ask("GET /health");
    assert_eq!(
        (health.status, health.json()),
        (503, json!({ "status": "draining" }))
    );
    let refused = front.post("/v1/completions", &body);
    assert_eq!(refused.error(), (503, "shutting_down".to_owned(), None));
    for mut client in clients {
        let usage = &Answer::read(&mut client).json()["usage"];
        assert_eq!(usage["completion_tokens"], 30);
    }
    assert_eq!(front.outcome(), Outcome::Drained);
}

#[test]
fn clients_are_told_when_it_must_stop() {
    let server = slow();
    let front = Front::of(&[&server]);
    let body = |stream: bool| json!({ "prompt": "a", "max_tokens": 60, "stream": stream });
    let mut clients = [false, true].map(|stream| front.begin(&body(stream)));
    clients[1].peek(&mut [0; 12]).unwrap();
    wait_until(|| front.proxy.lifecycle.open() == 2);
    front.proxy.lifecycle.advance(Phase::Stopping);
    assert_eq!(
        Answer::read(&mut clients[0]).error(),
        (503, "shutting_down".to_owned(), None)
    );
    let events = Answer::read(&mut clients[1]).events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down");
    assert_eq!(front.outcome(), Outcome::Stopped);
}

#[test]
fn a_replica_is_told_when_a_client_goes_away() {
    let server = slow();
    let front = Front::of(&[&server]);
    for (seen, stream) in [(1, false), (2, true)] {
        let mut client = front.begin(&json!({ "prompt": "a", "max_tokens": 60, "stream": stream }));
        match stream {
            true => client.read_exact(&mut [0; 64]).unwrap(),
            false => wait_until(|| submitted(&server) == 1),
        }
        client.shutdown(Shutdown::Both).unwrap();
        drop(client);
        wait_until(|| server.scheduler.cancelled.lock().unwrap().len() == seen);
    }
    wait_until(|| front.proxy.replicas[0].open() == 0);
}

#[test]
fn keys_and_bounds_are_those_of_a_server() {
    let options = Options {
        api_key: Some("secret".to_owned()),
        body_limit: 1000,
        ..Options::default()
    };
    let server = plain();
    let front = Front::new(&[server.address], options);
    assert_eq!(front.ask("GET /health").status, 200);
    for path in ["/v1/models", "/metrics"] {
        let refused = front.ask(&format!("GET {path}"));
        assert_eq!(refused.error(), (401, "invalid_api_key".to_owned(), None));
    }
    let large = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer secret\r\n\
         content-length: 2000\r\n\r\n{}",
        "x".repeat(2000)
    );
    assert_eq!(
        front.send(large.as_bytes()).error(),
        (413, "too_large".to_owned(), None)
    );
}
