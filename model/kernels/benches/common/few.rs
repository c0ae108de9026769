//! Work on a few rows.

use divan::Bencher;
use divan::counter::ItemsCount;
use firebox_kernels::awake::awake;

/// The most rows that are few.
const FEW: usize = 16;

/// Calls with few rows are measured eight at a time, on threads that stay awake from one to the next, as the calls of one
/// token do; those with many rows one by one.
pub fn bench_rows(bencher: Bencher, rows: usize, call: impl Fn() + Sync) {
    let calls: usize = if rows <= FEW { 8 } else { 1 };
    bencher
        .counter(ItemsCount::new(calls))
        .bench_local(|| match calls {
            1 => call(),
            _ => awake(|| (0..calls).for_each(|_| call())),
        });
}
