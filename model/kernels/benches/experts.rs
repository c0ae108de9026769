//! The experts of the reference model, and its dense baseline, against plain tensor operations, on every device of the
//! build: 8 experts of which each token visits 2, d_model 256, d_ff 512.
//!
//! `cargo bench --bench experts`

mod common;
#[path = "common/few.rs"]
mod few;

use burn::tensor::{Device, Tensor};
use common::{Case, cases, random};
use divan::Bencher;
use few::bench_rows;
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::{
    Activation, ExpertWeights, Precision, experts, experts_reference, swiglu, swiglu_reference,
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

const EXPERTS: usize = 8;
const PER_TOKEN: usize = 2;
const D_MODEL: usize = 256;
const D_FF: usize = 512;

/// Tokens: one that is written, a few, and those of a training step.
const TOKENS: [[usize; 1]; 3] = [[1], [16], [2048]];

/// Those of a training step.
const STEP: [[usize; 1]; 1] = [[2048]];

type Mixture =
    fn(Tensor<2>, Tensor<2>, ExpertWeights, &DispatchPlan, Activation, Precision) -> Tensor<2>;
type Dense = fn(Tensor<2>, Tensor<2>, Tensor<2>, Tensor<2>, Precision) -> Tensor<2>;

/// The experts of each token, unevenly loaded: the first is chosen three times as often as the last.
fn plan(tokens: usize, device: &Device) -> DispatchPlan {
    let chosen: Vec<u32> = (0..tokens)
        .flat_map(|token| {
            let place = token * 37 % 64;
            let first = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7][place / 4];
            [first, (first + 1 + place as u32 % 7) % EXPERTS as u32]
        })
        .collect();
    DispatchPlan::new(&chosen, EXPERTS, PER_TOKEN, device)
}

/// x and router weights; gate, up and down.
fn mixture_inputs(tokens: usize, device: &Device) -> ([Tensor<2>; 2], [Tensor<3>; 3]) {
    let by_token = [D_MODEL, PER_TOKEN].map(|width| random([tokens, width], device));
    let stacks = [[D_MODEL, D_FF], [D_MODEL, D_FF], [D_FF, D_MODEL]];
    let stacks = stacks.map(|[d_in, d_out]| random([EXPERTS, d_in, d_out], device));
    (by_token, stacks)
}

fn of_experts([gate, up, down]: [Tensor<3>; 3]) -> ExpertWeights {
    ExpertWeights {
        gate: gate.into(),
        up: up.into(),
        down: down.into(),
        biases: None,
    }
}

fn mixture_forward(bencher: Bencher, case: &Case<1>, precision: Precision, mixture: Mixture) {
    let ([tokens], device) = (case.sizes, case.device());
    let (by_token, stacks) = mixture_inputs(tokens, &device);
    let plan = plan(tokens, &device);
    bench_rows(bencher, tokens, &device, || {
        let ([x, weights], of_experts) = (by_token.clone(), of_experts(stacks.clone()));
        finish(mixture(
            x,
            weights,
            of_experts,
            &plan,
            Activation::Swiglu,
            precision,
        ));
    });
}

fn mixture_both_ways(bencher: Bencher, case: &Case<1>, precision: Precision, mixture: Mixture) {
    let ([tokens], device) = (case.sizes, case.device().autodiff());
    let (by_token, stacks) = mixture_inputs(tokens, &device);
    let by_token = by_token.map(Tensor::require_grad);
    let stacks = stacks.map(Tensor::require_grad);
    let plan = plan(tokens, &device);
    bencher.bench_local(|| {
        let ([x, weights], of_experts) = (by_token.clone(), of_experts(stacks.clone()));
        let gradients = mixture(x, weights, of_experts, &plan, Activation::Swiglu, precision)
            .sum()
            .backward();
        finish(by_token[0].grad(&gradients).expect("it was asked for"));
        gradients
    });
}

fn dense_inputs(tokens: usize, device: &Device) -> [Tensor<2>; 4] {
    let width = PER_TOKEN * D_FF;
    let shapes = [
        [tokens, D_MODEL],
        [D_MODEL, width],
        [D_MODEL, width],
        [width, D_MODEL],
    ];
    shapes.map(|shape| random(shape, device))
}

fn dense_forward(bencher: Bencher, case: &Case<1>, dense: Dense) {
    let inputs = dense_inputs(case.sizes[0], &case.device());
    bench_rows(bencher, case.sizes[0], &case.device(), || {
        let [x, gate, up, down] = inputs.clone();
        finish(dense(x, gate, up, down, Precision::F32));
    });
}

fn dense_both_ways(bencher: Bencher, case: &Case<1>, dense: Dense) {
    let device = case.device().autodiff();
    let inputs = dense_inputs(case.sizes[0], &device).map(Tensor::require_grad);
    bencher.bench_local(|| {
        let [x, gate, up, down] = inputs.clone();
        let gradients = dense(x, gate, up, down, Precision::F32).sum().backward();
        finish(inputs[0].grad(&gradients).expect("it was asked for"));
        gradients
    });
}

#[divan::bench(args = cases(&TOKENS))]
fn mixture_forward_kernel(bencher: Bencher, case: &Case<1>) {
    mixture_forward(bencher, case, Precision::F32, experts);
}

#[divan::bench(args = cases(&TOKENS))]
fn mixture_forward_reference(bencher: Bencher, case: &Case<1>) {
    mixture_forward(bencher, case, Precision::F32, experts_reference);
}

/// Factors in bf16, on the devices with such products.
fn with_bf16<const N: usize>(sizes: &[[usize; N]]) -> impl Iterator<Item = Case<N>> {
    cases(sizes).filter(|case| Precision::Bf16.runs_on(&case.device()))
}

#[divan::bench(args = with_bf16(&TOKENS))]
fn mixture_forward_kernel_in_bf16(bencher: Bencher, case: &Case<1>) {
    mixture_forward(bencher, case, Precision::Bf16, experts);
}

#[divan::bench(args = with_bf16(&STEP))]
fn mixture_both_ways_kernel_in_bf16(bencher: Bencher, case: &Case<1>) {
    mixture_both_ways(bencher, case, Precision::Bf16, experts);
}

#[divan::bench(args = cases(&STEP))]
fn mixture_both_ways_kernel(bencher: Bencher, case: &Case<1>) {
    mixture_both_ways(bencher, case, Precision::F32, experts);
}

#[divan::bench(args = cases(&STEP))]
fn mixture_both_ways_reference(bencher: Bencher, case: &Case<1>) {
    mixture_both_ways(bencher, case, Precision::F32, experts_reference);
}

#[divan::bench(args = cases(&TOKENS))]
fn dense_forward_kernel(bencher: Bencher, case: &Case<1>) {
    dense_forward(bencher, case, swiglu);
}

#[divan::bench(args = cases(&TOKENS))]
fn dense_forward_reference(bencher: Bencher, case: &Case<1>) {
    dense_forward(bencher, case, swiglu_reference);
}

#[divan::bench(args = cases(&STEP))]
fn dense_both_ways_kernel(bencher: Bencher, case: &Case<1>) {
    dense_both_ways(bencher, case, swiglu);
}

#[divan::bench(args = cases(&STEP))]
fn dense_both_ways_reference(bencher: Bencher, case: &Case<1>) {
    dense_both_ways(bencher, case, swiglu_reference);
}
