//! Which checkpoint a path means.

use std::fs;
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;

use super::{CONFIG_FILE, MODEL_FILE};

/// Name of the folder in which a run keeps its checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// Name of the file among a run's checkpoints that names the newest one.
pub const LATEST: &str = "latest";

/// Why a path leads to no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is nothing.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// There is a file.
    #[error("{} is a file, and a checkpoint is a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// There is neither a checkpoint nor a run.
    #[error("{} is no checkpoint: it has no {CONFIG_FILE}", folder.display())]
    NotACheckpoint {
        /// The folder.
        folder: PathBuf,
    },
    /// There is a run that has not come to its first checkpoint.
    #[error("the run in {} has no finished checkpoint", run.display())]
    NoCheckpointYet {
        /// The run's folder, or its folder of checkpoints.
        run: PathBuf,
    },
    /// The newest checkpoint of a run is gone.
    #[error("{} names the checkpoint {name:?}, which is not beside it", file.display())]
    Latest {
        /// The file `latest`.
        file: PathBuf,
        /// What it says.
        name: String,
    },
    /// The file `latest` cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
}

impl Advise for FolderError {
    fn advice(&self) -> Advice {
        match self {
            Self::Missing { .. } => Advice::USAGE,
            Self::NotAFolder { .. } => Advice::USAGE.hint(
                "give the folder that holds config.json and model.safetensors, or a run such as runs/NAME",
            ),
            Self::NotACheckpoint { .. } => Advice::USAGE.hint(
                "a checkpoint is a folder with config.json and model.safetensors, such as runs/NAME/checkpoints/step-0000100",
            ),
            Self::NoCheckpointYet { .. } => {
                Advice::USAGE.hint("`cargo train run CONFIG --resume` goes on until there is one")
            }
            Self::Latest { .. } => {
                Advice::FAILURE.hint("give the folder of another checkpoint of this run")
            }
            Self::Read(_) => Advice::FAILURE,
        }
    }
}

/// The checkpoint that a path means: a checkpoint's own folder, or a run's folder or its `checkpoints`, which
/// stand for the newest complete one.
///
/// # Errors
///
/// When there is no such folder, or neither a checkpoint nor a run in it.
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
    let inner = path.join(CHECKPOINTS);
    let is_run = inner.is_dir();
    let checkpoints = if is_run { inner } else { path.clone() };
    let file = checkpoints.join(LATEST);
    if !file.exists() {
        return Err(
            match is_run || path.file_name().is_some_and(|name| name == CHECKPOINTS) {
                true => FolderError::NoCheckpointYet { run: path },
                false => FolderError::NotACheckpoint { folder: path },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_stands_for_its_newest_checkpoint() {
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
    fn other_paths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = |path: &Path| checkpoint_folder(path).unwrap_err();
        assert!(matches!(refused(&file), FolderError::NotAFolder { .. }));
        assert!(matches!(
            refused(&folder.path().join("absent")),
            FolderError::Missing { .. }
        ));
        let foreign = refused(folder.path());
        assert!(
            foreign
                .to_string()
                .ends_with("is no checkpoint: it has no config.json"),
            "{foreign}"
        );
        assert_eq!(foreign.exit_code(), 2);
    }
}
