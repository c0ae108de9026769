//! What stands for MPI in a build without it.

use std::convert::Infallible;
use std::sync::Arc;

use firebox_console::advice::Advise;

use super::MpiError;
use crate::{Comm, Options, RunError};

/// MPI in use by this process: there is none in this build.
#[derive(Debug)]
pub struct World(Infallible);

impl World {
    /// Starts MPI.
    ///
    /// # Errors
    ///
    /// Always [`MpiError::Missing`].
    pub fn start() -> Result<Self, MpiError> {
        Err(MpiError::Missing)
    }

    /// This process among all.
    pub fn rank(&self) -> usize {
        match self.0 {}
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        match self.0 {}
    }

    /// How many of them are on this machine, this one included.
    pub fn local_size(&self) -> usize {
        match self.0 {}
    }

    /// Runs `body` as this process's rank.
    ///
    /// # Errors
    ///
    /// None, as there is no such value.
    pub fn run<T, E>(
        self,
        _options: &Options,
        _body: impl FnOnce(Arc<dyn Comm>) -> Result<T, E> + Send + 'static,
        _report: impl FnOnce(&RunError<E>, bool),
    ) -> Result<T, RunError<E>>
    where
        T: Send + 'static,
        E: Advise + Send + 'static,
    {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise;

    use super::*;

    #[test]
    fn the_packages_and_the_feature_are_named() {
        let error = World::start().map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "this program was built without MPI");
        let hint = error.hint().unwrap();
        for name in [
            "--features mpi",
            "libopenmpi-dev",
            "openmpi-bin",
            "libclang-dev",
        ] {
            assert!(hint.contains(name), "{hint}");
        }
    }
}
