//! Many clients of a server at once: good ones, impatient ones, and those that stop reading.

#[path = "../src/testing.rs"]
mod testing;

mod server;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use firebox_serve::client::Client;
use serde_json::{Value, json};
use server::{Server, config, infer};
use testing::TinyCheckpoint;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

/// What a client got.
#[derive(Debug, Clone, Default, PartialEq)]
struct Answer {
    status: u16,
    retry_after: Option<u64>,
    text: String,
    /// Of the prompt, and generated ones.
    tokens: [u64; 2],
}

/// Sends a request for a completion, and reads its answer to the end.
async fn ask(client: Client, body: Value) -> Answer {
    let sent = client.post("/v1/completions", body.to_string()).await;
    let mut reply = sent.unwrap();
    let mut answer = Answer {
        status: reply.status(),
        retry_after: reply
            .header("retry-after")
            .map(|after| after.parse().unwrap()),
        ..Answer::default()
    };
    let mut take = |part: &Value| {
        answer.text += part["choices"][0]["text"].as_str().unwrap_or_default();
        if let Some(usage) = part["usage"].as_object() {
            answer.tokens =
                ["prompt_tokens", "completion_tokens"].map(|key| usage[key].as_u64().unwrap());
        }
    };
    if !reply.is_stream() {
        take(&serde_json::from_slice(&reply.whole().await.unwrap()).unwrap());
        return answer;
    }
    let mut last = String::new();
    while let Some(event) = reply.event().await.unwrap() {
        if let Ok(chunk) = serde_json::from_str(&event) {
            take(&chunk);
        }
        last = event;
    }
    assert_eq!(last, "[DONE]");
    reply.keep();
    answer
}

/// The answers to requests that are all sent at once.
fn ask_all(server: &Server, bodies: impl IntoIterator<Item = Value>) -> Vec<Answer> {
    let client = Client::new(server.address.parse().unwrap(), None).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut asked = JoinSet::new();
        for (number, body) in bodies.into_iter().enumerate() {
            let answer = ask(client.clone(), body);
            asked.spawn(async move { (number, answer.await) });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(number, _)| *number);
        answers.into_iter().map(|(_, answer)| answer).collect()
    })
}

/// One of a few different requests, every other one of which is streamed.
fn body(number: usize) -> Value {
    let prompts = [
        "fire",
        "a box",
        "für 火",
        "fire and ash",
        "fire and air",
        "b",
    ];
    let (prompt, count) = (prompts[number % 6], 12 + 5 * (number % 5));
    let (temperature, stream) = ([0.0, 0.9][number % 2], number % 4 > 1);
    let options = stream.then(|| json!({ "include_usage": true }));
    json!({
        "prompt": prompt, "max_tokens": count, "temperature": temperature, "seed": number % 30, "ignore_eos": true,
        "stream": stream, "stream_options": options,
    })
}

/// What each of the different requests is answered with where nothing else is served.
fn alone(server: &Server) -> Vec<Answer> {
    let answers = (0..60).flat_map(|number| ask_all(server, [body(number)]));
    let answers: Vec<Answer> = answers.collect();
    assert!(answers.iter().all(|answer| answer.status == 200));
    answers
}

/// Waits until a server has nothing to do.
fn wait_until_idle(server: &Server) {
    let began = Instant::now();
    let names = ["requests_running", "requests_waiting", "kv_cache_blocks"];
    while names
        .iter()
        .any(|name| server.metric(&format!("firebox_{name}")) != 0.0)
    {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "it never is idle"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn counters(server: &Server) -> [u64; 2] {
    ["prompt", "generation"].map(|of| server.metric(&format!("firebox_{of}_tokens_total")) as u64)
}

#[test]
fn five_hundred_requests_at_once_have_their_answers() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let server = Server::start(tiny.path(), &[]);
    let expected = alone(&server);
    wait_until_idle(&server);
    let before = counters(&server);
    let answers = ask_all(&server, (0..500).map(body));
    let mut tokens = before;
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer, &expected[number % 60], "{number}");
        tokens = [0, 1].map(|of| tokens[of] + answer.tokens[of]);
    }
    wait_until_idle(&server);
    assert_eq!(counters(&server), tokens);
    server.terminate();
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn what_the_queue_does_not_hold_is_told_to_come_again() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let server = Server::start(tiny.path(), &["--max-queue", "4", "--max-sequences", "2"]);
    let expected = alone(&server);
    let answers = ask_all(&server, (0..120).map(body));
    let mut refused = 0;
    for (number, answer) in answers.iter().enumerate() {
        match answer.status {
            429 => {
                assert!(
                    answer
                        .retry_after
                        .is_some_and(|seconds| (1..=60).contains(&seconds))
                );
                refused += 1;
            }
            _ => assert_eq!(answer, &expected[number % 60], "{number}"),
        }
    }
    // As many as run and wait have room at least.
    assert!(refused > 0 && refused <= 120 - 6, "{refused}");
    let counted = server.metric("firebox_rejected_total{reason=\"overloaded\"}");
    assert_eq!(counted as usize, refused);
    // Those that come again are answered.
    assert_eq!(ask_all(&server, [body(3)])[0], expected[3]);
}

/// A client that reads the beginning of a reply, and no more.
fn stalled(server: &Server) -> TcpStream {
    // Some megabytes.
    let body = json!({
        "prompt": "a", "n": 128, "max_tokens": 120, "ignore_eos": true, "logprobs": 20, "stream": true,
    });
    let mut stream = server.send(&server.request("/v1/completions", &body));
    stream.read_exact(&mut [0; 100]).unwrap();
    stream
}

/// A client that goes away: while it waits, or after the beginning of its reply.
fn vanish(server: &Server, number: usize) {
    let body = json!({
        "prompt": "away", "max_tokens": 120, "ignore_eos": true, "stream": number.is_multiple_of(2),
    });
    let mut stream = server.send(&server.request("/v1/completions", &body));
    if number.is_multiple_of(2) {
        // It may be refused.
        let _ = stream.read(&mut [0; 10]);
    }
    if number.is_multiple_of(3) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[test]
fn clients_that_vanish_or_do_not_read_disturb_nobody() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let server = Server::start(tiny.path(), &["--write-timeout", "2"]);
    let expected = alone(&server);
    let slow = [(); 2].map(|()| stalled(&server));
    for number in 0..40 {
        vanish(&server, number);
    }
    let answers = ask_all(&server, (0..60).map(body));
    assert_eq!(answers, expected);
    wait_until_idle(&server);
    drop(slow);
    let cancelled =
        server.metric("firebox_requests_total{endpoint=\"completions\",finish=\"cancelled\"}");
    assert!(cancelled > 0.0);
    let before = counters(&server);
    let answer = &ask_all(&server, [body(1)])[0];
    wait_until_idle(&server);
    let grown = [0, 1].map(|of| counters(&server)[of] - before[of]);
    assert_eq!(grown, answer.tokens);
    // Those that do not read count as gone in the end.
    server.terminate();
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn bench_measures_a_running_server_and_one_of_its_own() {
    let tiny = TinyCheckpoint::new(&config(), 5);
    let server = Server::start(tiny.path(), &[]);
    let path = tiny.path().to_str().unwrap();
    let page = tiny.path().join("load.html");
    let lengths = [
        "--prompt-tokens",
        "8-20",
        "--new-tokens",
        "10",
        "--requests",
        "9",
        "--json",
    ];
    for target in [&["--serve", &server.address][..], &[path, "--serve"]] {
        let arguments = [
            &[
                "bench",
                "--concurrency",
                "3",
                "--html",
                page.to_str().unwrap(),
            ],
            target,
            &lengths,
        ];
        let output = infer(&arguments.concat()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{errors}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let load = &found["loads"][0];
        assert_eq!(
            (&load["answered"], &load["new_tokens"]),
            (&json!(9), &json!(90))
        );
        assert_eq!(load["server"]["generation_tokens"], 90);
        assert!(load["server"]["experts"]["distinct"].as_f64().unwrap() >= 2.0);
        assert!(fs::read_to_string(&page).unwrap().contains("under load"));
    }
    // Ctrl-C: what there is, and the exit code of an interruption.
    let arguments = [
        "bench",
        path,
        "--serve",
        "--concurrency",
        "2",
        "--seconds",
        "1000",
        "--new-tokens",
        "20",
        "--prompt-tokens",
        "20",
    ];
    let mut command = infer(&arguments);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(3));
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let [text, errors] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(
        text.contains("2 at once") && errors.contains("error: interrupted after "),
        "{text}{errors}"
    );
}

/// Bytes that a process holds in memory.
#[cfg(target_os = "linux")]
fn resident(server: &Server) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes * 1024.0
}

/// Minutes of mixed traffic with faults: `FIREBOX_SOAK_SECONDS` (720 by default), after a tenth of it to get warm.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes many minutes; tests/FIGURES.md has its result"]
fn memory_stays_flat_under_faults() {
    let seconds = std::env::var("FIREBOX_SOAK_SECONDS");
    let seconds = seconds.map_or(720.0, |seconds| seconds.parse().unwrap());
    let tiny = TinyCheckpoint::new(&config(), 5);
    let arguments = [
        "--write-timeout",
        "2",
        "--max-queue",
        "200",
        "--cache-memory",
        "200kB",
        "--speculate",
        "prompt",
    ];
    let server = Server::start(tiny.path(), &arguments);
    let expected = alone(&server);
    let began = Instant::now();
    let (mut rounds, mut asked, mut refused) = (0, 0, 0);
    let mut warm = None;
    let mut largest: f64 = 0.0;
    while began.elapsed().as_secs_f64() < seconds {
        let slow = rounds % 8 == 0;
        let slow = slow.then(|| stalled(&server));
        for number in 0..5 {
            vanish(&server, rounds + number);
        }
        for bad in [
            "{",
            "{\"prompt\": 1.5}",
            "{\"prompt\": \"a\", \"max_tokens\": 1000}",
            "\u{0}",
        ] {
            let request = format!(
                "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{bad}",
                bad.len()
            );
            let (status, body) = Server::reply(server.send(&request));
            assert_eq!(status, 400, "{body}");
        }
        // A request that breaks off.
        let half = server.request("/v1/completions", &body(0));
        let _ = server.send(&half[..half.len() - 9]).flush();
        // Now and then more than the queue holds.
        let count = if rounds % 5 == 0 { 400 } else { 40 };
        for (number, answer) in ask_all(&server, (0..count).map(body)).iter().enumerate() {
            match answer.status {
                429 if count > 200 => refused += 1,
                _ => assert_eq!(answer, &expected[number % 60], "{number}"),
            }
            asked += 1;
        }
        drop(slow);
        rounds += 1;
        let held = resident(&server);
        largest = largest.max(held);
        if began.elapsed().as_secs_f64() > seconds / 10.0 && warm.is_none() {
            warm = Some(largest);
        }
    }
    wait_until_idle(&server);
    let before = counters(&server);
    let answers = ask_all(&server, (0..200).map(body));
    let mut tokens = before;
    for answer in &answers {
        tokens = [0, 1].map(|of| tokens[of] + answer.tokens[of]);
    }
    wait_until_idle(&server);
    assert_eq!(counters(&server), tokens);
    let (warm, preempted) = (warm.unwrap(), server.metric("firebox_preemptions_total"));
    println!(
        "{rounds} rounds, {asked} requests, {refused} refused, {preempted} preempted; memory at most {:.1} MiB, {:.1} MiB when warm",
        largest / f64::from(1 << 20),
        warm / f64::from(1 << 20)
    );
    assert!(preempted > 0.0 && refused > 0);
    assert!(largest < 1.02 * warm, "{largest} bytes, {warm} when warm");
    server.terminate();
    assert_eq!(server.end().0, Some(0));
}
