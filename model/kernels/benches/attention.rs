//! Attention as one operation against the same in plain tensor operations, on every device of the build.
//!
//! `cargo bench --bench attention`

mod common;

use burn::tensor::{Device, Tensor};
use common::{Case, cases, random};
use divan::Bencher;
use firebox_kernels::rope::Rotary;
use firebox_kernels::{
    AttentionInput, AttentionSpec, KeyRanges, Precision, attention, attention_reference,
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

/// Batch, length, heads, key/value heads, head_dim: those of the speed comparison in the README, then longer,
/// with as many key/value heads as heads, and a large model's.
const SHAPES: [[usize; 5]; 4] = [
    [8, 256, 4, 1, 64],
    [1, 2048, 4, 1, 64],
    [4, 512, 8, 8, 24],
    [1, 512, 16, 1, 128],
];

type Attention = fn(AttentionInput<'_>) -> Tensor<2>;

/// Positions of the documents that [`documents_kernel`] packs into a sequence.
const DOCUMENT: usize = 64;

fn inputs(shape: [usize; 5], device: &Device) -> ([Tensor<2>; 3], Rotary) {
    let [batch, length, heads, kv_heads, head_dim] = shape;
    let inputs =
        [heads, kv_heads, kv_heads].map(|heads| random([batch * length, heads * head_dim], device));
    (inputs, Rotary::new(0, length, head_dim, 1e4, device))
}

fn spec(case: &Case<5>) -> AttentionSpec {
    let [_, _, heads, kv_heads, head_dim] = case.sizes;
    AttentionSpec::new(heads, kv_heads, head_dim)
}

/// As after the projections' products: tensors that nobody else holds. Kernel and reference are charged with their
/// making.
fn fresh(inputs: [&Tensor<2>; 3]) -> [Tensor<2>; 3] {
    inputs.map(|input| input.clone().mul_scalar(1.5))
}

fn forward(bencher: Bencher, case: &Case<5>, attention: Attention) {
    let ([query, key, value], rotary) = inputs(case.sizes, &case.device());
    let batch = case.sizes[0];
    bencher.bench_local(|| {
        let [query, key, value] = fresh([&query, &key, &value]);
        finish(attention(AttentionInput {
            precision: Precision::F32,
            query,
            key,
            value,
            batch,
            rotary: Some(&rotary),
            sinks: None,
            ranges: None,
            spec: spec(case),
        }));
    });
}

fn both_ways(bencher: Bencher, case: &Case<5>, attention: Attention, ranges: Option<&KeyRanges>) {
    let (inputs, rotary) = inputs(case.sizes, &case.device().autodiff());
    let [query, key, value] = inputs.map(Tensor::require_grad);
    let batch = case.sizes[0];
    bencher.bench_local(|| {
        let [query, fresh_key, value] = fresh([&query, &key, &value]);
        let output = attention(AttentionInput {
            precision: Precision::F32,
            query,
            key: fresh_key,
            value,
            batch,
            rotary: Some(&rotary),
            sinks: None,
            ranges,
            spec: spec(case),
        });
        let gradients = output.sum().backward();
        finish(key.grad(&gradients).expect("it was asked for"));
        gradients
    });
}

#[divan::bench(args = cases(&SHAPES))]
fn forward_kernel(bencher: Bencher, case: &Case<5>) {
    forward(bencher, case, attention);
}

#[divan::bench(args = cases(&SHAPES))]
fn forward_reference(bencher: Bencher, case: &Case<5>) {
    forward(bencher, case, attention_reference);
}

#[divan::bench(args = cases(&SHAPES))]
fn both_ways_kernel(bencher: Bencher, case: &Case<5>) {
    both_ways(bencher, case, attention, None);
}

#[divan::bench(args = cases(&SHAPES))]
fn both_ways_reference(bencher: Bencher, case: &Case<5>) {
    both_ways(bencher, case, attention_reference, None);
}

#[divan::bench(args = cases(&SHAPES))]
fn documents_kernel(bencher: Bencher, case: &Case<5>) {
    let [batch, length, ..] = case.sizes;
    let starts = (0..batch * length).map(|token| token % length / DOCUMENT * DOCUMENT);
    let starts: Vec<usize> = starts.collect();
    let ranges = KeyRanges::new(&starts, length, &case.device().autodiff());
    both_ways(bencher, case, attention, Some(&ranges));
}
