//! The user's cache folder, and files and locks in it.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
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

/// Writes a file completely or not at all, even if several processes write it at once.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), DataError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut builder = tempfile::Builder::new();
    // Other users of a shared cache may read it, unless the umask forbids it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
        .tempfile_in(folder)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        })
        .map_err(DataError::io("write", path))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_and_have_the_usual_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let [usual, path] = ["usual", "file"].map(|name| folder.path().join(name));
        fs::write(&usual, "").unwrap();
        for content in ["one", "another"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        let permissions = |path| fs::metadata(path).unwrap().permissions();
        assert_eq!(permissions(&path), permissions(&usual));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        assert!(write(&usual.join("below"), b"").is_err());
    }
}
