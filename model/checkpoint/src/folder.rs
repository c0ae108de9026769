//! Finds the checkpoint folder that a path refers to.

use std::fs;
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;

use super::gguf::is_gguf;
use super::{CONFIG_FILE, CheckpointError, MODEL_FILE};

/// Name of the folder with the checkpoints of a run.
pub const CHECKPOINTS: &str = "checkpoints";
/// Name of the file in it that contains the name of the newest checkpoint.
pub const LATEST: &str = "latest";

/// Why a path does not lead to a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The path does not exist.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The path is a file.
    #[error("{} is a file; a checkpoint is a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The folder is a model in a hub cache, which keeps it as snapshots.
    #[error("{} is a model in a cache of the Hugging Face hub, not a checkpoint", folder.display())]
    HubCache {
        /// The folder.
        folder: PathBuf,
        /// Its snapshots, newest first.
        snapshots: Vec<PathBuf>,
    },
    /// The folder is neither a checkpoint nor a run.
    #[error("{} is not a checkpoint: {CONFIG_FILE} is missing", folder.display())]
    NotACheckpoint {
        /// The folder.
        folder: PathBuf,
    },
    /// The run has not written its first checkpoint yet.
    #[error("the run in {} has no complete checkpoint", run.display())]
    NoCheckpointYet {
        /// The run's folder, or its folder of checkpoints.
        run: PathBuf,
    },
    /// The newest checkpoint of a run does not exist.
    #[error("{} refers to the checkpoint {name:?}, which does not exist", file.display())]
    Latest {
        /// The file `latest`.
        file: PathBuf,
        /// Its content.
        name: String,
    },
    /// The file `latest` cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
}

impl Advise for FolderError {
    fn advice(&self) -> Advice {
        match self {
            Self::Missing { path } => match hub_name(path) {
                Some(name) => Advice::USAGE.hint(format!(
                    "if it is a model of the Hugging Face hub, download it first: hf download {name} --local-dir FOLDER"
                )),
                None => Advice::USAGE.hint(
                    "use a run folder, such as runs/quickstart, which `cargo train run configs/quickstart.toml` makes, or a \
                     folder with config.json and model.safetensors, relative to the working directory",
                ),
            },
            Self::HubCache { snapshots, .. } => Advice::USAGE.hint(match snapshots.as_slice() {
                [] => "it has no snapshot; download the model again".to_owned(),
                [newest, ..] => format!("use {}", newest.display()),
            }),
            Self::NotAFolder { path } if is_gguf(path) => Advice::USAGE.hint(format!(
                "make a folder of it first: cargo infer export {} --output FOLDER",
                path.display()
            )),
            Self::NotAFolder { .. } => Advice::USAGE.hint(
                "use the folder with config.json and model.safetensors, or a run folder such as runs/NAME",
            ),
            Self::NotACheckpoint { .. } => Advice::USAGE.hint(
                "a checkpoint is a folder with config.json and model.safetensors, such as runs/NAME/checkpoints/step-0000100",
            ),
            Self::NoCheckpointYet { .. } => {
                Advice::USAGE.hint("`cargo train run CONFIG --resume` continues the run")
            }
            Self::Latest { .. } => {
                Advice::FAILURE.hint("use the folder of another checkpoint of this run")
            }
            Self::Read(_) => Advice::FAILURE,
        }
    }
}

/// The name of a model on the hub, `OWNER/NAME`, if a path could be one.
fn hub_name(path: &Path) -> Option<&str> {
    let name = path.to_str()?;
    let (owner, model) = name.split_once('/')?;
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '~'])
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    // Rather a folder is meant where the first one exists, or is that of runs.
    let is_folder = owner == "runs" || Path::new(owner).exists();
    (plain(owner) && plain(model) && !is_folder).then_some(name)
}

/// The snapshots of a model in a hub cache, newest first; `None` if the folder is none.
fn snapshots(folder: &Path) -> Option<Vec<PathBuf>> {
    let is_snapshots = folder.file_name().is_some_and(|name| name == "snapshots");
    let inner = match is_snapshots {
        true => folder.to_owned(),
        false => folder.join("snapshots"),
    };
    let is_model = |folder: &Path| folder.join("refs").is_dir() || folder.join("blobs").is_dir();
    if !inner.is_dir() || !is_model(inner.parent()?) {
        return None;
    }
    let entries = fs::read_dir(&inner).ok()?.filter_map(Result::ok);
    let mut dated: Vec<_> = entries
        .filter(|entry| entry.path().join(CONFIG_FILE).exists())
        .map(|entry| {
            (
                entry.metadata().and_then(|data| data.modified()).ok(),
                entry.path(),
            )
        })
        .collect();
    dated.sort();
    Some(dated.into_iter().rev().map(|(_, path)| path).collect())
}

/// The checkpoint folder that a path refers to: the path itself, or the newest complete checkpoint of a run folder or
/// of its `checkpoints` folder.
///
/// # Errors
///
/// When the folder does not exist, or is neither a checkpoint nor a run with a complete checkpoint.
pub fn checkpoint_folder(path: &Path) -> Result<PathBuf, FolderError> {
    let path = path.to_owned();
    if path.is_file() {
        return Err(FolderError::NotAFolder { path });
    }
    if !path.is_dir() {
        return Err(FolderError::Missing { path });
    }
    if path.join(CONFIG_FILE).exists() || path.join(MODEL_FILE).exists() {
        return Ok(path);
    }
    if let Some(snapshots) = snapshots(&path) {
        return Err(FolderError::HubCache {
            folder: path,
            snapshots,
        });
    }
    let inner = path.join(CHECKPOINTS);
    let is_run = inner.is_dir();
    let checkpoints = if is_run { inner } else { path.clone() };
    let file = checkpoints.join(LATEST);
    if !file.exists() {
        return Err(
            if is_run || path.file_name().is_some_and(|name| name == CHECKPOINTS) {
                FolderError::NoCheckpointYet { run: path }
            } else {
                FolderError::NotACheckpoint { folder: path }
            },
        );
    }
    let text = fs::read_to_string(&file).map_err(FileError::of("read", &file))?;
    let name = text.trim();
    let folder = checkpoints.join(name);
    if name.is_empty() || !folder.is_dir() {
        return Err(FolderError::Latest {
            file,
            name: name.to_owned(),
        });
    }
    Ok(folder)
}

/// The same where a GGUF file is a checkpoint too, which is then returned as it is.
///
/// # Errors
///
/// As there.
pub fn checkpoint_place(path: &Path) -> Result<PathBuf, FolderError> {
    match is_gguf(path) {
        true => Ok(path.to_owned()),
        false => checkpoint_folder(path),
    }
}

/// Checks that a folder can be written as a whole: it is empty or absent.
///
/// # Errors
///
/// [`CheckpointError::Occupied`] if it is not.
pub fn require_free(folder: &Path) -> Result<(), CheckpointError> {
    let has_entries = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    match has_entries || folder.is_file() {
        true => Err(CheckpointError::Occupied {
            folder: folder.to_owned(),
        }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_refers_to_its_newest_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = run.path().join(CHECKPOINTS);
        fs::create_dir(&checkpoints).unwrap();
        for path in [run.path(), &checkpoints] {
            let error = checkpoint_folder(path).unwrap_err();
            assert!(
                matches!(error, FolderError::NoCheckpointYet { .. }),
                "{error}"
            );
        }

        fs::write(checkpoints.join(LATEST), "step-0000020\n").unwrap();
        let error = checkpoint_folder(run.path()).unwrap_err();
        assert!(error.to_string().contains("\"step-0000020\""), "{error}");
        assert_eq!(error.exit_code(), 1);

        let newest = checkpoints.join("step-0000020");
        fs::create_dir(&newest).unwrap();
        fs::write(newest.join(CONFIG_FILE), "{}").unwrap();
        for path in [run.path(), &checkpoints, &newest] {
            assert_eq!(checkpoint_folder(path).unwrap(), newest);
        }
    }

    #[test]
    fn other_paths_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let rejected = |path: &Path| checkpoint_folder(path).unwrap_err();
        assert!(matches!(rejected(&file), FolderError::NotAFolder { .. }));
        assert!(matches!(
            rejected(&folder.path().join("absent")),
            FolderError::Missing { .. }
        ));
        let foreign = rejected(folder.path());
        assert!(
            foreign
                .to_string()
                .ends_with("is not a checkpoint: config.json is missing"),
            "{foreign}"
        );
        assert_eq!(foreign.exit_code(), 2);
    }
}
