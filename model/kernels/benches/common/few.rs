//! Calls with few rows, as decoding makes them.

use burn::tensor::Device;
use divan::Bencher;
use divan::counter::ItemsCount;
use firebox_kernels::latency_bound;

/// The most rows of a call that is bound by latency.
const FEW_ROWS: usize = 8;

/// Measures calls with few rows eight at a time, on threads that stay awake from one call to the next, as the calls
/// for one token do; calls with many rows are measured one by one.
pub fn bench_rows(bencher: Bencher, rows: usize, device: &Device, call: impl Fn() + Sync) {
    let calls: usize = if rows <= FEW_ROWS { 8 } else { 1 };
    bencher
        .counter(ItemsCount::new(calls))
        .bench_local(|| match calls {
            1 => call(),
            _ => latency_bound(rows, device, || (0..calls).for_each(|_| call())),
        });
}
