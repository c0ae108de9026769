//! A server as a user starts it: the binary, on a free port, until the end of the test.

// Each test uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use firebox_model::config::ModelConfig;
use serde_json::Value;

use crate::testing::tiny_config;

/// A tiny model with room for some text.
pub fn config() -> ModelConfig {
    ModelConfig {
        context_length: 128,
        ..tiny_config()
    }
}

/// The binary with these arguments.
pub fn infer(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firebox-infer"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// A server, which ends with the test.
pub struct Server {
    pub child: Child,
    pub address: String,
    /// What it has logged before it began to serve.
    pub told: Vec<String>,
    log: mpsc::Receiver<String>,
}

impl Server {
    /// Of a checkpoint.
    pub fn start(checkpoint: &Path, arguments: &[&str]) -> Self {
        let path = checkpoint.to_str().unwrap();
        let arguments = [&[path, "--name", "tiny"], arguments].concat();
        Self::with(&arguments)
    }

    /// With these arguments, of which one says what it serves.
    pub fn with(arguments: &[&str]) -> Self {
        let mut command = infer(&["serve", "--port", "0"]);
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, log) = mpsc::channel();
        let errors = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut told = Vec::new();
        let address = loop {
            let Ok(line) = log.recv_timeout(Duration::from_secs(60)) else {
                panic!("{told:?}, {:?}", child.wait());
            };
            let serving = line.strip_prefix("serving ");
            if let Some((_, address)) = serving.and_then(|line| line.split_once(" at http://")) {
                break address.to_owned();
            }
            told.push(line);
        };
        Self {
            child,
            address,
            told,
            log,
        }
    }

    /// A request with a body, as it goes over the wire.
    pub fn request(&self, path: &str, body: &Value) -> String {
        let body = body.to_string();
        format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
    }

    /// A connection on which a request is sent.
    pub fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// The status and body of the reply.
    pub fn reply(mut stream: TcpStream) -> (u16, String) {
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{reply}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// The reply to a request for a completion.
    pub fn complete(&self, body: &Value) -> Value {
        let stream = self.send(&self.request("/v1/completions", body));
        let (status, body) = Self::reply(stream);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The status and body of the reply to a chat.
    pub fn chat(&self, body: &Value) -> (u16, Value) {
        let stream = self.send(&self.request("/v1/chat/completions", body));
        let (status, body) = Self::reply(stream);
        (status, serde_json::from_str(&body).unwrap())
    }

    /// A value of its metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let (_, body) = Self::reply(self.send(request));
        let mut lines = body.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found
            .unwrap_or_else(|| panic!("{name}: {body}"))
            .parse()
            .unwrap()
    }

    /// Asks the server to end, as an operating system does.
    pub fn terminate(&self) {
        let id = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(killed.success());
    }

    /// Its exit code and what it has logged since it began to serve.
    pub fn end(mut self) -> (Option<i32>, Vec<String>) {
        let status = self.child.wait().unwrap();
        (status.code(), self.log.iter().collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
