//! Ranks as processes under MPI: `mpirun -n 8 program …`, `srun`, or anything else that starts MPI programs.
//!
//! It takes the feature `mpi`, whose build needs an MPI and libclang; on Debian the packages `libopenmpi-dev`,
//! `openmpi-bin` and `libclang-dev`. A build with the feature on a machine without them ends in the build script of
//! `mpi-sys`, which lists where it has looked. Without the feature this module is here all the same, and
//! [`World::start`] says what is missing.
//!
//! Of MPI, only messages from point to point are used: sums are taken in rank order here, so that they have the bits
//! of [`threads`](crate::threads) (`MPI_Allreduce` chooses the order by length and by the number of ranks); and a rank that
//! waits sleeps, where MPI's own operations spin. Ranks of one machine share memory (a window of MPI), in which they say
//! what they are doing, wake each other and tell of failures, and in which a group that is on one machine sums short vectors
//! and gathers few bytes without messages; each watches the processes of the others, so that one that is killed is named at
//! once. What this needs of the system is Linux's (5.3 or newer); elsewhere, waiting ranks poll, and a killed rank is reported
//! only as a timeout.
//!
//! Between machines, failures travel as messages. What a rank on another machine is doing, for whom it waits, whether it
//! makes progress or has finished is not known. So a rank that waits for a message of such a rank fails the run at the
//! deadline ([`Options::deadline`](crate::Options::deadline)) whatever the other one does, and may blame one that itself
//! waits for a third.

#[cfg(not(feature = "mpi"))]
mod absent;
#[cfg(all(test, feature = "mpi"))]
mod alone;
#[cfg(feature = "mpi")]
mod futex;
#[cfg(feature = "mpi")]
mod member;
#[cfg(feature = "mpi")]
mod monitor;
#[cfg(feature = "mpi")]
mod node;
#[cfg(feature = "mpi")]
mod process;
mod program;
#[cfg(feature = "mpi")]
mod shared;
#[cfg(feature = "mpi")]
mod text;
#[cfg(feature = "mpi")]
mod transport;
#[cfg(feature = "mpi")]
mod world;

use std::env;

use firebox_console::advice::{Advice, Advise};
use thiserror::Error;

#[cfg(not(feature = "mpi"))]
pub use absent::World;
pub use program::{ProgramError, once, program};
#[cfg(feature = "mpi")]
pub use world::World;

/// The number of processes, as launchers tell it: Open MPI, MPICH and Slurm's PMI, and a step of a Slurm job.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// The place of a process among them, as launchers tell it.
const RANKS: [&str; 2] = ["PMIX_RANK", "PMI_RANK"];

/// Whether an MPI launcher has started this process as one of several. Which rank it is, only MPI says: see
/// [`World::start`]. A process that is alone, as in a Slurm job of one task, is no rank and needs no MPI.
pub fn launched() -> bool {
    launched_with(|name| env::var(name).ok())
}

fn launched_with(variable: impl Fn(&str) -> Option<String>) -> bool {
    if !RANKS
        .iter()
        .chain(&SIZES[..1])
        .any(|name| variable(name).is_some())
    {
        return false;
    }
    let mut sizes = SIZES
        .iter()
        .filter_map(|name| variable(name)?.parse::<usize>().ok());
    // A launcher that does not tell the size is asked through MPI.
    sizes.next().is_none_or(|size| size > 1)
}

/// MPI cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MpiError {
    /// This program was built without it.
    #[error("this program was built without MPI")]
    Missing,
    /// It was started before, in the same process.
    #[error("MPI is in use by this process already")]
    Started,
    /// It does not allow calls from several threads, one at a time.
    #[error(
        "this MPI serves a single thread of a process only (MPI_THREAD_SERIALIZED is not provided)"
    )]
    Threads,
}

impl Advise for MpiError {
    fn advice(&self) -> Advice {
        match self {
            Self::Missing => Advice::USAGE.hint(
                "build it with --features mpi, which needs an MPI and libclang (Debian: apt install libopenmpi-dev openmpi-bin libclang-dev); \
                 or run it without a launcher such as mpirun: the ranks are then threads",
            ),
            Self::Started => Advice::FAILURE,
            Self::Threads => Advice::FAILURE.hint("use an MPI that was built with support for threads"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::launched_with;

    #[test]
    fn a_process_that_is_alone_is_no_rank() {
        let launched = |variables: &[(&str, &str)]| {
            launched_with(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!launched(&[]));
        assert!(launched(&[
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("PMIX_RANK", "0")
        ]));
        assert!(!launched(&[
            ("OMPI_COMM_WORLD_SIZE", "1"),
            ("PMIX_RANK", "0")
        ]));
        assert!(launched(&[("PMI_RANK", "1"), ("PMI_SIZE", "4")]));
        // Slurm tells every task of a job its number; without PMI they are no ranks.
        assert!(!launched(&[("SLURM_STEP_NUM_TASKS", "4")]));
        assert!(launched(&[
            ("PMI_RANK", "0"),
            ("SLURM_STEP_NUM_TASKS", "4")
        ]));
        assert!(!launched(&[
            ("PMI_RANK", "0"),
            ("SLURM_STEP_NUM_TASKS", "1")
        ]));
        assert!(launched(&[("PMIX_RANK", "0")]));
    }
}
