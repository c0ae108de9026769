//! The user's cache folder, and files and locks in it.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use directories::ProjectDirs;

use super::error::DataError;

/// Names the folder in place of the customary one.
const VARIABLE: &str = "FIREBOX_CACHE";

/// Where downloads and prepared tokens are kept: `FIREBOX_CACHE`, or what is customary
/// (`$XDG_CACHE_HOME/firebox` or `~/.cache/firebox`, `~/Library/Caches/firebox`,
/// `%LOCALAPPDATA%\firebox\cache`).
pub(super) fn folder() -> PathBuf {
    if let Some(folder) = env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) {
        return folder.into();
    }
    // A user without a home has at least a folder for temporary files.
    ProjectDirs::from("", "", "firebox").map_or_else(
        || env::temp_dir().join("firebox"),
        |directories| directories.cache_dir().to_owned(),
    )
}

/// Creates a folder and those above it.
pub(super) fn create(folder: &Path) -> Result<(), DataError> {
    fs::create_dir_all(folder).map_err(DataError::io("create", folder))
}

/// Waits for the lock on a file (created when absent) and holds it until the result is dropped, at
/// the latest until this process ends. A file system without locks gives none.
pub(super) fn lock(path: &Path) -> Result<File, DataError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(DataError::io("write", path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            tracing::info!(
                "data: waiting for another process to finish ({})",
                path.display()
            );
        }
        Err(fs::TryLockError::Error(_)) => {}
    }
    match file.lock() {
        Err(error) if error.kind() != ErrorKind::Unsupported => {
            Err(DataError::io("lock", path)(error))
        }
        _ => Ok(file),
    }
}
