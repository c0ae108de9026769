//! A file from the network, downloaded once; or a local one, verified the same way.

mod download;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use firebox_console::durable;

pub use self::download::DownloadError;
use self::download::{Download, Patience};
use crate::data::hash::{hash_file, hexadecimal};
use crate::data::{DataError, cache};

/// Where the content of `url` is on this machine, its SHA-256 checked.
///
/// A download is kept under its hash; an interrupted one continues where it stopped.
pub(super) fn fetch(
    source_name: &str,
    url: &str,
    sha256: &str,
    progress: bool,
) -> Result<PathBuf, DataError> {
    let expected = sha256.to_ascii_lowercase();
    if !is_remote(url) {
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
        patience: Patience::default(),
    }
    .fetch(&downloads())
}

/// The file that [`fetch`] returns, whether or not it exists yet.
pub(super) fn path(url: &str, sha256: &str) -> PathBuf {
    if is_remote(url) {
        downloads().join(sha256.to_ascii_lowercase())
    } else {
        PathBuf::from(url)
    }
}

fn is_remote(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

fn downloads() -> PathBuf {
    cache::folder().join("downloads")
}

struct Remote<'a> {
    source_name: &'a str,
    url: &'a str,
    expected: &'a str,
    progress: bool,
    patience: Patience,
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
        let download = Download {
            source_name: self.source_name,
            url: self.url,
            part: &part,
            progress: self.progress,
            patience: self.patience,
        };
        let continued = download.complete()?;
        let mut found = file_hash(&part)?;
        if found != self.expected && continued {
            // Not every server tells that its file has changed, and a machine may have failed before all bytes were
            // on its disk.
            tracing::warn!(
                "source {:?}: what was put together from several tries is not the expected file; \
                 downloading it from the start",
                self.source_name
            );
            download.discard()?;
            download.complete()?;
            found = file_hash(&part)?;
        }
        if let Err(error) = check(self.source_name, self.url, self.expected, found) {
            // Nothing to continue from.
            download.discard()?;
            return Err(error);
        }
        durable::rename(&part, &path).map_err(DataError::io("rename", &part))?;
        download.forget()?;
        Ok(path)
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
