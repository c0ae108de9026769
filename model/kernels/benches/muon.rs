//! An update of Muon against plain tensor operations, at the matrices of the quickstart's model: a projection, a dense
//! feed-forward and a stack of experts; on every device of the build.
//!
//! `cargo bench --bench muon`

mod common;

use burn::tensor::Tensor;
use common::{Case, cases, random};
use divan::Bencher;
use firebox_kernels::{MuonUpdate, Turns, muon, muon_reference};
use firebox_runtime::allocator::{self, ALLOCATOR, Allocator};
use firebox_runtime::device::finish;

// The allocator of the programs.
#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() {
    allocator::keep_freed();
    divan::main();
}

/// Matrices, rows, columns.
const STACKS: [[usize; 3]; 3] = [[1, 256, 256], [1, 256, 1024], [8, 256, 512]];

type Step = fn(Tensor<3>, Tensor<1>, Tensor<1>, &MuonUpdate) -> (Tensor<3>, Tensor<1>);

fn run(bencher: Bencher, case: &Case<3>, step: Step) {
    let device = case.device();
    let values = case.sizes.iter().product();
    let gradient = random([values], &device);
    let update = MuonUpdate {
        gradient_scale: 1.0,
        momentum: 0.95,
        learning_rate: 3e-3,
        decay: 3e-4,
        turns: Turns::ALL,
    };
    let mut kept = Some((random(case.sizes, &device), random([values], &device)));
    bencher.bench_local(|| {
        let (weights, momentum) = kept.take().expect("put back each time");
        let (weights, momentum) = step(weights, gradient.clone(), momentum, &update);
        finish(weights.clone());
        kept = Some((weights, momentum));
    });
}

#[divan::bench(args = cases(&STACKS))]
fn kernel(bencher: Bencher, case: &Case<3>) {
    run(bencher, case, muon);
}

#[divan::bench(args = cases(&STACKS))]
fn reference(bencher: Bencher, case: &Case<3>) {
    run(bencher, case, muon_reference);
}
