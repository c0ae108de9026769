//! The binary as processes under MPI, as a user runs it.

#[path = "../src/testing.rs"]
mod testing;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testing::{TinyCheckpoint, tiny_config};

/// As many processes as ranks, and the layouts of these.
const RANKS: [(usize, &[&str]); 3] = [
    (2, &["--tensor", "2"]),
    (2, &["--pipeline", "2"]),
    (4, &["--pipeline", "2", "--tensor", "2", "--expert", "2"]),
];

/// How long the others may live when one has been killed.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// The exit code, standard output and standard error of a command.
type Ended = (Option<i32>, String, String);

/// `command` on a checkpoint, as so many processes under `mpirun`, or as one without it.
fn start(processes: usize, command: &str, checkpoint: &Path, arguments: &[&str]) -> Child {
    let binary = env!("CARGO_BIN_EXE_firebox-infer");
    let mut started = match processes {
        1 => Command::new(binary),
        _ => {
            let mut mpirun = Command::new("mpirun");
            let count = processes.to_string();
            mpirun.args(["--allow-run-as-root", "--oversubscribe", "-n", &count]);
            mpirun.arg(binary);
            mpirun
        }
    };
    started.arg(command).arg(checkpoint).args(arguments);
    started
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    started.spawn().expect("it starts (Debian: openmpi-bin)")
}

fn end(mut started: Child, input: &str) -> Ended {
    let mut stdin = started.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = started.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The standard output of a command that succeeds.
fn stdout(processes: usize, command: &str, path: &Path, arguments: &[&str], input: &str) -> String {
    let (code, stdout, stderr) = end(start(processes, command, path, arguments), input);
    assert_eq!(code, Some(0), "{stderr}");
    stdout
}

/// The standard error of processes that fail with an exit code, and print an error once.
fn refused(code: i32, processes: usize, command: &str, path: &Path, arguments: &[&str]) -> String {
    let ended = end(start(processes, command, path, arguments), "");
    let (found, stdout, stderr) = ended;
    assert_eq!((found, stdout.as_str()), (Some(code), ""), "{stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    stderr
}

#[test]
fn texts_are_those_of_one_process() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let lines = "{\"prompt\": \"fire\", \"max_tokens\": 12}\n{\"prompt\": \"a b c\"}\n";
    let commands: [(&[&str], &str); 3] = [
        (&["--max-tokens", "40", "--prompt", "fire"], ""),
        (&["--max-tokens", "40", "--prompt", "-"], "fire and ash"),
        (&["--max-tokens", "20", "--prompts", "-"], lines),
    ];
    for (arguments, input) in commands {
        let alone = stdout(1, "generate", tiny.path(), arguments, input);
        assert!(alone.len() > 20, "{alone}");
        for (processes, ranks) in RANKS {
            let arguments = [arguments, ranks].concat();
            let among = stdout(processes, "generate", tiny.path(), &arguments, input);
            assert_eq!(among, alone, "{arguments:?}");
        }
    }
}

#[test]
fn a_divided_checkpoint_needs_no_layout() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let divided = tiny.path().join("divided");
    let output = ["--tensor", "2", "--output", divided.to_str().unwrap()];
    stdout(1, "shard", tiny.path(), &output, "");
    let arguments = ["--prompt", "fire", "--max-tokens", "20"];
    let alone = stdout(1, "generate", tiny.path(), &arguments, "");
    assert_eq!(stdout(2, "generate", &divided, &arguments, ""), alone);
}

#[test]
fn losses_are_those_of_one_process_and_told_once() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let data = tiny.path().join("text.json");
    fs::write(&data, "[\"The fire burns in the box.\"]\n".repeat(30)).unwrap();
    let arguments = ["--json", "--data", data.to_str().unwrap()];
    let loss = |processes, ranks: &[&str]| {
        let arguments = [&arguments[..], ranks].concat();
        let (code, stdout, stderr) = end(start(processes, "eval", tiny.path(), &arguments), "");
        assert_eq!(code, Some(0), "{stderr}");
        // How the file is read.
        assert_eq!(stderr.matches("text.json").count(), 1, "{stderr}");
        let json: serde_json::Value = serde_json::from_str(&stdout).expect("one object");
        json["nats_per_token"].as_f64().expect("a loss")
    };
    let alone = loss(1, &[]);
    for (processes, ranks) in RANKS {
        let among = loss(processes, ranks);
        assert!((among / alone - 1.0).abs() < 1e-6, "{among}, {alone}");
    }
}

#[test]
fn what_is_wrong_is_told_once_with_its_exit_code() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let path = tiny.path();
    let said = refused(2, 2, "generate", path, &["--tensor", "2"]);
    assert!(said.contains("--prompt <TEXT>"), "{said}");
    let said = refused(
        2,
        2,
        "generate",
        path,
        &["--prompt", "a", "--pipeline", "99"],
    );
    assert!(said.contains("--pipeline 99 is more stages than"), "{said}");
    assert_eq!(said.matches("hint: ").count(), 1, "{said}");
    let said = refused(2, 4, "generate", path, &["--prompt", "a", "--tensor", "2"]);
    assert!(said.contains("MPI has started 4 processes"), "{said}");
    let said = refused(2, 2, "eval", path, &["--data", "none", "--tensor", "2"]);
    assert!(said.contains("none does not exist"), "{said}");
    let said = refused(2, 2, "bench", path, &[]);
    assert!(said.contains("this command runs in one"), "{said}");
    let weights = path.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let said = refused(
        1,
        2,
        "generate",
        path,
        &["--prompt", "a", "--pipeline", "2"],
    );
    assert!(said.contains("model.safetensors"), "{said}");
}

#[test]
fn a_rank_that_is_killed_is_named_once() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let arguments = ["--prompt", "a", "--max-tokens", "10000000", "--tensor", "2"];
    let mut run = start(2, "generate", tiny.path(), &arguments);
    // Once there is text, both ranks compute.
    let stdout = run.stdout.as_mut().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    let mut rest = run.stdout.take().unwrap();
    let reader = thread::spawn(move || rest.read_to_end(&mut Vec::new()));
    let killed = process_of(1, &run);
    let status = Command::new("kill")
        .args(["-KILL", &killed.to_string()])
        .status();
    assert!(status.unwrap().success());
    let started = Instant::now();
    let (code, _, stderr) = end(run, "");
    assert!(started.elapsed() < AFTERWARDS, "{stderr}");
    reader.join().unwrap().unwrap();
    assert_ne!(code, Some(0), "{stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    let named = "error: rank 1 (computing) was killed: ";
    assert!(stderr.contains(named), "{stderr}");
}

#[test]
fn open_requests_of_a_server_end_with_a_rank_that_is_killed() {
    let tiny = TinyCheckpoint::new(&tiny_config(), 5);
    let arguments = ["--tensor", "2", "--port", "0", "--max-sequences", "1"];
    let mut run = start(2, "serve", tiny.path(), &arguments);
    let mut errors = BufReader::new(run.stderr.take().unwrap()).lines();
    let mut said = errors.by_ref().map_while(Result::ok);
    let served = said.find_map(|line| Some(line.split_once(" at http://")?.1.to_owned()));
    let address = served.expect("where it serves");
    let body = "{\"prompt\": \"a\", \"max_tokens\": 30, \"ignore_eos\": true, \"n\": 128}";
    let length = body.len();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    // One after the other, far more than can be generated meanwhile.
    let streams: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    let killed = process_of(1, &run).to_string();
    let status = Command::new("kill").args(["-KILL", &killed]).status();
    assert!(status.unwrap().success());
    let started = Instant::now();
    for mut stream in streams {
        let mut reply = String::new();
        // A request that the server had not read when it ended has no reply.
        if stream.read_to_string(&mut reply).is_ok() && !reply.is_empty() {
            let status = reply.split(' ').nth(1);
            assert!(matches!(status, Some("500" | "503")), "{reply}");
        }
    }
    let rest: Vec<String> = errors.map_while(Result::ok).collect();
    let status = run.wait().unwrap();
    assert!(started.elapsed() < AFTERWARDS, "{rest:?}");
    assert!(!status.success());
    let named = rest
        .iter()
        .filter(|line| line.contains("rank 1 (computing) was killed"));
    assert_eq!(named.count(), 1, "{rest:?}");
}

/// The number of the process that is a rank of a run of `mpirun`.
fn process_of(rank: usize, run: &Child) -> u32 {
    let launcher = run.id();
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
    let variable = format!("PMIX_RANK={rank}");
    let children = children.unwrap();
    let numbers = children
        .split_whitespace()
        .map(|number| number.parse::<u32>().unwrap());
    let is_rank = |number: &u32| {
        let variables = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        variables
            .split(|byte| *byte == 0)
            .any(|found| found == variable.as_bytes())
    };
    let mut found = numbers.filter(is_rank);
    found.next().expect("Open MPI tells a process its rank")
}
