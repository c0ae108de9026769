//! A thread pool that spins instead of falling asleep.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rayon::{Yield, yield_now};

/// Failed steal attempts between two calls of `std::thread::yield_now`.
const PATIENCE: u32 = 64;

/// How long a thread spins without finding anything to do. Whatever is beneath it on its stack, other work included, then goes
/// on.
const LIMIT: Duration = Duration::from_millis(10);

/// Does `work` inside the thread pool, whose other threads look for parts of it to do all the while.
///
/// A thread that sleeps needs tens of microseconds to begin, as long as a matrix of a small model takes. Spinning is worth its
/// processor time for work that is made of many small steps, such as a token's, or a step of training.
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
    let (mut in_vain, mut since) = (0u32, Instant::now());
    while !done.load(Ordering::Acquire) {
        if yield_now() == Some(Yield::Executed) {
            (in_vain, since) = (0, Instant::now());
            continue;
        }
        in_vain += 1;
        if !in_vain.is_multiple_of(PATIENCE) {
            hint::spin_loop();
        } else if since.elapsed() < LIMIT {
            thread::yield_now();
        } else {
            return;
        }
    }
}

/// How long a thread waits awake for the last tasks of others; on most machines, falling asleep and being woken take tens of
/// microseconds.
const AWAKE: Duration = Duration::from_micros(200);

/// Does each task on one of at most `threads` threads, which take them one by one in their order, with something of its own that
/// `init` makes for each thread.
///
/// In place of parallel iterators where a task takes some ten microseconds: a thread that is done falls asleep there, while
/// others have a little left to do, and has to be woken for what comes next.
pub fn for_each_init<T: Send, S>(
    tasks: Vec<T>,
    threads: usize,
    init: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) + Sync,
) {
    let threads = threads.min(tasks.len()).min(rayon::current_num_threads());
    if threads <= 1 {
        let mut own = init();
        tasks.into_iter().for_each(|task| work(&mut own, task));
        return;
    }
    let left = AtomicUsize::new(tasks.len());
    let tasks = Mutex::new(tasks.into_iter());
    let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let some_of_them = || {
        let mut own = init();
        while let Some(task) = next() {
            work(&mut own, task);
            left.fetch_sub(1, Ordering::Release);
        }
    };
    rayon::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| some_of_them());
        }
        some_of_them();
        let since = Instant::now();
        // One that panics never counts down.
        while left.load(Ordering::Acquire) > 0 && since.elapsed() < AWAKE {
            (0..PATIENCE).for_each(|_| hint::spin_loop());
            thread::yield_now();
        }
    });
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn each_task_is_done_once() {
        for threads in [1, 2, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            for count in [0, 1, 5, 300] {
                let mut numbers = vec![0u32; count];
                let makers = AtomicUsize::new(0);
                let mut run = |most| {
                    let tasks = numbers.iter_mut().enumerate().collect();
                    let init = || makers.fetch_add(1, Ordering::Relaxed);
                    let work = |_: &mut usize, (index, number): (usize, &mut u32)| {
                        *number += index as u32;
                    };
                    spin(|| for_each_init(tasks, most, init, work));
                };
                pool.install(|| [1, 2, 9].into_iter().for_each(&mut run));
                assert!(
                    (0u32..)
                        .zip(&numbers)
                        .all(|(index, number)| *number == 3 * index)
                );
                assert!(makers.into_inner() <= 3 * threads);
            }
        }
    }

    #[test]
    #[should_panic(expected = "task 3")]
    fn a_panic_is_passed_on() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2);
        let work = |_: &mut (), task: usize| assert!(task != 3, "task {task}");
        let run = || for_each_init((0..9).collect(), 2, || (), work);
        pool.build().unwrap().install(run);
    }

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
