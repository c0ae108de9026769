//! What passes over memory once, against its reference, at the shapes of the reference model: 2048 tokens, 256
//! wide, vocabulary 512; on every device of the build. `cargo bench --bench pointwise`

use burn::tensor::{Device, Int, Tensor, TensorData};
use divan::Bencher;
use firebox_model::allocator::{ALLOCATOR, Allocator};
use firebox_model::device::{backends, finish, select};
use firebox_model::kernels::{
    AdamWUpdate, adamw, adamw_reference, cross_entropy_sum, cross_entropy_sum_reference, rms_norm,
    rms_norm_reference, sum_of_squares, sum_of_squares_reference,
};

// The allocator of the programs.
#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() {
    divan::main();
}

/// Forward alone, or forward and backward.
const PASSES: [&str; 2] = ["forward", "forward and backward"];

/// The first device of each backend.
fn devices() -> impl Iterator<Item = String> {
    let compiled = backends().into_iter().filter(|backend| backend.compiled);
    compiled.filter_map(|backend| backend.devices.into_iter().next())
}

fn device(name: &str, pass: &str) -> Device {
    let device = select(name).expect("a device that was found");
    match pass {
        "forward" => device,
        _ => device.autodiff(),
    }
}

fn wave<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|i| (i as f32 * 0.7).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[divan::bench_group]
mod rms_norm_2048_by_256 {
    use super::*;

    type Case = (String, &'static str);

    fn cases() -> impl Iterator<Item = Case> {
        devices().flat_map(|name| PASSES.map(|pass| (name.clone(), pass)))
    }

    fn run(
        bencher: Bencher,
        (name, pass): &Case,
        norm: fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>,
    ) {
        let device = device(name, pass);
        let (x, gamma) = (wave([2048, 256], &device), wave([256], &device));
        let weights = wave([2048, 256], &device);
        if *pass == "forward" {
            bencher.bench_local(|| finish(norm(x.clone(), gamma.clone(), 1e-5)));
        } else {
            let (x, gamma) = (x.require_grad(), gamma.require_grad());
            // Beside the norm, both are charged with one product and one sum.
            bencher.bench_local(|| {
                let output = norm(x.clone(), gamma.clone(), 1e-5) * weights.clone();
                finish(x.grad(&output.sum().backward()).expect("it was asked for"));
            });
        }
    }

    #[divan::bench(args = cases())]
    fn kernel(bencher: Bencher, case: &Case) {
        run(bencher, case, rms_norm);
    }

    #[divan::bench(args = cases())]
    fn reference(bencher: Bencher, case: &Case) {
        run(bencher, case, rms_norm_reference);
    }
}

#[divan::bench_group]
mod cross_entropy_of_2048 {
    use super::*;

    type Case = (String, &'static str, usize);
    type Loss = fn(Tensor<2>, Tensor<1, Int>, Option<&Tensor<1>>) -> Tensor<1>;

    fn cases() -> impl Iterator<Item = Case> {
        let cases = [512, 4096].map(|vocabulary| PASSES.map(|pass| (pass, vocabulary)));
        devices().flat_map(move |name| {
            let cases = cases.as_flattened().to_vec().into_iter();
            cases.map(move |(pass, vocabulary)| (name.clone(), pass, vocabulary))
        })
    }

    fn run(bencher: Bencher, (name, pass, vocabulary): &Case, loss: Loss) {
        let device = device(name, pass);
        let ids: Vec<i32> = (0..2048)
            .map(|token| token * 7 % *vocabulary as i32)
            .collect();
        let targets = Tensor::<1, Int>::from_data(TensorData::new(ids, [2048]), &device);
        let logits = wave([2048, *vocabulary], &device);
        if *pass == "forward" {
            bencher.bench_local(|| finish(loss(logits.clone(), targets.clone(), None)));
        } else {
            let logits = logits.require_grad();
            // As after the head's product, the logits are a fresh tensor that nobody else holds; both are charged
            // with its making.
            bencher.bench_local(|| {
                let nats = loss(logits.clone().mul_scalar(1.5), targets.clone(), None);
                finish(logits.grad(&nats.backward()).expect("it was asked for"));
            });
        }
    }

    #[divan::bench(args = cases())]
    fn kernel(bencher: Bencher, case: &Case) {
        run(bencher, case, cross_entropy_sum);
    }

    #[divan::bench(args = cases())]
    fn reference(bencher: Bencher, case: &Case) {
        run(bencher, case, cross_entropy_sum_reference);
    }
}

#[divan::bench_group]
mod adamw_of_4_million {
    use super::*;

    type Step =
        fn(Tensor<1>, Tensor<1>, [Tensor<1>; 2], &AdamWUpdate) -> (Tensor<1>, [Tensor<1>; 2]);

    fn run(bencher: Bencher, name: &str, step: Step) {
        let device = device(name, "forward");
        let make = || wave([1 << 22], &device).abs();
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

    #[divan::bench(args = devices())]
    fn kernel(bencher: Bencher, name: &str) {
        run(bencher, name, adamw);
    }

    #[divan::bench(args = devices())]
    fn reference(bencher: Bencher, name: &str) {
        run(bencher, name, adamw_reference);
    }
}

#[divan::bench_group]
mod sum_of_squares_of_4_million {
    use super::*;

    fn run(bencher: Bencher, name: &str, sum: fn(Tensor<1>) -> Tensor<1>) {
        let values = wave([1 << 22], &device(name, "forward"));
        bencher.bench_local(|| finish(sum(values.clone())));
    }

    #[divan::bench(args = devices())]
    fn kernel(bencher: Bencher, name: &str) {
        run(bencher, name, sum_of_squares);
    }

    #[divan::bench(args = devices())]
    fn reference(bencher: Bencher, name: &str) {
        run(bencher, name, sum_of_squares_reference);
    }
}
