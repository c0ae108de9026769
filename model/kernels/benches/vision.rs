//! What a vision tower and attention to pictures are made of, against plain tensor operations; on every device of the build.
//!
//! `cargo bench --bench vision`

mod common;

use burn::tensor::{Device, Tensor};
use common::{Case, cases, random};
use divan::Bencher;
use firebox_kernels::{
    AttentionSpec, BiasedInput, biased_attention, biased_attention_reference, gelu, gelu_reference,
    layer_norm, layer_norm_reference,
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

/// Forward and backward pass of an operation on rows, and one product and one sum beside it.
fn both_ways(bencher: Bencher, case: &Case<2>, operation: impl Fn(Tensor<2>) -> Tensor<2>) {
    let device = case.device().autodiff();
    let x = random(case.sizes, &device).require_grad();
    let weights = random(case.sizes, &device);
    bencher.bench_local(|| {
        let output = operation(x.clone()) * weights.clone();
        finish(x.grad(&output.sum().backward()).expect("it was asked for"));
    });
}

/// Rows and width: those of `train/benches/vision.toml`, and of a tower three times as wide.
const STREAMS: [[usize; 2]; 2] = [[1152, 64], [3456, 192]];

#[divan::bench_group]
mod layer_norm_ {
    use super::*;

    type Norm = fn(Tensor<2>, Tensor<1>, Tensor<1>, f64) -> Tensor<2>;

    fn run(bencher: Bencher, case: &Case<2>, norm: Norm) {
        let device = case.device().autodiff();
        let [gamma, beta] = [0; 2].map(|_| random([case.sizes[1]], &device));
        both_ways(bencher, case, |x| {
            norm(x, gamma.clone(), beta.clone(), 1e-5)
        });
    }

    #[divan::bench(args = cases(&STREAMS))]
    fn kernel(bencher: Bencher, case: &Case<2>) {
        run(bencher, case, layer_norm);
    }

    #[divan::bench(args = cases(&STREAMS))]
    fn reference(bencher: Bencher, case: &Case<2>) {
        run(bencher, case, layer_norm_reference);
    }
}

#[divan::bench_group]
mod gelu_ {
    use super::*;

    /// Four times as wide as the streams.
    const INNER: [[usize; 2]; 2] = [[1152, 256], [3456, 768]];

    #[divan::bench(args = cases(&INNER))]
    fn kernel(bencher: Bencher, case: &Case<2>) {
        both_ways(bencher, case, gelu);
    }

    #[divan::bench(args = cases(&INNER))]
    fn reference(bencher: Bencher, case: &Case<2>) {
        both_ways(bencher, case, gelu_reference);
    }
}

#[divan::bench_group]
mod biased_attention_ {
    use super::*;

    /// Batch, queries, keys, heads, key/value heads, head_dim: the towers above, a text of the second that attends to its
    /// pictures, and a picture of four tiles of 256 patches.
    const SHAPES: [[usize; 6]; 4] = [
        [48, 24, 24, 4, 4, 16],
        [48, 72, 72, 4, 4, 48],
        [48, 18, 65, 4, 1, 64],
        [1, 1056, 1056, 16, 16, 80],
    ];

    type Attention = fn(BiasedInput<'_>) -> Tensor<2>;

    fn inputs(shape: [usize; 6], device: &Device) -> ([Tensor<2>; 3], Tensor<3>) {
        let [batch, queries, keys, heads, kv_heads, head_dim] = shape;
        let inputs = [(queries, heads), (keys, kv_heads), (keys, kv_heads)]
            .map(|(positions, heads)| random([batch * positions, heads * head_dim], device));
        (inputs, random([batch, queries, keys], device))
    }

    fn run(bencher: Bencher, case: &Case<6>, attention: Attention) {
        let (inputs, bias) = inputs(case.sizes, &case.device().autodiff());
        let [query, key, value] = inputs.map(Tensor::require_grad);
        let [_, _, _, heads, kv_heads, head_dim] = case.sizes;
        bencher.bench_local(|| {
            let output = attention(BiasedInput {
                query: query.clone(),
                key: key.clone(),
                value: value.clone(),
                bias: &bias,
                spec: AttentionSpec::new(heads, kv_heads, head_dim),
            });
            let gradients = output.sum().backward();
            finish(key.grad(&gradients).expect("it was asked for"));
            gradients
        });
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn kernel(bencher: Bencher, case: &Case<6>) {
        run(bencher, case, biased_attention);
    }

    #[divan::bench(args = cases(&SHAPES))]
    fn reference(bencher: Bencher, case: &Case<6>) {
        run(bencher, case, biased_attention_reference);
    }
}
