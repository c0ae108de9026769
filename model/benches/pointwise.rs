//! What passes over memory once, against its reference, at the shapes of the reference model: 2048 tokens, 256
//! wide, vocabulary 512. `cargo bench --bench pointwise`

use std::hint::black_box;

use burn::tensor::{Device, Int, Tensor, TensorData};
use divan::Bencher;
use firebox_model::allocator::{ALLOCATOR, Allocator};
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

fn wave<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|i| (i as f32 * 0.7).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[divan::bench_group]
mod rms_norm_2048_by_256 {
    use super::*;

    fn run(bencher: Bencher, pass: &str, norm: fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>) {
        let device = match pass {
            "forward" => Device::flex(),
            _ => Device::flex().autodiff(),
        };
        let (x, gamma) = (wave([2048, 256], &device), wave([256], &device));
        let weights = wave([2048, 256], &device);
        if pass == "forward" {
            bencher.bench_local(|| norm(x.clone(), gamma.clone(), 1e-5));
        } else {
            let (x, gamma) = (x.require_grad(), gamma.require_grad());
            // Beside the norm, both are charged with one product and one sum.
            bencher.bench_local(|| {
                (norm(x.clone(), gamma.clone(), 1e-5) * weights.clone())
                    .sum()
                    .backward()
            });
        }
    }

    #[divan::bench(args = PASSES)]
    fn kernel(bencher: Bencher, pass: &str) {
        run(bencher, pass, rms_norm);
    }

    #[divan::bench(args = PASSES)]
    fn reference(bencher: Bencher, pass: &str) {
        run(bencher, pass, rms_norm_reference);
    }
}

#[divan::bench_group]
mod cross_entropy_of_2048 {
    use super::*;

    type Loss = fn(Tensor<2>, Tensor<1, Int>, Option<&Tensor<1>>) -> Tensor<1>;

    fn run(bencher: Bencher, (pass, vocabulary): (&str, usize), loss: Loss) {
        let device = match pass {
            "forward" => Device::flex(),
            _ => Device::flex().autodiff(),
        };
        let ids: Vec<i32> = (0..2048)
            .map(|token| token * 7 % vocabulary as i32)
            .collect();
        let targets = Tensor::<1, Int>::from_data(TensorData::new(ids, [2048]), &device);
        let logits = wave([2048, vocabulary], &device);
        if pass == "forward" {
            bencher.bench_local(|| loss(logits.clone(), targets.clone(), None));
        } else {
            let logits = logits.require_grad();
            // As after the head's product, the logits are a fresh tensor that nobody else holds; both are charged
            // with its making.
            bencher.bench_local(|| {
                loss(logits.clone().mul_scalar(1.5), targets.clone(), None).backward()
            });
        }
    }

    const CASES: [(&str, usize); 4] = [
        (PASSES[0], 512),
        (PASSES[1], 512),
        (PASSES[0], 4096),
        (PASSES[1], 4096),
    ];

    #[divan::bench(args = CASES)]
    fn kernel(bencher: Bencher, case: (&str, usize)) {
        run(bencher, case, cross_entropy_sum);
    }

    #[divan::bench(args = CASES)]
    fn reference(bencher: Bencher, case: (&str, usize)) {
        run(bencher, case, cross_entropy_sum_reference);
    }
}

#[divan::bench_group]
mod adamw_of_4_million {
    use super::*;

    type Step =
        fn(Tensor<1>, Tensor<1>, [Tensor<1>; 2], &AdamWUpdate) -> (Tensor<1>, [Tensor<1>; 2]);

    fn run(bencher: Bencher, step: Step) {
        let device = Device::flex();
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
            state = Some(step(weights, gradient.clone(), moments, &update));
        });
    }

    #[divan::bench]
    fn kernel(bencher: Bencher) {
        run(bencher, adamw);
    }

    #[divan::bench]
    fn reference(bencher: Bencher) {
        run(bencher, adamw_reference);
    }
}

#[divan::bench_group]
mod sum_of_squares_of_4_million {
    use super::*;

    #[divan::bench]
    fn kernel(bencher: Bencher) {
        let values = wave([1 << 22], &Device::flex());
        bencher.bench_local(|| black_box(sum_of_squares(values.clone())));
    }

    #[divan::bench]
    fn reference(bencher: Bencher) {
        let values = wave([1 << 22], &Device::flex());
        bencher.bench_local(|| black_box(sum_of_squares_reference(values.clone())));
    }
}
