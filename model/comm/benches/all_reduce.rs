//! The all-reduce of ranks that are threads, against a vector behind a mutex that every rank adds its own to (in the
//! order in which they come, so that the bits differ from run to run).
//!
//! `cargo bench -p firebox-comm`

use std::sync::{Arc, Barrier, Mutex};

use divan::Bencher;
use divan::counter::ItemsCount;
use firebox_comm::{CommError, Options, threads};

fn main() {
    divan::main();
}

/// Ranks that add up a vector: those of one node.
const RANKS: usize = 8;

/// Sums of a run, many enough that starting the ranks does not count.
const SUMS: usize = 500;

/// Values of a vector: 21.5 KB, which is what a token's hidden state takes in the described model, and 1 MiB.
const LENGTHS: [usize; 2] = [5_376, 262_144];

#[divan::bench(args = LENGTHS, sample_count = 10, sample_size = 1)]
fn all_reduce(bencher: Bencher, length: usize) {
    bencher.counter(ItemsCount::new(SUMS)).bench_local(|| {
        let run = threads::run(RANKS, &Options::default(), move |comm| {
            let mut values = vec![1.0; length];
            (0..SUMS).try_for_each(|_| {
                values.fill(1.0);
                comm.all_reduce_sum(&mut values)
            })?;
            Ok::<_, CommError>(values[length / 2])
        });
        assert_eq!(run.expect("no rank fails"), [RANKS as f32; RANKS]);
    });
}

#[divan::bench(args = LENGTHS, sample_count = 10, sample_size = 1)]
fn vector_behind_a_mutex(bencher: Bencher, length: usize) {
    bencher.counter(ItemsCount::new(SUMS)).bench_local(|| {
        let barrier = Arc::new(Barrier::new(RANKS));
        let sum = Arc::new(Mutex::new(vec![0.0_f32; length]));
        let run = threads::run(RANKS, &Options::default(), move |_| {
            let lock = || sum.lock().expect("no rank panics");
            let mut values = vec![1.0; length];
            for _ in 0..SUMS {
                values.fill(1.0);
                let add = |(sum, value): (&mut f32, &f32)| *sum += value;
                lock().iter_mut().zip(&values).for_each(add);
                barrier.wait();
                values.copy_from_slice(&lock());
                if barrier.wait().is_leader() {
                    lock().fill(0.0);
                }
                barrier.wait();
            }
            Ok::<_, CommError>(values[length / 2])
        });
        assert_eq!(run.expect("no rank fails"), [RANKS as f32; RANKS]);
    });
}
