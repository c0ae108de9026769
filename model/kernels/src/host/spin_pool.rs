//! A thread pool that spins instead of falling asleep.

use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rayon::{Yield, yield_now};

/// Failed steal attempts between two calls of `std::thread::yield_now`.
const PATIENCE: u32 = 64;

/// Failed steal attempts after which a thread stops spinning: some hundred microseconds. Whatever is beneath it on its
/// stack, other work included, then goes on.
const LIMIT: u32 = 4096;

/// Does `work` inside the thread pool, whose other threads look for parts of it to do all the while.
///
/// A thread that sleeps needs tens of microseconds to begin, as long as a matrix of a small model takes. Spinning is
/// worth its processor time for some milliseconds that are made of many small steps, such as those of a token.
pub fn spin<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let done = AtomicBool::new(false);
    let done = &done;
    rayon::scope(|scope| {
        if rayon::current_num_threads() > 1 {
            let worker = rayon::current_thread_index();
            scope.spawn_broadcast(move |_, context| {
                if Some(context.index()) != worker {
                    help(done);
                }
            });
        }
        let result = work();
        done.store(true, Ordering::Release);
        result
    })
}

/// Does what others have to give away.
fn help(done: &AtomicBool) {
    let mut in_vain = 0;
    while in_vain < LIMIT && !done.load(Ordering::Acquire) {
        if yield_now() == Some(Yield::Executed) {
            in_vain = 0;
            continue;
        }
        in_vain += 1;
        match in_vain % PATIENCE {
            0 => thread::yield_now(),
            _ => hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn work_is_done_on_any_number_of_threads_and_inside_itself() {
        for threads in [1, 2, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            let sums: Vec<usize> = thread::scope(|scope| {
                let callers: Vec<_> = (0..3)
                    .map(|_| {
                        scope.spawn(|| {
                            pool.install(|| {
                                let sum = || {
                                    (0..1000usize)
                                        .into_par_iter()
                                        .with_max_len(1)
                                        .sum::<usize>()
                                };
                                (0..50).map(|_| spin(|| spin(sum) + sum())).sum::<usize>()
                            })
                        })
                    })
                    .collect();
                callers
                    .into_iter()
                    .map(|caller| caller.join().unwrap())
                    .collect()
            });
            assert_eq!(sums, [50 * 2 * 499_500; 3]);
        }
    }
}
