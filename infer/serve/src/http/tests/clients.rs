//! Keys, bounds, connections, and the end of the server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::plain;
use crate::http::{Options, Outcome};
use crate::lifecycle::Phase;
use crate::testing::{Answer, Client, Script, Server, request, served, wait_until};

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
        read_timeout: Duration::from_millis(1500),
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
        pause: Duration::from_millis(60),
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
        pause: Duration::from_millis(60),
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
