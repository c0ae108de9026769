//! Downloads from a server on this machine that does what a test tells it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use firebox_console::advice::Advise as _;

use super::download::Patience;
use super::*;
use crate::data::hash::hash;

const CONTENT: &[u8] = b"To be, or not to be, that is the question.";
const OTHER: &[u8] = b"Whether 'tis nobler in the mind to suffer!";

/// Long enough for a busy machine to answer in, short enough to wait for.
const SILENCE: Duration = Duration::from_secs(1);

/// Longest wait of the server for a request that a test expects, so that a test that fails ends too.
const DEADLINE: Duration = Duration::from_secs(30);

/// One answer of the server.
#[derive(Debug, Clone, Copy)]
struct Answer {
    status: u16,
    content: &'static [u8],
    /// Bytes of the body that are sent.
    length: usize,
    /// What comes after those that are sent.
    then: Then,
    /// Whether the server knows ranges.
    ranges: bool,
    etag: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    Stall,
}

const WHOLE: Answer = Answer {
    status: 200,
    content: CONTENT,
    length: usize::MAX,
    then: Then::Close,
    ranges: true,
    etag: "\"1\"",
};

/// The connection is closed after so many bytes of the body.
fn closed_after(length: usize) -> Answer {
    Answer { length, ..WHOLE }
}

/// Nothing comes after so many bytes of the body, and the connection stays open.
fn stalled_after(length: usize) -> Answer {
    Answer {
        then: Then::Stall,
        ..closed_after(length)
    }
}

/// A server that gives these answers, one to each request. It gives the first byte of the range of each request.
struct Server {
    url: String,
    thread: JoinHandle<Vec<Option<usize>>>,
}

impl Server {
    fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/text", listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        let thread = thread::spawn(move || {
            // Connections that stall stay open until the last answer is given.
            let mut stalled = Vec::new();
            let mut ranges = Vec::new();
            for answer in answers {
                let mut stream = accept(&listener);
                ranges.push(give(answer, &mut stream));
                if answer.then == Then::Stall {
                    stalled.push(stream);
                }
            }
            // The last one is given up too.
            if let Some(mut stream) = stalled.pop() {
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
            ranges
        });
        Self { url, thread }
    }

    /// The ranges asked for; no request was left out.
    fn ranges(self) -> Vec<Option<usize>> {
        self.thread.join().unwrap()
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(start.elapsed() < DEADLINE, "a request was expected");
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads a request and answers it; gives the first byte that was asked for.
fn give(answer: Answer, stream: &mut TcpStream) -> Option<usize> {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let header: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let range: Option<usize> = header.iter().find_map(|line| {
        let line = line.to_ascii_lowercase();
        let first = line.strip_prefix("range: bytes=")?.strip_suffix('-')?;
        first.parse().ok()
    });
    let total = answer.content.len();
    let start = range.filter(|_| answer.ranges && answer.status == 200);
    let (status, fields) = match start {
        Some(start) if start >= total => (416, format!("Content-Range: bytes */{total}\r\n")),
        Some(start) => (
            206,
            format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1),
        ),
        None => (answer.status, String::new()),
    };
    let body = answer.content.get(start.unwrap_or(0)..).unwrap_or_default();
    let length = body.len();
    let etag = answer.etag;
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\nETag: {etag}\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    stream
        .write_all(&body[..length.min(answer.length)])
        .unwrap();
    range
}

fn fetch_from(server: &Server, expected: &str, folder: &Path) -> Result<PathBuf, DataError> {
    Remote {
        source_name: "play",
        url: &server.url,
        expected,
        progress: false,
        patience: Patience {
            silence: SILENCE,
            tries: 3,
            pause: Duration::from_millis(1),
        },
    }
    .fetch(folder)
}

fn sha256(content: &[u8]) -> String {
    hexadecimal(&hash(content))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The content arrives from these answers, and the requests ask for these ranges.
fn arrives(answers: Vec<Answer>, ranges: &[Option<usize>]) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(answers);
    let expected = sha256(CONTENT);
    let path = fetch_from(&server, &expected, folder.path()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), CONTENT);
    assert_eq!(server.ranges(), ranges);
    let lock = format!("{expected}.lock");
    assert_eq!(names(folder.path()), [expected, lock]);
}

#[test]
fn a_download_goes_on_after_a_stall() {
    arrives(vec![stalled_after(10), WHOLE], &[None, Some(10)]);
}

#[test]
fn a_download_goes_on_after_every_end_of_the_connection() {
    arrives(
        vec![closed_after(10), closed_after(5), WHOLE],
        &[None, Some(10), Some(15)],
    );
}

#[test]
fn a_busy_server_is_asked_again() {
    let busy = Answer {
        status: 503,
        ..WHOLE
    };
    arrives(vec![busy, closed_after(10), WHOLE], &[None, None, Some(10)]);
}

#[test]
fn a_server_without_ranges_begins_again() {
    let without = Answer {
        ranges: false,
        ..WHOLE
    };
    arrives(
        vec![
            Answer {
                length: 10,
                ..without
            },
            without,
        ],
        &[None, Some(10)],
    );
}

#[test]
fn a_file_that_changes_in_between_is_downloaded_from_its_start() {
    let before = Answer {
        content: OTHER,
        etag: "\"0\"",
        ..closed_after(10)
    };
    arrives(vec![before, WHOLE, WHOLE], &[None, Some(10), None]);
    // The new one is shorter than what has arrived of the old one.
    let longer = Answer {
        content: &[b'x'; 100],
        ..closed_after(90)
    };
    arrives(vec![longer, WHOLE, WHOLE], &[None, Some(90), None]);
}

/// Two versions of a file under one ETag can be told apart by the hash alone.
#[test]
fn a_change_that_the_server_does_not_tell_is_found_by_the_hash() {
    let before = Answer {
        content: OTHER,
        ..closed_after(10)
    };
    arrives(vec![before, WHOLE, WHOLE], &[None, Some(10), None]);
}

#[test]
fn a_server_that_stalls_for_ever_is_given_up_and_the_next_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let expected = sha256(CONTENT);
    let server = Server::start(vec![stalled_after(10), stalled_after(0), stalled_after(0)]);
    let start = Instant::now();
    let error = fetch_from(&server, &expected, folder.path()).unwrap_err();
    assert!(start.elapsed() < DEADLINE);
    let part = folder.path().join(format!("{expected}.part"));
    assert_eq!(
        error.to_string(),
        format!(
            "source \"play\": cannot download {}: no byte for 1s, at the last of 3 tries; 10 of 42 bytes are kept in {}",
            server.url,
            part.display()
        )
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.starts_with("the same command continues from there")
            && hint.contains("--set data.source.0.url=PATH"),
        "{hint}"
    );
    assert_eq!(server.ranges(), [None, Some(10), Some(10)]);

    let server = Server::start(vec![WHOLE]);
    let path = fetch_from(&server, &expected, folder.path()).unwrap();
    assert_eq!(fs::read(path).unwrap(), CONTENT);
    assert_eq!(server.ranges(), [Some(10)]);
}

#[test]
fn tries_that_get_on_are_not_counted() {
    let content: &'static [u8] = vec![b'x'; 6 << 20].leak();
    let piece = Answer {
        content,
        ..closed_after((1 << 20) + 1)
    };
    let rest = Answer {
        length: usize::MAX,
        ..piece
    };
    let folder = tempfile::tempdir().unwrap();
    // One more than there are tries without headway.
    let server = Server::start(vec![piece, piece, piece, piece, rest]);
    let path = fetch_from(&server, &sha256(content), folder.path()).unwrap();
    assert!(fs::read(path).unwrap() == content);
    let starts = (1..5).map(|count| Some(count * ((1 << 20) + 1)));
    let expected: Vec<Option<usize>> = std::iter::once(None).chain(starts).collect();
    assert_eq!(server.ranges(), expected);
}

#[test]
fn what_cannot_be_had_is_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let expected = sha256(CONTENT);
    let server = Server::start(vec![Answer {
        status: 404,
        ..WHOLE
    }]);
    let error = fetch_from(&server, &expected, folder.path()).unwrap_err();
    let text = error.to_string();
    assert!(text.ends_with("the server answers 404 Not Found"), "{text}");
    assert_eq!(server.thread.join().unwrap(), [None]);

    // Nobody listens there any more.
    let nobody = Server {
        url: server.url,
        thread: thread::spawn(Vec::new),
    };
    let error = fetch_from(&nobody, &expected, folder.path()).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(!error.to_string().contains("tries"), "{error}");
    assert!(error.hint().unwrap().starts_with("without a network"));
}

#[test]
fn a_download_is_not_repeated_unless_it_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let expected = sha256(CONTENT);
    let server = Server::start(vec![WHOLE, WHOLE]);
    let path = fetch_from(&server, &expected, folder.path()).unwrap();
    assert_eq!(fetch_from(&server, &expected, folder.path()).unwrap(), path);
    fs::write(&path, "damaged").unwrap();
    assert_eq!(fetch_from(&server, &expected, folder.path()).unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), CONTENT);
    assert_eq!(server.ranges(), [None, None]);
}

#[test]
fn other_content_is_refused_with_both_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(vec![WHOLE]);
    let expected = "0".repeat(64);
    let error = fetch_from(&server, &expected, folder.path()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&expected) && text.contains(&sha256(CONTENT)),
        "{text}"
    );
    assert_eq!(server.ranges(), [None]);
    assert_eq!(names(folder.path()), [format!("{expected}.lock")]);
}

#[test]
fn a_local_path_is_verified_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("play.txt");
    fs::write(&path, CONTENT).unwrap();
    let url = path.display().to_string();
    let expected = sha256(CONTENT).to_ascii_uppercase();
    assert_eq!(fetch("play", &url, &expected, false).unwrap(), path);
    fs::write(&path, "other").unwrap();
    assert!(matches!(
        fetch("play", &url, &expected, false),
        Err(DataError::Checksum { .. })
    ));
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        fetch("play", &url, &expected, false),
        Err(DataError::Io { .. })
    ));
}
