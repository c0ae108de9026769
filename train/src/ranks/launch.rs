//! Ranks as threads of this process, or this process as one of several that an MPI launcher has started.

use std::sync::Arc;
use std::time::Duration;

use firebox_comm::{Comm, Options, RunError, mpi, threads};
use firebox_runtime::device;
use tracing::subscriber::{NoSubscriber, with_default};

use super::{LayoutError, Team, TrainLayout};
use crate::error::TrainError;

/// How long a rank may compute on its own while another one waits for it.
const DEADLINE: Duration = Duration::from_secs(300);

/// Runs `work` on every rank of a layout, and returns what the first one has returned; nothing in the other processes under
/// MPI. `check` comes before, once for all of them. `threads` are those of this process; `None` for its share of the machine's
/// physical cores.
///
/// # Errors
///
/// Those of `check` and of `work`; when a rank fails; when MPI cannot be used, or has started another number of processes.
pub fn run<T: Send + 'static>(
    layout: TrainLayout,
    threads: Option<usize>,
    check: impl Fn() -> Result<(), TrainError> + Send + Sync + 'static,
    work: impl Fn(&Team) -> Result<T, TrainError> + Send + Sync + 'static,
) -> Result<Option<T>, TrainError> {
    layout.check_ranks()?;
    if mpi::launched() {
        return process(layout, threads, move |team| {
            team.told_by_first(&check)?;
            work(team)
        });
    }
    check()?;
    if layout.ranks() == 1 {
        return work(&Team::default()).map(Some);
    }
    let options = options(threads.unwrap_or_else(device::threads) / layout.ranks());
    let body = move |world| on_rank(&Team::new(world, layout), &work);
    let mut results = threads::run(layout.ranks(), &options, body)?;
    results.swap_remove(0).map(Some)
}

/// This process's rank.
fn process<T: Send + 'static>(
    layout: TrainLayout,
    threads: Option<usize>,
    work: impl Fn(&Team) -> Result<T, TrainError> + Send + Sync + 'static,
) -> Result<Option<T>, TrainError> {
    let share = |ranks_here| threads.unwrap_or_else(|| device::threads() / ranks_here);
    let (sender, result) = std::sync::mpsc::channel();
    let body = move |world: Arc<dyn Comm>| {
        let processes = world.size();
        if processes != layout.ranks() {
            return Err(LayoutError::Processes { layout, processes }.into());
        }
        let team = Team::new(world, layout);
        let ended = on_rank(&team, &work)?;
        if team.is_first() {
            // The receiver is there until all ranks have ended.
            let _ = sender.send(ended);
        }
        Ok::<_, TrainError>(())
    };
    mpi::program(|ranks_here| options(share(ranks_here)), body)?;
    result.try_recv().ok().transpose()
}

fn options(threads: usize) -> Options {
    Options {
        threads: threads.max(1),
        deadline: DEADLINE,
    }
}

/// Does the work of a rank, of which only the first one logs. That a user has interrupted all of them is no failure of one,
/// at which the others would stop at once.
fn on_rank<T>(
    team: &Team,
    work: impl Fn(&Team) -> Result<T, TrainError>,
) -> Result<Result<T, TrainError>, TrainError> {
    let ended = match team.is_first() {
        true => work(team),
        false => with_default(NoSubscriber::new(), || work(team)),
    };
    match ended {
        Err(interrupted @ TrainError::Interrupted { .. }) => Ok(Err(interrupted)),
        ended => ended.map(Ok),
    }
}

impl TrainError {
    /// Whether every rank finds it at the same time.
    fn is_of_all(&self) -> bool {
        matches!(
            self,
            Self::Diverged { .. } | Self::WeightsChanged { .. } | Self::OtherWeights { .. }
        )
    }
}

impl From<RunError<TrainError>> for TrainError {
    fn from(RunError { failure, error }: RunError<TrainError>) -> Self {
        match error {
            // What goes wrong on the first rank, or on all of them, is told as if it were the only one.
            Some(error) if failure.rank == 0 || error.is_of_all() => error,
            _ => Self::Rank(Box::new(failure)),
        }
    }
}
