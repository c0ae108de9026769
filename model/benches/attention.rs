//! Causal attention as one operation against the same in plain tensor operations, on every device of the build.
//!
//! `cargo bench --bench attention`

use std::fmt;

use burn::tensor::{Device, Distribution, Tensor};
use divan::Bencher;
use firebox_model::allocator::{ALLOCATOR, Allocator};
use firebox_model::device::{backends, select};
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

/// A device, by its name, and a shape.
struct Case(String, [usize; 5]);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(device, shape) = self;
        write!(f, "{device} {shape:?}")
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let compiled = backends().into_iter().filter(|backend| backend.compiled);
    let devices = compiled.flat_map(|backend| backend.devices.into_iter().take(1));
    devices.flat_map(|device| SHAPES.map(|shape| Case(device.clone(), shape)))
}

type Attention = fn(Tensor<2>, Tensor<2>, Tensor<2>, usize, &Rotary) -> Tensor<2>;

fn inputs(shape: [usize; 5], device: &Device) -> ([Tensor<2>; 3], Rotary) {
    let [batch, length, heads, kv_heads, head_dim] = shape;
    let inputs = [heads, kv_heads, kv_heads].map(|heads| {
        let size = [batch * length, heads * head_dim];
        Tensor::random(size, Distribution::Normal(0.0, 1.0), device)
    });
    (inputs, Rotary::new(0, length, head_dim, 1e4, device))
}

fn forward(bencher: Bencher, Case(device, shape): &Case, attention: Attention) {
    let device = select(device).expect("a device of the build");
    let ([query, key, value], rotary) = inputs(*shape, &device);
    bencher.bench_local(|| {
        let output = attention(query.clone(), key.clone(), value.clone(), shape[0], &rotary);
        device.sync().expect("a device that answers");
        output
    });
}

fn both_ways(bencher: Bencher, Case(device, shape): &Case, attention: Attention) {
    let device = select(device).expect("a device of the build");
    let (inputs, rotary) = inputs(*shape, &device.clone().autodiff());
    let [query, key, value] = inputs.map(Tensor::require_grad);
    bencher.bench_local(|| {
        let gradients = attention(query.clone(), key.clone(), value.clone(), shape[0], &rotary)
            .sum()
            .backward();
        device.sync().expect("a device that answers");
        gradients
    });
}

#[divan::bench(args = cases())]
fn forward_operation(bencher: Bencher, case: &Case) {
    forward(bencher, case, causal_attention);
}

#[divan::bench(args = cases())]
fn forward_reference(bencher: Bencher, case: &Case) {
    forward(bencher, case, causal_attention_reference);
}

#[divan::bench(args = cases())]
fn both_ways_operation(bencher: Bencher, case: &Case) {
    both_ways(bencher, case, causal_attention);
}

#[divan::bench(args = cases())]
fn both_ways_reference(bencher: Bencher, case: &Case) {
    both_ways(bencher, case, causal_attention_reference);
}
