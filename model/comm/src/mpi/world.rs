//! MPI from its start to its end.

#![allow(unsafe_code)]

use std::fmt::{self, Debug};
use std::io;
use std::mem::{self, ManuallyDrop};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use firebox_console::advice::Advise;
use firebox_console::panics::caught;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{AsRaw, Communicator};

use super::member::Member;
use super::node::{Node, Shutdown};
use super::process::Process;
use super::transport::{PIECE, Transport};
use super::{MpiError, monitor};
use crate::pool::{NoThreads, pool, settle};
use crate::{Cause, Comm, Options, RunError};

/// How long a process that has reported a failure waits for the reports of others.
const REPORTS: Duration = Duration::from_secs(5);

/// MPI in use by this process: one of several that a launcher has started.
///
/// It is ended by [`run`](Self::run). A process that ends without it looks to MPI as if it had failed.
pub struct World {
    universe: ManuallyDrop<Universe>,
    comm: ManuallyDrop<SimpleCommunicator>,
    node: Node,
    rank: usize,
    size: usize,
}

impl Debug for World {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut world = formatter.debug_struct("World");
        world.field("rank", &self.rank).field("size", &self.size);
        world.finish_non_exhaustive()
    }
}

impl World {
    /// Starts MPI, together with all other processes.
    ///
    /// # Errors
    ///
    /// When it was started before in this process, or does not allow several threads.
    pub fn start() -> Result<Self, MpiError> {
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threads) = started.ok_or(MpiError::Started)?;
        if threads < Threading::Serialized {
            return Err(MpiError::Threads);
        }
        let comm = universe.world().duplicate();
        let (rank, size) = (comm.rank() as usize, comm.size() as usize);
        // SAFETY: the communicator is alive, and no other thread knows that MPI has been started.
        let node = unsafe { Node::new(comm.as_raw(), rank, size) };
        Ok(Self {
            universe: ManuallyDrop::new(universe),
            comm: ManuallyDrop::new(comm),
            node,
            rank,
            size,
        })
    }

    /// This process among all.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many of them are on this machine, this one included.
    pub fn local_size(&self) -> usize {
        self.node.size()
    }

    /// Runs `body` as this process's rank, on a rayon pool of its own, and returns its result when all ranks have
    /// finished. No handle of a group may be kept longer.
    ///
    /// # Errors
    ///
    /// As of [`threads::run`](crate::threads::run), on every rank; and when the process of another rank is killed. The
    /// process is to exit then, with another code than 0: MPI is of no use any more, and a rank that hangs is left
    /// behind. `report` comes before, since Open MPI kills the remaining processes as soon as two have ended: they wait
    /// for each other until all have reported. It is also given whether this process is the first of its machine to
    /// report, which is then the one to print what went wrong.
    ///
    /// # Panics
    ///
    /// When a handle of a group is kept longer than `body` runs.
    pub fn run<T, E>(
        self,
        options: &Options,
        body: impl FnOnce(Arc<dyn Comm>) -> Result<T, E> + Send + 'static,
        report: impl FnOnce(&RunError<E>, bool),
    ) -> Result<T, RunError<E>>
    where
        T: Send + 'static,
        E: Advise + Send + 'static,
    {
        let Self {
            universe,
            comm,
            node,
            rank,
            size,
        } = self;
        // SAFETY: the communicator is alive until the transport is not, was made for it alone, and MPI was started at
        // this level. What else calls MPI below does so when no other thread is left.
        let transport = unsafe { Transport::new(comm.as_raw(), PIECE) };
        let process = Arc::new(Process::new(
            [rank, size],
            node,
            transport,
            options.deadline,
        ));
        let result = work(&process, options.threads, body).unwrap_or_else(|error| {
            process.node.doing(format_args!("starting its threads"));
            process.fail(rank, Cause::failed(&NoThreads(error)));
            None
        });
        if let Some(failure) = process.failure().cloned() {
            let dead = (failure.cause == Cause::Died).then_some(failure.rank);
            let error = result.and_then(Result::err);
            let error = RunError { failure, error };
            report(&error, process.node.is_first_to_report());
            process.node.reach(Shutdown::Reported);
            process.node.await_others(Shutdown::Reported, dead, REPORTS);
            // What MPI has of this process's memory stays as it is until the process ends.
            mem::forget(process);
            return Err(error);
        }
        let (Some(Ok(value)), Ok(process)) = (result, Arc::try_unwrap(process)) else {
            panic!("a handle of a group is kept longer than `body` runs");
        };
        let (mut universe, mut comm) = (universe, comm);
        // SAFETY: the rank's thread is done with MPI, and all processes come here. Each is dropped once.
        unsafe {
            process.into_node().free();
            ManuallyDrop::drop(&mut comm);
            ManuallyDrop::drop(&mut universe);
        }
        Ok(value)
    }
}

/// Runs the rank on threads of its own, while this one watches over it. `None` if it has panicked, or is left behind.
/// Its error is kept only if that is what the run failed by.
fn work<T, E>(
    process: &Arc<Process>,
    threads: usize,
    body: impl FnOnce(Arc<dyn Comm>) -> Result<T, E> + Send + 'static,
) -> io::Result<Option<Result<T, E>>>
where
    T: Send + 'static,
    E: Advise + Send + 'static,
{
    let (watched, open) = io::pipe()?;
    let pool = pool(process.rank, threads).map_err(io::Error::other)?;
    let (sender, ended) = mpsc::channel();
    let own = Arc::clone(process);
    pool.spawn(move || {
        let comm: Arc<dyn Comm> = Arc::new(Member::world(&own));
        let outcome = caught(|| body(comm));
        let mut result = settle(outcome, |cause| own.fail(own.rank, cause));
        if matches!(result, Some(Ok(_))) {
            own.node.reach(Shutdown::Finished);
            match Member::end(&own) {
                Ok(()) => own.node.reach(Shutdown::Complete),
                Err(_) => result = None,
            }
        }
        drop(own);
        // Nobody listens any more when this rank was left behind.
        let _ = sender.send(result);
        drop(open);
    });
    monitor::watch(process, &watched);
    Ok(ended.try_recv().unwrap_or_default())
}
