//! The lock on a run folder: at most one process writes to it.
//!
//! It is a lock of the operating system on the file `run.lock`, so that it ends with its process, however that ends.
//! The file stays; its content, the process that had the lock last, is for messages only.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek, Write};
use std::path::Path;
use std::process;

use firebox_console::durable::FileError;

use crate::error::TrainError;

/// Name of the file in the run folder.
const FILE: &str = "run.lock";

/// Holds the lock until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the run folder `root`, which must exist. A file system without locks gives a warning instead.
    ///
    /// # Errors
    ///
    /// When another process has the lock, at once; when the file cannot be opened or written.
    pub fn acquire(root: &Path) -> Result<Self, TrainError> {
        let path = root.join(FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(FileError::of("write", &path))?;
        match file.try_lock() {
            Ok(()) => {
                let host = gethostname::gethostname();
                let owner = format!("process {} on {}\n", process::id(), host.display());
                file.set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| file.write_all(owner.as_bytes()))
                    .map_err(FileError::of("write", &path))?;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::InUse {
                    folder: root.to_owned(),
                    owner: owner(&path),
                });
            }
            Err(TryLockError::Error(error)) => tracing::warn!(
                "cannot lock {}: {error}; make sure that no other process writes to the run folder",
                path.display()
            ),
        }
        Ok(Self { _file: file })
    }
}

/// The process that has the lock. `None` if it has not written its name yet, or if the file cannot be read while it is
/// locked, as on Windows.
fn owner(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;

    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        // What a process that was killed has left, longer than the new content.
        fs::write(
            folder.path().join(FILE),
            format!("process {} on {}", u64::MAX, "x".repeat(200)),
        )
        .unwrap();
        let first = Lock::acquire(folder.path()).unwrap();
        let error = Lock::acquire(folder.path()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&folder.path().display().to_string())
                && text.contains(&format!("process {} on ", process::id()))
                && !text.contains("xxx"),
            "{text}"
        );
        assert_eq!(error.exit_code(), 1);
        drop(first);
        Lock::acquire(folder.path()).unwrap();
    }
}
