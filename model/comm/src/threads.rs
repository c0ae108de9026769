//! Ranks as threads of this process, which hand each other messages in shared memory.

mod board;
mod collective;
mod group;
mod mailbox;
mod member;
mod reduction;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use firebox_console::advice::Advise;
use firebox_console::panics::caught;

use self::board::Board;
use self::group::Group;
use crate::pool::{NoThreads, grace, pool, settle};
use crate::{Cause, Comm, Options, RunError};

/// How often the thread that has started the ranks looks for a failure.
const TICK: Duration = Duration::from_millis(100);

/// Runs `body` on so many ranks, and gives back what each of them returned, in the order of the ranks.
///
/// Every rank is a thread of a rayon pool of its own, so that what it computes with rayon stays among the threads of
/// this rank. Waiting ranks sleep, so that there may be many more of them than cores.
///
/// # Errors
///
/// The first failure: a rank that panicked, returned an error, made no progress within the deadline while another one
/// waited for it, or finished without what another one waited for. It is returned when all other ranks have ended, or
/// shortly after: a rank that hangs is left behind, and ends with the process. Also when the system gives no more
/// threads.
///
/// # Panics
///
/// When `size` is 0.
pub fn run<T, E>(
    size: usize,
    options: &Options,
    body: impl Fn(Arc<dyn Comm>) -> Result<T, E> + Send + Sync + 'static,
) -> Result<Vec<T>, RunError<E>>
where
    T: Send + 'static,
    E: Advise + Send + 'static,
{
    assert!(size > 0, "a run has at least one rank");
    let board = Board::new(size, options.deadline);
    let world = Group::new(Arc::clone(&board), (0..size).collect());
    let body = Arc::new(body);
    let (sender, ended) = mpsc::channel();
    let mut pools = Vec::with_capacity(size);
    for rank in 0..size {
        let comm = Arc::clone(&world).member(rank);
        let (body, sender) = (Arc::clone(&body), sender.clone());
        let settled = Arc::clone(&board);
        let work = move || {
            let outcome = caught(|| body(comm));
            let result = settle(outcome, |cause| settled.fail(rank, cause));
            if matches!(result, Some(Ok(_))) {
                settled.end(rank);
            }
            // Nobody listens any more when this rank was left behind.
            let _ = sender.send((rank, result));
        };
        match pool(rank, options.threads) {
            Ok(pool) => {
                pool.spawn(work);
                pools.push(pool);
            }
            Err(error) => {
                board.doing(rank, format_args!("starting its threads"));
                board.fail(rank, Cause::failed(&NoThreads(error)));
                break;
            }
        }
    }
    drop(sender);
    let results = collect(&board, size, &ended);
    match board.failure() {
        None => Ok(results.into_iter().flatten().flatten().collect()),
        Some(failure) => Err(RunError {
            failure: failure.clone(),
            error: results.into_iter().flatten().find_map(Result::err),
        }),
    }
}

/// Waits until every rank has ended, but no longer than [`grace`] for those that do not notice a failure.
fn collect<R>(
    board: &Board,
    size: usize,
    ended: &mpsc::Receiver<(usize, Option<R>)>,
) -> Vec<Option<R>> {
    let mut results: Vec<Option<R>> = (0..size).map(|_| None).collect();
    let mut left = None;
    loop {
        let next = match (left, board.failure()) {
            (None, None) => ended.recv_timeout(TICK),
            (None, Some(failure)) => {
                left = Some(Instant::now() + grace(failure));
                continue;
            }
            (Some(left), _) => ended.recv_timeout(left.saturating_duration_since(Instant::now())),
        };
        match next {
            Ok((rank, result)) => results[rank] = result,
            Err(RecvTimeoutError::Timeout) if left.is_none() => (),
            Err(_) => return results,
        }
    }
}
