//! One file by HTTP, from servers that stall, close the connection, or have another file the next time.

use std::fmt::{self, Display};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable;
use firebox_console::progress::Progress;
use serde::{Deserialize, Serialize};
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, LAST_MODIFIED, RANGE};
use ureq::http::{HeaderMap, HeaderName, StatusCode};
use ureq::{Agent, Body, Timeout};

use crate::data::DataError;

/// Bytes that show that a download gets on: a try that brings fewer counts towards [`Patience::tries`].
const HEADWAY: u64 = 1 << 20;

/// How long a server may be silent, and how often it is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The longest wait for a connection, for an answer, and between two pieces of it.
    pub silence: Duration,
    /// Tries in a row that bring no headway, after which the download has failed.
    pub tries: u32,
    /// The pause before the second try; each further one is twice as long.
    pub pause: Duration,
}

impl Default for Patience {
    /// A server that stalls for ever is given up after just under two minutes.
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(20),
            tries: 5,
            pause: Duration::from_secs(1),
        }
    }
}

/// Why a file could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub struct DownloadError {
    url: String,
    /// What happened at the last try.
    message: String,
    tries: u32,
    /// Where the bytes are that have arrived.
    part: PathBuf,
    received: u64,
    total: Option<u64>,
}

impl Display for DownloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot download {}: {}", self.url, self.message)?;
        if self.tries > 1 {
            write!(f, ", at the last of {} tries", self.tries)?;
        }
        if self.received > 0 {
            let amount = amount(self.received, self.total);
            write!(f, "; {amount} are kept in {}", self.part.display())?;
        }
        Ok(())
    }
}

impl Advise for DownloadError {
    fn advice(&self) -> Advice {
        let local =
            "give the path of a local copy: --set data.source.0.url=PATH (sources count from 0)";
        Advice::FAILURE.hint(match self.received {
            0 => format!("without a network, {local}"),
            _ => format!("the same command continues from there; without a network, {local}"),
        })
    }
}

/// A file that is being downloaded.
#[derive(Debug)]
pub(super) struct Download<'a> {
    pub source_name: &'a str,
    pub url: &'a str,
    /// Where its bytes are collected.
    pub part: &'a Path,
    /// Whether to show progress.
    pub progress: bool,
    pub patience: Patience,
}

/// Why one try did not bring the whole file.
enum Failure {
    /// The disk.
    Local(DataError),
    /// The server has another file than the one that [`Download::part`] begins.
    Changed,
    /// The network or the server.
    Remote { message: String, outlook: Outlook },
}

/// Whether it is worth asking again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outlook {
    /// It is: servers and networks have such moments.
    Passing,
    /// Nothing answers there: it is, if something did before.
    Unreachable,
    /// It is not: the answer would be the same.
    Lasting,
}

impl Download<'_> {
    /// Completes [`part`](Self::part), asking only for what it lacks, as often as [`Patience`] allows. Tells
    /// whether some of it was there before the last answer, so that its parts may be of different files.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached, refuses, or stays silent, or the disk cannot be written. What has
    /// arrived is kept.
    pub fn complete(&self) -> Result<bool, DataError> {
        let agent = Agent::new_with_config(
            Agent::config_builder()
                .http_status_as_error(false)
                .timeout_connect(Some(self.patience.silence))
                .timeout_recv_response(Some(self.patience.silence))
                .timeout_per_read(Some(self.patience.silence))
                .timeout_per_write(Some(self.patience.silence))
                .build(),
        );
        let (mut tries, mut in_vain, mut furthest) = (0, 0, self.received());
        loop {
            let (message, outlook) = match self.attempt(&agent) {
                Ok(continued) => return Ok(continued),
                Err(Failure::Local(error)) => return Err(error),
                Err(Failure::Changed) => {
                    tracing::warn!(
                        "source {:?}: the file at {} has changed; downloading it from the start",
                        self.source_name,
                        self.url
                    );
                    // Without a part no range is asked for, so that this cannot come twice in a row.
                    self.discard()?;
                    continue;
                }
                Err(Failure::Remote { message, outlook }) => (message, outlook),
            };
            let received = self.received();
            if received >= furthest + HEADWAY {
                (furthest, in_vain) = (received, 0);
            }
            (tries, in_vain) = (tries + 1, in_vain + 1);
            let total = self.validators().and_then(|validators| validators.length);
            let again = match outlook {
                Outlook::Passing => true,
                Outlook::Unreachable => tries > 1,
                Outlook::Lasting => false,
            };
            if !again || in_vain >= self.patience.tries {
                return Err(DataError::Download {
                    source_name: self.source_name.to_owned(),
                    error: Box::new(DownloadError {
                        url: self.url.to_owned(),
                        message,
                        tries,
                        part: self.part.to_owned(),
                        received,
                        total,
                    }),
                });
            }
            let pause = self.patience.pause * 2u32.saturating_pow(in_vain - 1);
            tracing::warn!(
                "source {:?}: {message}, after {}; trying again in {pause:?}",
                self.source_name,
                amount(received, total)
            );
            thread::sleep(pause);
        }
    }

    /// Removes what has arrived.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn discard(&self) -> Result<(), DataError> {
        // In this order, for a part without validators counts as none.
        for path in [self.validators_path(), self.part.to_owned()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(DataError::io("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the record of which file the part belongs to, once it is whole.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn forget(&self) -> Result<(), DataError> {
        let path = self.validators_path();
        fs::remove_file(&path).map_err(DataError::io("remove", &path))
    }

    /// Asks once, for what is lacking, and appends it. Tells whether there was something before.
    fn attempt(&self, agent: &Agent) -> Result<bool, Failure> {
        let kept = self.validators().unwrap_or_default();
        let start = self.received();
        if start > 0 && kept.length == Some(start) {
            return Ok(true);
        }
        let mut request = agent.get(self.url);
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let response = request.call().map_err(|error| self.failure(error))?;
        let range = ContentRange::of(response.headers());
        let found = Validators::of(response.headers(), range);
        let continued = match response.status() {
            StatusCode::OK => false,
            StatusCode::PARTIAL_CONTENT if start > 0 => {
                if range.and_then(|range| range.first) != Some(start) || !kept.agrees(&found) {
                    return Err(Failure::Changed);
                }
                true
            }
            StatusCode::RANGE_NOT_SATISFIABLE if start > 0 => {
                return match found.length == Some(start) && kept.agrees(&found) {
                    true => Ok(true),
                    false => Err(Failure::Changed),
                };
            }
            status => return Err(refusal(status)),
        };
        let start = if continued { start } else { 0 };
        tracing::info!(
            "source {:?}: downloading {} ({})",
            self.source_name,
            self.url,
            amount(start, found.length)
        );
        let file = self.open(&found, continued).map_err(Failure::Local)?;
        let received = start + self.receive(response.into_body(), file, start, found.length)?;
        if found.length.is_some_and(|length| received != length) {
            return Err(closed());
        }
        Ok(continued)
    }

    /// The part, open at its end, or emptied and marked as the beginning of the file with these validators.
    fn open(&self, found: &Validators, continued: bool) -> Result<File, DataError> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(continued)
            .truncate(!continued)
            .open(self.part)
            .map_err(DataError::io("write", self.part))?;
        if !continued {
            let path = self.validators_path();
            let text = serde_json::to_string(found)
                .map_err(|error| DataError::io("write", &path)(error.into()))?;
            durable::write(&path, text)?;
        }
        Ok(file)
    }

    /// Writes a body to the end of the part; gives its length in bytes.
    fn receive(
        &self,
        body: Body,
        mut file: File,
        start: u64,
        total: Option<u64>,
    ) -> Result<u64, Failure> {
        let progress = Progress::shown_if(self.progress, "data: downloading", total.unwrap_or(0))
            .starting_at(start);
        let local = |error| Failure::Local(DataError::io("write", self.part)(error));
        let (mut body, mut buffer, mut received) = (body.into_reader(), vec![0; 64 << 10], 0);
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => {
                    file.sync_all().map_err(local)?;
                    return Ok(received);
                }
                Ok(read) => read,
                Err(error) => return Err(self.failure(error.into())),
            };
            file.write_all(&buffer[..read]).map_err(local)?;
            received += read as u64;
            progress.advance(read as u64);
        }
    }

    /// Bytes that have arrived and are worth keeping, for it is known of which file they are.
    fn received(&self) -> u64 {
        match self.validators() {
            Some(_) => self.part.metadata().map_or(0, |metadata| metadata.len()),
            None => 0,
        }
    }

    /// What the server said of the file that the part begins.
    fn validators(&self) -> Option<Validators> {
        serde_json::from_slice(&fs::read(self.validators_path()).ok()?).ok()
    }

    fn validators_path(&self) -> PathBuf {
        self.part.with_extension("validators")
    }

    fn failure(&self, error: ureq::Error) -> Failure {
        let silence = self.patience.silence;
        let (message, outlook) = match error {
            ureq::Error::Timeout(Timeout::Connect) => (
                format!("no connection within {silence:?}"),
                Outlook::Passing,
            ),
            ureq::Error::Timeout(_) => (format!("no byte for {silence:?}"), Outlook::Passing),
            ureq::Error::HostNotFound => ("host not found".to_owned(), Outlook::Unreachable),
            ureq::Error::Io(error) => match error.kind() {
                ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe => return closed(),
                ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown => (error.to_string(), Outlook::Unreachable),
                _ => (error.to_string(), Outlook::Lasting),
            },
            error => (error.to_string(), Outlook::Lasting),
        };
        Failure::Remote { message, outlook }
    }
}

fn closed() -> Failure {
    Failure::Remote {
        message: "the server closed the connection".to_owned(),
        outlook: Outlook::Passing,
    }
}

/// What it means that a server answers with this status instead of the file.
fn refusal(status: StatusCode) -> Failure {
    let passing = status.is_server_error()
        || [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_EARLY,
            StatusCode::TOO_MANY_REQUESTS,
        ]
        .contains(&status);
    Failure::Remote {
        message: format!("the server answers {status}"),
        outlook: match passing {
            true => Outlook::Passing,
            false => Outlook::Lasting,
        },
    }
}

fn amount(received: u64, total: Option<u64>) -> String {
    match total {
        Some(total) => format!("{received} of {total} bytes"),
        None => format!("{received} bytes"),
    }
}

/// What a server says of a file, by which two answers are known to be of the same one (RFC 9110, section 8.8).
#[derive(Debug, Default, Serialize, Deserialize)]
struct Validators {
    etag: Option<String>,
    last_modified: Option<String>,
    /// Of the whole file, in bytes.
    length: Option<u64>,
}

impl Validators {
    fn of(headers: &HeaderMap, range: Option<ContentRange>) -> Self {
        Self {
            etag: text(headers, ETAG),
            last_modified: text(headers, LAST_MODIFIED),
            length: match range {
                Some(range) => range.total,
                None => text(headers, CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            },
        }
    }

    /// Whether nothing differs that both answers say.
    fn agrees(&self, other: &Self) -> bool {
        fn agree<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.zip(other).is_none_or(|(one, other)| one == other)
        }
        agree(self.etag.as_ref(), other.etag.as_ref())
            && agree(self.last_modified.as_ref(), other.last_modified.as_ref())
            && agree(self.length, other.length)
    }
}

/// Which bytes of a file an answer has: `bytes FIRST-LAST/TOTAL`, with `*` for what is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    first: Option<u64>,
    total: Option<u64>,
}

impl ContentRange {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let value = text(headers, CONTENT_RANGE)?;
        let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
        Some(Self {
            first: range
                .split_once('-')
                .and_then(|(first, _)| first.trim().parse().ok()),
            total: total.trim().parse().ok(),
        })
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
