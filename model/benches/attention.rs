//! Causal attention as one operation against the same in plain tensor operations, on flex.
//!
//! `cargo bench --bench attention`

use burn::tensor::{Device, Distribution, Tensor};
use divan::Bencher;
use firebox_model::allocator::{ALLOCATOR, Allocator};
use firebox_model::kernels::{causal_attention, causal_attention_reference};
use firebox_model::rotary::Rotary;

// The allocator of the programs.
#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() {
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

type Attention = fn(Tensor<2>, Tensor<2>, Tensor<2>, usize, &Rotary) -> Tensor<2>;

fn inputs(shape: [usize; 5], device: &Device) -> ([Tensor<2>; 3], Rotary) {
    let [batch, length, heads, kv_heads, head_dim] = shape;
    let inputs = [heads, kv_heads, kv_heads].map(|heads| {
        let size = [batch * length, heads * head_dim];
        Tensor::random(size, Distribution::Normal(0.0, 1.0), device)
    });
    (inputs, Rotary::new(0, length, head_dim, 1e4, device))
}

fn forward(bencher: Bencher, shape: [usize; 5], attention: Attention) {
    let ([query, key, value], rotary) = inputs(shape, &Device::flex());
    bencher.bench_local(|| attention(query.clone(), key.clone(), value.clone(), shape[0], &rotary));
}

fn both_ways(bencher: Bencher, shape: [usize; 5], attention: Attention) {
    let (inputs, rotary) = inputs(shape, &Device::flex().autodiff());
    let [query, key, value] = inputs.map(Tensor::require_grad);
    bencher.bench_local(|| {
        attention(query.clone(), key.clone(), value.clone(), shape[0], &rotary)
            .sum()
            .backward()
    });
}

#[divan::bench(args = SHAPES)]
fn forward_operation(bencher: Bencher, shape: [usize; 5]) {
    forward(bencher, shape, causal_attention);
}

#[divan::bench(args = SHAPES)]
fn forward_reference(bencher: Bencher, shape: [usize; 5]) {
    forward(bencher, shape, causal_attention_reference);
}

#[divan::bench(args = SHAPES)]
fn both_ways_operation(bencher: Bencher, shape: [usize; 5]) {
    both_ways(bencher, shape, causal_attention);
}

#[divan::bench(args = SHAPES)]
fn both_ways_reference(bencher: Bencher, shape: [usize; 5]) {
    both_ways(bencher, shape, causal_attention_reference);
}
