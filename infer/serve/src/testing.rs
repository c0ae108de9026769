//! A model, a scheduler and a client for tests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use firebox_model::sampling::Scored;
use firebox_text::Tokenizer;
use serde_json::Value;

use crate::http::{App, Options, Outcome, serve};
use crate::job::{Event, Finish, Job, Rejected, StopReason, Submit};
use crate::lifecycle::Phase;
use crate::metrics::{Build, Metrics};
use crate::served::Served;

/// The context of the model, in tokens.
pub const CONTEXT: usize = 64;

/// A model of bytes.
pub fn served() -> Served {
    Served::new("tiny", Tokenizer::bytes(), CONTEXT, 257, &["test"]).unwrap()
}

/// The most sequences that wait.
pub const MOST: usize = 500;

/// A template that shows roles.
pub const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}";

/// The same model with a chat template.
pub fn served_with_template(template: &str) -> Served {
    let mut served = served();
    let tokens = served.config.special_tokens.clone();
    served.config.chat_template = Some(template.to_owned());
    served.template = Some(crate::template::ChatTemplate::new(template, tokens));
    served
}

/// Metrics at zero.
pub fn metrics() -> Arc<Metrics> {
    let build = Build {
        version: "test",
        device: "test",
        dtype: "f32",
        model: "tiny",
    };
    Arc::new(Metrics::new(build, &[], 0))
}

/// The log-probability of a token: the first one of `likeliest` is the token itself.
pub fn scored(id: u32, count: usize) -> Scored {
    let value = -0.1 - id as f32 / 1000.0;
    let likeliest = (0..count as u32).map(|rank| ((id + rank) % 257, value - rank as f32));
    Scored {
        id,
        log_probability: value,
        likeliest: likeliest.collect(),
    }
}

/// Ends texts as a script says. A text is the tokens of `tokens`, over and over.
#[derive(Debug, Clone)]
pub struct Script {
    /// What is drawn.
    pub tokens: Vec<u32>,
    /// The job fails after so many tokens.
    pub fails_after: Option<usize>,
    /// Time between tokens.
    pub pause: Duration,
    /// What submitting says.
    pub rejected: Option<Rejected>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: "a ünd 火 ".bytes().map(u32::from).collect(),
            fails_after: None,
            pause: Duration::ZERO,
            rejected: None,
        }
    }
}

/// A scheduler that follows a script, each job on a thread of its own.
#[derive(Debug, Default)]
pub struct Scripted {
    pub script: Mutex<Script>,
    aborted: Arc<Mutex<bool>>,
    /// Jobs that were taken.
    pub submitted: Mutex<usize>,
    /// Tokens that were drawn for jobs whose client was gone.
    pub cancelled: Arc<Mutex<Vec<usize>>>,
}

impl Submit for Scripted {
    fn most(&self) -> usize {
        MOST
    }

    fn submit(&self, jobs: Vec<Job>) -> Result<(), Rejected> {
        let script = self.script.lock().unwrap().clone();
        if let Some(rejected) = script.rejected {
            return Err(rejected);
        }
        *self.submitted.lock().unwrap() += jobs.len();
        for job in jobs {
            let script = script.clone();
            let (aborted, cancelled) = (self.aborted.clone(), self.cancelled.clone());
            thread::spawn(move || {
                if let Err(drawn) = run(job, &script, &aborted) {
                    cancelled.lock().unwrap().push(drawn);
                }
            });
        }
        Ok(())
    }

    fn abort(&self) {
        *self.aborted.lock().unwrap() = true;
    }
}

/// Sends the events of a job; the error is the number of tokens that were drawn when the client was gone.
fn run(mut job: Job, script: &Script, aborted: &Mutex<bool>) -> Result<(), usize> {
    let started = Event::Started {
        queued: Duration::ZERO,
        cached_tokens: 1,
    };
    job.events.send(started).map_err(|_| 0usize)?;
    if job.prompt_scores {
        let count = job.scores.unwrap();
        let scores = job.prompt[1..].iter().map(|&id| scored(id, count));
        let scores = Event::Prompt(scores.collect());
        job.events.send(scores).map_err(|_| 0usize)?;
    }
    for (drawn, &id) in script.tokens.iter().cycle().take(job.count).enumerate() {
        thread::sleep(script.pause);
        if job.events.is_closed() {
            return Err(drawn);
        }
        if script.fails_after == Some(drawn) || *aborted.lock().unwrap() {
            return Ok(());
        }
        let scored = job.scores.map(|count| scored(id, count));
        let is_end = id == 256 && !job.ignore_eos;
        let offset = job.text.offset();
        let (text, stopped) = match is_end || job.stop_ids.contains(&id) {
            true => (String::new(), None),
            false => {
                let written = job.text.push(id);
                (written.text, written.stopped)
            }
        };
        let reason = match stopped {
            Some(text) => Some(StopReason::Text(text)),
            None if is_end => Some(StopReason::Eos),
            None if job.stop_ids.contains(&id) => Some(StopReason::Token(id)),
            None => None,
        };
        let token = Event::Token {
            id,
            text,
            offset,
            scored,
        };
        job.events.send(token).map_err(|_| drawn)?;
        if let Some(reason) = reason {
            return end(&mut job, Finish::Stop(reason));
        }
    }
    end(&mut job, Finish::Length)
}

fn end(job: &mut Job, finish: Finish) -> Result<(), usize> {
    let text = job.text.finish();
    job.events
        .send(Event::Ended { finish, text })
        .map_err(|_| job.count)
}

/// A server on a thread, which ends with the test.
pub struct Server {
    pub address: SocketAddr,
    pub app: Arc<App>,
    pub scheduler: Arc<Scripted>,
    pub metrics: Arc<Metrics>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Server {
    pub fn new(served: Served, options: Options) -> Self {
        let (metrics, scheduler) = (metrics(), Arc::new(Scripted::default()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let app = App::new(
            Arc::new(served),
            metrics.clone(),
            scheduler.clone(),
            options,
        );
        let app = Arc::new(app.unwrap());
        let of_thread = app.clone();
        Self {
            address: listener.local_addr().unwrap(),
            thread: Some(thread::spawn(move || {
                serve(listener, of_thread, || ()).unwrap()
            })),
            app,
            scheduler,
            metrics,
        }
    }

    /// With a script.
    pub fn scripted(script: Script) -> Self {
        let server = Self::new(served_with_template(TEMPLATE), Options::default());
        *server.scheduler.script.lock().unwrap() = script;
        server
    }

    /// Waits until it has ended.
    pub fn outcome(mut self) -> Outcome {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Client for Server {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.lifecycle().advance(Phase::Stopping);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

/// What asks a server.
pub trait Client {
    /// Where it is.
    fn address(&self) -> SocketAddr;

    /// The reply to a request without a body.
    fn ask(&self, line: &str) -> Answer {
        self.send(format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
    }

    /// The reply to a body.
    fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string())
    }

    fn post_text(&self, path: &str, body: &str) -> Answer {
        self.send(request(path, body).as_bytes())
    }

    /// The reply to bytes, up to the end of the connection.
    fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        Answer::read(&mut stream)
    }
}

/// A request with a body, as bytes.
pub fn request(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Waits until something is so.
#[track_caller]
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "it never is so");
        thread::sleep(Duration::from_millis(2));
    }
}

/// What a server has answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    pub fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match head.contains("transfer-encoding: chunked") {
            true => joined(body),
            false => body.to_owned(),
        };
        Self { status, head, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status, code and field of an error.
    pub fn error(&self) -> (u16, String, Option<String>) {
        let error = &self.json()["error"];
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        assert!(
            text("message").is_some() && text("type").is_some(),
            "{self:?}"
        );
        (self.status, text("code").unwrap(), text("param"))
    }

    /// The events of a stream: each is one line and an empty one.
    pub fn events(&self) -> Vec<String> {
        let events = self.body.strip_suffix("\n\n").unwrap().split("\n\n");
        let data = events.map(|event| event.strip_prefix("data: ").unwrap().to_owned());
        let data: Vec<String> = data.collect();
        assert!(data.iter().all(|data| !data.contains('\n')), "{data:?}");
        data
    }

    /// The objects of a stream that ends well.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        let chunks = events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap());
        chunks.collect()
    }
}

/// A chunked body without its lengths.
fn joined(mut chunked: &str) -> String {
    let mut body = String::new();
    while let Some((length, rest)) = chunked.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        body.push_str(&rest[..length]);
        chunked = &rest[length + 2..];
    }
    body
}
