//! The experts of the reference model against the plain reference: 2048 tokens, 8 experts of which each token
//! visits 2, d_model 256, d_ff 512, on flex. `cargo bench --bench experts`

use burn::tensor::{Device, Tensor, TensorData};
use divan::{Bencher, black_box};
use firebox_model::allocator::{ALLOCATOR, Allocator};
use firebox_model::kernels::{experts, experts_reference, swiglu, swiglu_reference};
use firebox_model::moe::dispatch::DispatchPlan;

// The allocator of the programs.
#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

const EXPERTS: usize = 8;
const PER_TOKEN: usize = 2;
const D_MODEL: usize = 256;
const D_FF: usize = 512;

fn main() {
    divan::main();
}

fn wave<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|i| (i as f32 * 0.7).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The experts of each token, unevenly loaded: the first is chosen three times as often as the last.
fn plan(tokens: usize) -> DispatchPlan {
    let chosen: Vec<u32> = (0..tokens)
        .flat_map(|token| {
            let place = token * 37 % 64;
            let first = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7][place / 4];
            [first, (first + 1 + place as u32 % 7) % EXPERTS as u32]
        })
        .collect();
    DispatchPlan::new(&chosen, EXPERTS, PER_TOKEN, &Device::flex())
}

type Mixture =
    fn(Tensor<2>, Tensor<2>, Tensor<3>, Tensor<3>, Tensor<3>, &DispatchPlan) -> Tensor<2>;
type Dense = fn(Tensor<2>, Tensor<2>, Tensor<2>, Tensor<2>) -> Tensor<2>;

const MIXTURES: [(&str, Mixture); 2] = [("kernel", experts), ("reference", experts_reference)];
const DENSE: [(&str, Dense); 2] = [("kernel", swiglu), ("reference", swiglu_reference)];

fn mixture_inputs(
    tokens: usize,
    device: &Device,
) -> (Tensor<2>, Tensor<2>, Tensor<3>, Tensor<3>, Tensor<3>) {
    (
        wave([tokens, D_MODEL], device),
        wave([tokens, PER_TOKEN], device),
        wave([EXPERTS, D_MODEL, D_FF], device),
        wave([EXPERTS, D_MODEL, D_FF], device),
        wave([EXPERTS, D_FF, D_MODEL], device),
    )
}

const CASES: [&str; 6] = [
    "kernel 1",
    "kernel 16",
    "kernel 2048",
    "reference 1",
    "reference 16",
    "reference 2048",
];

fn named<T: Copy>(all: [(&str, T); 2], wanted: &str) -> T {
    let (_, found) = all.into_iter().find(|(name, _)| *name == wanted).unwrap();
    found
}

#[divan::bench(args = CASES)]
fn mixture_forward(bencher: Bencher, case: &str) {
    let (name, tokens) = case.split_once(' ').unwrap();
    let (operation, tokens) = (named(MIXTURES, name), tokens.parse().unwrap());
    let (x, weights, gate, up, down) = mixture_inputs(tokens, &Device::flex());
    let plan = plan(tokens);
    bencher.bench_local(|| {
        black_box(operation(
            x.clone(),
            weights.clone(),
            gate.clone(),
            up.clone(),
            down.clone(),
            &plan,
        ))
    });
}

#[divan::bench(args = ["kernel", "reference"])]
fn mixture_forward_and_backward(bencher: Bencher, name: &str) {
    let (operation, tokens) = (named(MIXTURES, name), 2048);
    let device = Device::flex().autodiff();
    let (x, weights, gate, up, down) = mixture_inputs(tokens, &device);
    let (x, weights) = (x.require_grad(), weights.require_grad());
    let (gate, up, down) = (gate.require_grad(), up.require_grad(), down.require_grad());
    let plan = plan(tokens);
    bencher.bench_local(|| {
        let output = operation(
            x.clone(),
            weights.clone(),
            gate.clone(),
            up.clone(),
            down.clone(),
            &plan,
        );
        black_box(output.sum().backward())
    });
}

fn dense_inputs(tokens: usize, device: &Device) -> [Tensor<2>; 4] {
    [
        wave([tokens, D_MODEL], device),
        wave([D_MODEL, PER_TOKEN * D_FF], device),
        wave([D_MODEL, PER_TOKEN * D_FF], device),
        wave([PER_TOKEN * D_FF, D_MODEL], device),
    ]
}

#[divan::bench(args = CASES)]
fn dense_forward(bencher: Bencher, case: &str) {
    let (name, tokens) = case.split_once(' ').unwrap();
    let operation = named(DENSE, name);
    let inputs = dense_inputs(tokens.parse().unwrap(), &Device::flex());
    bencher.bench_local(|| {
        let [x, gate, up, down] = inputs.clone();
        black_box(operation(x, gate, up, down))
    });
}

#[divan::bench(args = ["kernel", "reference"])]
fn dense_forward_and_backward(bencher: Bencher, name: &str) {
    let operation = named(DENSE, name);
    let inputs = dense_inputs(2048, &Device::flex().autodiff()).map(Tensor::require_grad);
    bencher.bench_local(|| {
        let [x, gate, up, down] = inputs.clone();
        black_box(operation(x, gate, up, down).sum().backward())
    });
}
