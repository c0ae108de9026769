//! Files and folders that appear whole or not at all.
//!
//! Each is written beside its place under a temporary name that begins with `.writing-`, synced, and renamed, so that
//! a crash at any instant leaves what was there before. [`clear`] removes what a crash left under temporary names.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// How the name of an unfinished file or folder begins.
const UNFINISHED: &str = ".writing-";

/// A file or folder that cannot be read, written, created or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What failed: read, write, create, remove …
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The error of the operating system.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: what failed, and where.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }
}

/// Writes a file, replacing what is there.
///
/// # Errors
///
/// When it cannot be written.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), FileError> {
    write_with(path, |unfinished| {
        fs::write(unfinished, content).map_err(FileError::of("write", path))
    })
}

/// Checks that [`write()`] can make a file, before the work whose result it is to hold. What is there stays.
///
/// # Errors
///
/// When a file cannot be made beside its place, or the place is taken by something else than a regular file.
pub fn check_writable(path: &Path) -> Result<(), FileError> {
    regular(path)?;
    let unfinished = unfinished(path);
    File::create(&unfinished)
        .and_then(|_| fs::remove_file(&unfinished))
        .map_err(FileError::of("write", path))
}

/// A rename would put a file in the place of `/dev/stdout`.
fn regular(path: &Path) -> Result<(), FileError> {
    match fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        true => Err(FileError::of("write", path)(io::Error::other(
            "it is not a regular file",
        ))),
        false => Ok(()),
    }
}

/// Writes a file by a function that gets its temporary path, replacing what is there. When the function fails,
/// nothing of the new file stays.
///
/// # Errors
///
/// Those of the function, or when the file cannot be synced or renamed.
pub fn write_with<E: From<FileError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    regular(path)?;
    let unfinished = unfinished(path);
    let written = fill(&unfinished).and_then(|()| {
        // Windows syncs only what is open for writing.
        File::options()
            .write(true)
            .open(&unfinished)
            .and_then(|file| file.sync_all())
            .and_then(|()| rename(&unfinished, path))
            .map_err(|error| FileError::of("write", path)(error).into())
    });
    if written.is_err() {
        // The first error says more than one about what it left behind.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// A folder under its temporary name, which is removed with all its content unless [`Unfinished::finish`] gives it
/// its own name. Files in it are synced by whoever writes them.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    target: PathBuf,
}

impl Unfinished {
    /// An empty folder that will be at `target`. Makes the folders above it, and removes what a crash left of an earlier
    /// one, which the log says.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub fn create(target: &Path) -> Result<Self, FileError> {
        let path = unfinished(target);
        if path.exists() {
            tracing::warn!(
                "removing {}, which a command that was killed has left",
                path.display()
            );
        }
        remove_folder(&path)?;
        fs::create_dir_all(&path).map_err(FileError::of("create", &path))?;
        Ok(Self {
            path,
            target: target.to_owned(),
        })
    }

    /// Where the folder is until it is finished.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder its own name, which must be free or that of an empty folder.
    ///
    /// # Errors
    ///
    /// When it cannot be synced or renamed; then it is removed.
    pub fn finish(self) -> Result<(), FileError> {
        // Only Unix renames onto an empty folder.
        absent(fs::remove_dir(&self.target))
            .and_then(|()| sync_folder(&self.path))
            .and_then(|()| rename(&self.path, &self.target))
            .map_err(FileError::of("write", &self.target))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the rename nothing has this name.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes a folder, if there is one, by way of a temporary name, so that a crash leaves no half of it.
///
/// # Errors
///
/// When it cannot be removed.
pub fn remove_folder(path: &Path) -> Result<(), FileError> {
    let doomed = unfinished(&path.with_added_extension("old"));
    absent(fs::remove_dir_all(&doomed))
        .and_then(|()| absent(fs::rename(path, &doomed)))
        .and_then(|()| absent(fs::remove_dir_all(&doomed)))
        .map_err(FileError::of("remove", path))
}

/// The result of removing something, which may have been absent before.
fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the unfinished files and folders in a folder. Nobody may be writing to it.
///
/// # Errors
///
/// When the folder cannot be read, or one of them cannot be removed.
pub fn clear(folder: &Path) -> Result<(), FileError> {
    let entries = fs::read_dir(folder).map_err(FileError::of("read", folder))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            }
            .map_err(FileError::of("remove", &path))?;
        }
    }
    Ok(())
}

/// Renames a file or folder within one folder, and waits until that is on the disk.
///
/// # Errors
///
/// When it cannot be renamed or synced.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder_of(to)
}

/// Waits until the name of a new file is on the disk.
///
/// # Errors
///
/// When the folder around it cannot be synced.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    sync_folder(path.parent().unwrap_or(Path::new("")))
}

/// A rename is on the disk once the folder around it is.
fn sync_folder(path: &Path) -> io::Result<()> {
    // Windows opens no folders as files, and needs no such sync.
    if cfg!(windows) {
        return Ok(());
    }
    let here = Path::new(".");
    let path = if path.as_os_str().is_empty() {
        here
    } else {
        path
    };
    File::open(path)?.sync_all()
}

/// The temporary name beside a path.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(UNFINISHED);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_checked_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        check_writable(&path).unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
        fs::write(&path, "kept").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
        assert_eq!(names(folder.path()), ["a.json"]);
        let error = check_writable(folder.path()).unwrap_err();
        assert!(
            error.to_string().ends_with("it is not a regular file"),
            "{error}"
        );
        let absent = folder.path().join("no/a.json");
        let error = check_writable(&absent).unwrap_err();
        assert!(error.to_string().starts_with("cannot write"), "{error}");
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write(&path, "old").unwrap();
        write(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");

        let full = || io::Error::from(ErrorKind::StorageFull);
        let error: FileError = write_with(&path, |unfinished| {
            fs::write(unfinished, "half").unwrap();
            Err(FileError::of("write", &path)(full()))
        })
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot write {}: {}", path.display(), full())
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(folder.path()), ["state.json"]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("state.json");
        let error = write(&path, "new").unwrap_err();
        assert_eq!((error.action, &error.path), ("write", &path));
        assert_eq!(error.source.kind(), ErrorKind::NotFound);
        let error = write(folder.path(), "new").unwrap_err();
        assert!(
            error.to_string().ends_with("it is not a regular file"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_appears_when_it_is_finished() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("above").join("checkpoint");
        let dropped = Unfinished::create(&path).unwrap();
        fs::write(dropped.path().join("file"), "half").unwrap();
        assert!(!path.exists());
        drop(dropped);
        assert_eq!(names(path.parent().unwrap()), [""; 0]);

        fs::create_dir(&path).unwrap();
        let finished = Unfinished::create(&path).unwrap();
        fs::write(finished.path().join("file"), "whole").unwrap();
        finished.finish().unwrap();
        assert_eq!(names(path.parent().unwrap()), ["checkpoint"]);
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "whole");
    }

    #[test]
    fn a_folder_with_content_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("checkpoint");
        let unfinished = Unfinished::create(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "precious").unwrap();
        assert_eq!(unfinished.finish().unwrap_err().path, path);
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "precious");
        assert_eq!(names(root.path()), ["checkpoint"]);

        remove_folder(&path).unwrap();
        remove_folder(&path).unwrap();
        assert_eq!(names(root.path()), [""; 0]);
    }

    #[test]
    fn what_a_crash_left_is_cleared() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("checkpoint");
        std::mem::forget(Unfinished::create(&path).unwrap());
        fs::write(unfinished(&root.path().join("latest")), "half").unwrap();
        fs::write(root.path().join("latest"), "whole").unwrap();
        clear(root.path()).unwrap();
        assert_eq!(names(root.path()), ["latest"]);
    }
}
