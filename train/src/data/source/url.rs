//! A file from the network, downloaded once; or a local one, verified the same way.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use firebox_console::numbers::text_bytes;
use firebox_console::progress::Progress;
use ureq::http::StatusCode;
use ureq::http::header::{CONTENT_LENGTH, RANGE};

use super::super::cache;
use super::super::error::DataError;
use super::super::hash::{hash_file, hexadecimal};

/// How long a server may take to answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the content of `url` is on this machine, its SHA-256 checked.
///
/// A download is kept under its hash; an interrupted one goes on where it stopped.
pub(super) fn fetch(
    source_name: &str,
    url: &str,
    sha256: &str,
    progress: bool,
) -> Result<PathBuf, DataError> {
    let expected = sha256.to_ascii_lowercase();
    if !url.starts_with("http://") && !url.starts_with("https://") {
        let path = PathBuf::from(url);
        let found = file_hash(&path)?;
        check(source_name, url, &expected, found)?;
        return Ok(path);
    }
    Remote {
        source_name,
        url,
        expected: &expected,
        progress,
    }
    .fetch(&cache::folder().join("downloads"))
}

struct Remote<'a> {
    source_name: &'a str,
    url: &'a str,
    expected: &'a str,
    progress: bool,
}

impl Remote<'_> {
    fn fetch(&self, folder: &Path) -> Result<PathBuf, DataError> {
        cache::create(folder)?;
        let path = folder.join(self.expected);
        let part = path.with_extension("part");
        let _lock = cache::lock(&path.with_extension("lock"))?;
        if path.is_file() {
            if file_hash(&path)? == self.expected {
                return Ok(path);
            }
            tracing::warn!(
                "source {:?}: {} is damaged; downloading it again",
                self.source_name,
                path.display()
            );
        }
        self.download(&part)?;
        let found = file_hash(&part)?;
        if let Err(error) = check(self.source_name, self.url, self.expected, found) {
            // Nothing to go on from.
            fs::remove_file(&part).map_err(DataError::io("remove", &part))?;
            return Err(error);
        }
        fs::rename(&part, &path).map_err(DataError::io("rename", &part))?;
        Ok(path)
    }

    /// Completes `part`, asking only for what it lacks.
    fn download(&self, part: &Path) -> Result<(), DataError> {
        let start = part.metadata().map_or(0, |metadata| metadata.len());
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder()
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(CONNECT_TIMEOUT))
                .build(),
        );
        let mut request = agent.get(self.url);
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let response = match request.call() {
            Ok(response) => response,
            // The part has every byte that there is; its hash will tell whether they are the right
            // ones.
            Err(ureq::Error::StatusCode(code))
                if start > 0 && code == StatusCode::RANGE_NOT_SATISFIABLE =>
            {
                return Ok(());
            }
            Err(error) => return Err(self.failed(error)),
        };
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT;
        let start = if resumed { start } else { 0 };
        let length = response
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let total = start + length.unwrap_or(0);
        tracing::info!(
            "source {:?}: downloading {} ({})",
            self.source_name,
            self.url,
            text_bytes(total)
        );
        let progress =
            Progress::shown_if(self.progress, "data: downloading", total).starting_at(start);

        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(resumed)
            .truncate(!resumed)
            .open(part)
            .map_err(DataError::io("write", part))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => return file.sync_all().map_err(DataError::io("write", part)),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(error)),
            };
            file.write_all(&buffer[..read])
                .map_err(DataError::io("write", part))?;
            progress.advance(read as u64);
        }
    }

    fn failed(&self, error: impl ToString) -> DataError {
        DataError::Download {
            source_name: self.source_name.to_owned(),
            url: self.url.to_owned(),
            message: error.to_string(),
        }
    }
}

fn file_hash(path: &Path) -> Result<String, DataError> {
    hash_file(path, |_| ())
        .map(|hash| hexadecimal(&hash))
        .map_err(DataError::io("read", path))
}

fn check(
    source_name: &str,
    location: &str,
    expected: &str,
    found: String,
) -> Result<(), DataError> {
    if found == expected {
        return Ok(());
    }
    Err(DataError::Checksum {
        source_name: source_name.to_owned(),
        location: location.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use firebox_console::advice::Advise as _;

    use super::super::super::hash::hash;
    use super::*;

    const CONTENT: &[u8] = b"To be, or not to be, that is the question.";

    /// Answers as many requests as there are lengths, each cut off after so many bytes; gives the
    /// ranges asked for.
    fn serve(lengths: Vec<usize>) -> (String, JoinHandle<Vec<Option<usize>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/text", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let answer = |length: usize| {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap())
                    .lines()
                    .map_while(Result::ok);
                let header: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let range = header.iter().find_map(|line| {
                    let line = line.to_ascii_lowercase();
                    line.strip_prefix("range: bytes=")?
                        .strip_suffix('-')?
                        .parse::<usize>()
                        .ok()
                });
                let body = &CONTENT[range.unwrap_or(0)..];
                let status = if range.is_some() {
                    "206 Partial Content"
                } else {
                    "200 OK"
                };
                write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                )
                .unwrap();
                stream.write_all(&body[..body.len().min(length)]).unwrap();
                range
            };
            lengths.into_iter().map(answer).collect()
        });
        (url, server)
    }

    fn remote<'a>(url: &'a str, expected: &'a str) -> Remote<'a> {
        Remote {
            source_name: "play",
            url,
            expected,
            progress: false,
        }
    }

    #[test]
    fn an_interrupted_download_goes_on_and_is_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let expected = hexadecimal(&hash(CONTENT));
        let (url, server) = serve(vec![10, 1000]);
        let error = remote(&url, &expected).fetch(folder.path()).unwrap_err();
        assert!(matches!(error, DataError::Download { .. }), "{error}");
        let path = remote(&url, &expected).fetch(folder.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENT);
        assert_eq!(server.join().unwrap(), [None, Some(10)]);
        // The server is gone.
        assert_eq!(remote(&url, &expected).fetch(folder.path()).unwrap(), path);
        fs::write(&path, "damaged").unwrap();
        let error = remote(&url, &expected).fetch(folder.path()).unwrap_err();
        assert!(
            error
                .hint()
                .unwrap()
                .contains("--set data.source.0.url=PATH")
        );
    }

    #[test]
    fn other_content_is_refused_with_both_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let (url, server) = serve(vec![1000]);
        let expected = "0".repeat(64);
        let error = remote(&url, &expected)
            .fetch(folder.path())
            .unwrap_err()
            .to_string();
        server.join().unwrap();
        assert!(
            error.contains(&expected) && error.contains(&hexadecimal(&hash(CONTENT))),
            "{error}"
        );
        assert!(!folder.path().join(&expected).exists());
        assert!(
            !folder
                .path()
                .join(&expected)
                .with_extension("part")
                .exists()
        );
    }

    #[test]
    fn a_local_path_is_verified_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("play.txt");
        fs::write(&path, CONTENT).unwrap();
        let url = path.display().to_string();
        let expected = hexadecimal(&hash(CONTENT)).to_ascii_uppercase();
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
}
