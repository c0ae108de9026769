//! The files of a checkpoint besides its weights.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use firebox_console::durable::{self, FileError};

use super::LAYOUT_FILE;
use crate::{CheckpointError, INDEX_FILE};

/// Extensions of files with weights, in the formats of several libraries.
const WEIGHTS: [&str; 9] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "h5",
    "msgpack",
    "onnx",
];

/// The files in a folder that are neither weights nor the state of a training run, nor hidden; in the order of their names.
fn others(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = || FileError::of("read", folder);
    let entries = fs::read_dir(folder).map_err(failed())?;
    let paths = entries.map(|entry| Ok(entry.map_err(failed())?.path()));
    let paths = paths.collect::<Result<Vec<_>, FileError>>()?;
    let mut others: Vec<PathBuf> = paths
        .into_iter()
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let extension = path.extension().unwrap_or_default().to_string_lossy();
            path.is_file()
                && !name.starts_with('.')
                && !name.starts_with("train_state.")
                && !name.ends_with(".index.json")
                && ![INDEX_FILE, LAYOUT_FILE].contains(&name.as_ref())
                && !WEIGHTS.contains(&extension.as_ref())
        })
        .collect();
    others.sort();
    Ok(others)
}

/// Copies them from one folder into another.
///
/// # Errors
///
/// When one of them cannot be read or written.
pub(super) fn copy_others(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    others(from)?
        .iter()
        .try_for_each(|path| copy_into(path, to))
}

/// Copies a file into a folder.
///
/// # Errors
///
/// When it cannot be read or written.
pub(super) fn copy_into(path: &Path, folder: &Path) -> Result<(), CheckpointError> {
    let copy = folder.join(path.file_name().unwrap_or_default());
    durable::write_with(&copy, |unfinished| {
        let mut source = File::open(path).map_err(FileError::of("read", path))?;
        // With the usual permissions, where `fs::copy` would take those of the source.
        let mut target = File::create(unfinished).map_err(FileError::of("write", &copy))?;
        io::copy(&mut source, &mut target).map_err(FileError::of("copy", path))?;
        Ok(())
    })
}

/// The names of those in the first folder that the second one has otherwise, and what is wrong with them.
///
/// # Errors
///
/// When the first folder or a file in it cannot be read.
pub(super) fn differences(
    checkpoint: &Path,
    sharded: &Path,
) -> Result<Vec<(String, String)>, CheckpointError> {
    let mut differences = Vec::new();
    for path in others(checkpoint)? {
        let name = path.file_name().unwrap_or_default();
        let theirs = fs::read(&path).map_err(FileError::of("read", &path))?;
        let copy = sharded.join(name);
        let difference = match fs::read(&copy) {
            Ok(ours) if ours == theirs => continue,
            Ok(_) => "differs from the checkpoint".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
        };
        differences.push((name.to_string_lossy().into_owned(), difference));
    }
    Ok(differences)
}
