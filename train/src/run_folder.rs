//! The folder of a run: its configuration, its metrics and its checkpoints.
//!
//! A checkpoint gets its name when it is complete (see [`durable`]), so that whatever has a checkpoint's
//! name is whole; a crash at any instant leaves the ones before.

use std::fs;
use std::path::{Path, PathBuf};

use firebox_checkpoint::{CHECKPOINTS, LATEST};
use firebox_console::durable::{self, FileError, Unfinished};

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

/// Where the run in a folder, should there be one, has its resolved configuration.
pub fn config(root: &Path) -> PathBuf {
    root.join("config.toml")
}

impl RunFolder {
    /// The folder at `root`, made when it does not exist.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn create(root: &Path) -> Result<Self, FileError> {
        let folder = Self {
            root: root.to_owned(),
        };
        fs::create_dir_all(folder.checkpoints())
            .map_err(FileError::of("create", &folder.checkpoints()))?;
        Ok(folder)
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        config(&self.root)
    }

    /// One object a logged step.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The checkpoints' folder.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join(CHECKPOINTS)
    }

    /// The folder of the checkpoint of a step.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:07}"))
    }

    /// Steps that have a checkpoint, rising.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, FileError> {
        let folder = self.checkpoints();
        let entries = fs::read_dir(&folder).map_err(FileError::of("read", &folder))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut steps: Vec<u64> = names
            .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
            .collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Makes the checkpoint of a step: `fill` writes its files into a folder of a temporary name, which
    /// then takes its own name and becomes `latest`. Nothing is left of one that fails.
    ///
    /// # Errors
    ///
    /// Those of `fill`, or when the folder cannot be made, renamed or synced.
    pub fn save<E: From<FileError>>(
        &self,
        step: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let path = self.checkpoint(step);
        let unfinished = Unfinished::create(&path)?;
        fill(unfinished.path())?;
        // After a resume from an older checkpoint the same step is written again, with the same content.
        durable::remove_folder(&path)?;
        unfinished.finish()?;
        self.name(LATEST, step)?;
        Ok(path)
    }

    /// Writes the name of a step's checkpoint into a file beside them, such as `latest` or `best`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn name(&self, name: &str, step: u64) -> Result<(), FileError> {
        let file = self.checkpoints().join(name);
        durable::write(&file, format!("step-{step:07}\n"))
    }

    /// Removes all checkpoints but the newest `keep_last` and that of the `best` step, and what a crash
    /// left of unfinished ones.
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
                .contains("free some space")
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
