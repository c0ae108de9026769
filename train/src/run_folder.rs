//! The folder of a run: its configuration, its metrics and its checkpoints.
//!
//! A checkpoint gets its name when it is complete (see [`durable`]), so that a folder with a checkpoint's
//! name is always complete; a crash at any time leaves the previous ones intact.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use firebox_checkpoint::{CHECKPOINTS, LATEST};
use firebox_console::durable::{self, FileError, Unfinished};

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

/// The folder of the run of a configuration file, unless another one is named: `runs/`, and the file's name without its end.
pub fn default_folder(file: &Path) -> PathBuf {
    Path::new("runs").join(file.file_stem().unwrap_or("run".as_ref()))
}

/// The path of the resolved configuration in a run folder.
pub fn config(root: &Path) -> PathBuf {
    root.join("config.toml")
}

/// The path of the metrics in a run folder: one JSON object per logged step or validation.
pub fn metrics(root: &Path) -> PathBuf {
    root.join("metrics.jsonl")
}

/// Where the run in a folder has the checkpoint of a step.
pub fn checkpoint(root: &Path, step: u64) -> PathBuf {
    root.join(CHECKPOINTS).join(format!("step-{step:07}"))
}

/// The step of the newest checkpoint of the run in a folder; `None` where there is no checkpoint, or no folder.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn newest(root: &Path) -> Result<Option<u64>, FileError> {
    let folder = root.join(CHECKPOINTS);
    match steps(&folder) {
        Ok(steps) => Ok(steps.last().copied()),
        // A file in the place of the folder is reported when the folder is to be made.
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(FileError::of("read", &folder)(error)),
        },
    }
}

/// Steps that have a checkpoint in the folder of all of them, rising.
fn steps(checkpoints: &Path) -> io::Result<Vec<u64>> {
    let entries = fs::read_dir(checkpoints)?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut steps: Vec<u64> = names
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

impl RunFolder {
    /// Opens the run folder at `root`, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub fn create(root: &Path) -> Result<Self, FileError> {
        let folder = Self {
            root: root.to_owned(),
        };
        fs::create_dir_all(folder.checkpoints())
            .map_err(FileError::of("create", &folder.checkpoints()))?;
        Ok(folder)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        config(&self.root)
    }

    /// The metrics file: one JSON object per logged step or validation.
    pub fn metrics(&self) -> PathBuf {
        metrics(&self.root)
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join(CHECKPOINTS)
    }

    /// The folder of the checkpoint of a step.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        checkpoint(&self.root, step)
    }

    /// Steps that have a checkpoint, in ascending order.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, FileError> {
        let folder = self.checkpoints();
        steps(&folder).map_err(FileError::of("read", &folder))
    }

    /// Writes the checkpoint of a step: `fill` writes its files to a temporary folder, which is then renamed
    /// and becomes `latest`. If this fails, the temporary folder is removed.
    ///
    /// # Errors
    ///
    /// The error of `fill`, or when the folder cannot be created, renamed or synced.
    pub fn save<E: From<FileError>>(
        &self,
        step: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let path = self.checkpoint(step);
        let unfinished = Unfinished::create(&path)?;
        fill(unfinished.path())?;
        // After a resume from an older checkpoint, the same step is written again with the same content.
        durable::remove_folder(&path)?;
        unfinished.finish()?;
        self.name(LATEST, step)?;
        Ok(path)
    }

    /// Writes the name of a step's checkpoint to a file in the checkpoints' folder, such as `latest` or `best`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn name(&self, name: &str, step: u64) -> Result<(), FileError> {
        let file = self.checkpoints().join(name);
        durable::write(&file, format!("step-{step:07}\n"))
    }

    /// Removes all checkpoints except the newest `keep_last` and the one of the `best` step, and incomplete
    /// ones that a crash left behind.
    ///
    /// # Errors
    ///
    /// When one cannot be removed.
    pub fn prune(&self, keep_last: usize, best: Option<u64>) -> Result<(), FileError> {
        let mut steps = self.steps()?;
        steps.truncate(steps.len().saturating_sub(keep_last.max(1)));
        for step in steps.into_iter().filter(|&step| Some(step) != best) {
            durable::remove_folder(&self.checkpoint(step))?;
        }
        durable::clear(&self.checkpoints())
    }
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;

    use super::*;
    use crate::error::TrainError;

    fn folder() -> (tempfile::TempDir, RunFolder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(&temporary.path().join("run")).unwrap();
        (temporary, folder)
    }

    fn save(folder: &RunFolder, step: u64) {
        folder
            .save(step, |path| {
                fs::write(path.join("file"), "content").map_err(FileError::of("write", path))
            })
            .unwrap();
    }

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let (_guard, folder) = folder();
        (1..=5).for_each(|step| save(&folder, step * 10));
        folder.prune(2, Some(20)).unwrap();
        assert_eq!(folder.steps().unwrap(), [20, 40, 50]);
        assert_eq!(
            fs::read_to_string(folder.checkpoints().join("latest")).unwrap(),
            "step-0000050\n"
        );
    }

    #[test]
    fn a_failure_leaves_the_last_one_and_nothing_else() {
        let (_guard, folder) = folder();
        save(&folder, 10);
        let failure = folder.save(20, |path| {
            fs::write(path.join("half"), "…").unwrap();
            let full = std::io::ErrorKind::StorageFull.into();
            Err(TrainError::from(FileError::of("write", path)(full)))
        });
        assert!(
            failure
                .unwrap_err()
                .hint()
                .unwrap()
                .contains("free some disk space")
        );
        assert_eq!(folder.steps().unwrap(), [10]);
        assert_eq!(
            fs::read_dir(folder.checkpoints()).unwrap().count(),
            2,
            "step-0000010 and latest"
        );
    }

    #[test]
    fn what_a_crash_left_is_cleared() {
        let (_guard, folder) = folder();
        let crash = |step| {
            let unfinished = Unfinished::create(&folder.checkpoint(step)).unwrap();
            fs::write(unfinished.path().join("half"), "…").unwrap();
            std::mem::forget(unfinished);
        };
        crash(30);
        save(&folder, 30);
        crash(40);
        assert_eq!(folder.steps().unwrap(), [30]);
        folder.prune(1, None).unwrap();
        assert_eq!(fs::read_dir(folder.checkpoints()).unwrap().count(), 2);
    }
}
