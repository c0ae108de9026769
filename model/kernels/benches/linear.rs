//! The product of activations and weights against that of the backend, on every device of the build: few rows, as in
//! writing a token, and many, as in training.
//!
//! `cargo bench --bench linear`

mod common;
#[path = "common/few.rs"]
mod few;

use burn::tensor::{DType, Tensor};
use common::{Case, cases, random};
use divan::Bencher;
use few::bench_rows;
use firebox_kernels::{Int8, Precision, linear, linear_reference};
use firebox_runtime::allocator::{self, ALLOCATOR, Allocator};
use firebox_runtime::device::finish;

// The allocator of the programs.
#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() {
    allocator::keep_freed();
    divan::main();
}

/// Rows, d_in, d_out. The first two read 32 MiB of weights, more than a cache holds.
const SHAPES: [[usize; 3]; 4] = [
    [1, 2048, 4096],
    [8, 2048, 4096],
    [2048, 256, 512],
    [2048, 512, 4096],
];

/// Those of training.
const STEP: [[usize; 3]; 2] = [[2048, 256, 512], [2048, 512, 4096]];

type Linear = fn(Tensor<2>, Tensor<2>, Precision) -> Tensor<2>;

fn forward(bencher: Bencher, case: &Case<3>, held: DType, precision: Precision, linear: Linear) {
    let ([rows, d_in, d_out], device) = (case.sizes, case.device());
    let x = random([rows, d_in], &device);
    let weight = random([d_in, d_out], &device).cast(held);
    bench_rows(bencher, rows, &device, || {
        finish(linear(x.clone(), weight.clone(), precision))
    });
}

fn both_ways(bencher: Bencher, case: &Case<3>, precision: Precision, linear: Linear) {
    let ([rows, d_in, d_out], device) = (case.sizes, case.device().autodiff());
    let x = random([rows, d_in], &device).require_grad();
    let weight = random([d_in, d_out], &device).require_grad();
    bencher.bench_local(|| {
        let gradients = linear(x.clone(), weight.clone(), precision)
            .sum()
            .backward();
        finish(x.grad(&gradients).expect("it was asked for"));
        gradients
    });
}

#[divan::bench(args = cases(&SHAPES))]
fn forward_kernel(bencher: Bencher, case: &Case<3>) {
    forward(bencher, case, DType::F32, Precision::F32, linear);
}

#[divan::bench(args = cases(&SHAPES))]
fn forward_reference(bencher: Bencher, case: &Case<3>) {
    forward(bencher, case, DType::F32, Precision::F32, linear_reference);
}

/// On the devices that hold bf16 as it is: flex, and some GPUs.
#[divan::bench(args = cases(&SHAPES).filter(|case| case.device().supports_dtype(DType::BF16)))]
fn forward_kernel_of_bf16(bencher: Bencher, case: &Case<3>) {
    forward(bencher, case, DType::BF16, Precision::F32, linear);
}

/// On the devices that hold integers of 8 bits.
#[divan::bench(args = cases(&SHAPES).filter(|case| Int8::<2>::is_held_by(&case.device())))]
fn forward_kernel_of_int8(bencher: Bencher, case: &Case<3>) {
    let ([rows, d_in, d_out], device) = (case.sizes, case.device());
    let x = random([rows, d_in], &device);
    let weight: Tensor<2> = random([d_in, d_out], &device);
    let weight: Vec<f32> = weight.into_data().iter().collect();
    let weight = Int8::quantize(&weight, [d_in, d_out], &device).expect("small weights");
    bench_rows(bencher, rows, &device, || {
        finish(linear(x.clone(), weight.clone(), Precision::F32))
    });
}

/// Factors in bf16, on the devices with such products.
fn with_bf16<const N: usize>(sizes: &[[usize; N]]) -> impl Iterator<Item = Case<N>> {
    cases(sizes).filter(|case| Precision::Bf16.runs_on(&case.device()))
}

#[divan::bench(args = with_bf16(&SHAPES))]
fn forward_kernel_in_bf16(bencher: Bencher, case: &Case<3>) {
    forward(bencher, case, DType::F32, Precision::Bf16, linear);
}

#[divan::bench(args = with_bf16(&STEP))]
fn both_ways_kernel_in_bf16(bencher: Bencher, case: &Case<3>) {
    both_ways(bencher, case, Precision::Bf16, linear);
}

#[divan::bench(args = cases(&STEP))]
fn both_ways_kernel(bencher: Bencher, case: &Case<3>) {
    both_ways(bencher, case, Precision::F32, linear);
}

#[divan::bench(args = cases(&STEP))]
fn both_ways_reference(bencher: Bencher, case: &Case<3>) {
    both_ways(bencher, case, Precision::F32, linear_reference);
}
