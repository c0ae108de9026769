//! What passes over memory once, against its reference, at the shapes of the reference model and of one ten times as
//! large; on every device of the build.
//!
//! `cargo bench --bench pointwise`

mod common;

use burn::tensor::{Int, Tensor, TensorData};
use common::{Case, cases, random};
use divan::Bencher;
use firebox_kernels::{
    AdamWUpdate, adamw, adamw_reference, cross_entropy_sum, cross_entropy_sum_reference, rms_norm,
    rms_norm_reference, sum_of_squares, sum_of_squares_reference,
};
use firebox_runtime::allocator::{self, ALLOCATOR, Allocator};
use firebox_runtime::device::finish;

// The allocator of the programs.
#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() {
    allocator::keep_freed();
    divan::main();
}

#[divan::bench_group]
mod rms_norm_ {
    use super::*;

    /// Tokens, width.
    const SHAPES: [[usize; 2]; 2] = [[2048, 256], [2048, 512]];

    type Norm = fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>;

    fn forward(bencher: Bencher, case: &Case<2>, norm: Norm) {
        let (shape, device) = (case.sizes, case.device());
        let (x, gamma) = (random(shape, &device), random([shape[1]], &device));
        bencher.bench_local(|| finish(norm(x.clone(), gamma.clone(), 1e-5)));
    }

    /// Beside the norm, kernel and reference are charged with one product and one sum.
    fn both_ways(bencher: Bencher, case: &Case<2>, norm: Norm) {
        let (shape, device) = (case.sizes, case.device().autodiff());
        let x = random(shape, &device).require_grad();
        let gamma = random([shape[1]], &device).require_grad();
        let weights = random(shape, &device);
        bencher.bench_local(|| {
            let output = norm(x.clone(), gamma.clone(), 1e-5) * weights.clone();
            finish(x.grad(&output.sum().backward()).expect("it was asked for"));
        });
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn forward_kernel(bencher: Bencher, case: &Case<2>) {
        forward(bencher, case, rms_norm);
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn forward_reference(bencher: Bencher, case: &Case<2>) {
        forward(bencher, case, rms_norm_reference);
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn both_ways_kernel(bencher: Bencher, case: &Case<2>) {
        both_ways(bencher, case, rms_norm);
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn both_ways_reference(bencher: Bencher, case: &Case<2>) {
        both_ways(bencher, case, rms_norm_reference);
    }
}

#[divan::bench_group]
mod cross_entropy {
    use super::*;

    /// Tokens, vocabulary.
    const SHAPES: [[usize; 2]; 2] = [[2048, 512], [2048, 4096]];

    type Loss = fn(Tensor<2>, Tensor<1, Int>, Option<&Tensor<1>>) -> Tensor<1>;

    fn targets([tokens, vocab_size]: [usize; 2]) -> TensorData {
        let ids: Vec<i32> = (0..tokens)
            .map(|token| (token * 7 % vocab_size) as i32)
            .collect();
        TensorData::new(ids, [tokens])
    }

    fn forward(bencher: Bencher, case: &Case<2>, loss: Loss) {
        let (shape, device) = (case.sizes, case.device());
        let logits = random(shape, &device);
        let targets = Tensor::from_data(targets(shape), &device);
        bencher.bench_local(|| finish(loss(logits.clone(), targets.clone(), None)));
    }

    /// As after the head's product, the logits are a fresh tensor that nobody else holds; kernel and reference are
    /// charged with its making.
    fn both_ways(bencher: Bencher, case: &Case<2>, loss: Loss) {
        let (shape, device) = (case.sizes, case.device().autodiff());
        let logits = random(shape, &device).require_grad();
        let targets = Tensor::from_data(targets(shape), &device);
        bencher.bench_local(|| {
            let nats = loss(logits.clone().mul_scalar(1.5), targets.clone(), None);
            finish(logits.grad(&nats.backward()).expect("it was asked for"));
        });
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn forward_kernel(bencher: Bencher, case: &Case<2>) {
        forward(bencher, case, cross_entropy_sum);
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn forward_reference(bencher: Bencher, case: &Case<2>) {
        forward(bencher, case, cross_entropy_sum_reference);
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn both_ways_kernel(bencher: Bencher, case: &Case<2>) {
        both_ways(bencher, case, cross_entropy_sum);
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn both_ways_reference(bencher: Bencher, case: &Case<2>) {
        both_ways(bencher, case, cross_entropy_sum_reference);
    }
}

/// As many as in the largest tensors of the large model.
const VALUES: [[usize; 1]; 1] = [[1 << 23]];

#[divan::bench_group]
mod adamw_ {
    use super::*;

    type Step =
        fn(Tensor<1>, Tensor<1>, [Tensor<1>; 2], &AdamWUpdate) -> (Tensor<1>, [Tensor<1>; 2]);

    fn update(bencher: Bencher, case: &Case<1>, step: Step) {
        let device = case.device();
        let make = || random(case.sizes, &device).abs();
        let gradient = make();
        let mut state = Some((make(), [make(), make()]));
        let update = AdamWUpdate {
            gradient_scale: 0.5,
            betas: [0.9, 0.95],
            corrections: [0.5, 0.5],
            epsilon: 1e-8,
            learning_rate: 1e-3,
            decay: 1e-4,
        };
        bencher.bench_local(|| {
            let (weights, moments) = state.take().expect("put back below");
            let (weights, moments) = step(weights, gradient.clone(), moments, &update);
            finish(weights.clone());
            state = Some((weights, moments));
        });
    }

    #[divan::bench(args = cases(&VALUES))]
    fn kernel(bencher: Bencher, case: &Case<1>) {
        update(bencher, case, adamw);
    }

    #[divan::bench(args = cases(&VALUES))]
    fn reference(bencher: Bencher, case: &Case<1>) {
        update(bencher, case, adamw_reference);
    }
}

#[divan::bench_group]
mod sum_of_squares_ {
    use super::*;

    fn norm(bencher: Bencher, case: &Case<1>, sum: fn(Tensor<1>) -> Tensor<1>) {
        let values = random(case.sizes, &case.device());
        bencher.bench_local(|| finish(sum(values.clone())));
    }

    #[divan::bench(args = cases(&VALUES))]
    fn kernel(bencher: Bencher, case: &Case<1>) {
        norm(bencher, case, sum_of_squares);
    }

    #[divan::bench(args = cases(&VALUES))]
    fn reference(bencher: Bencher, case: &Case<1>) {
        norm(bencher, case, sum_of_squares_reference);
    }
}
