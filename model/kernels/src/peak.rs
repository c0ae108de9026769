//! How fast this machine multiplies: the yardstick that speeds are held against.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};

use crate::host::gemm::Matrix;
use crate::host::product::{Left, On, Right, product_parallel};
use crate::precision::Precision;
use firebox_runtime::device::{self, Kernels, kernels};

/// Sizes of the square matrices, large enough to occupy a device and small enough for a tenth of a second.
const SIZES: [usize; 2] = [1024, 2048];

/// How often each product is tried; the best time counts.
const REPEATS: usize = 6;

/// The best product of square matrices that a device is known to reach at a precision, in FLOP/s: its backend's own in f32,
/// and where kernels work on slices also theirs. In bf16 that counts the rounding of both.
pub fn matrix_peak(device: &Device, precision: Precision) -> f64 {
    let device = device.clone().inner();
    let backend = SIZES.map(|size| {
        if precision != Precision::F32 {
            return 0.0;
        }
        let random = || Tensor::<2>::random([size, size], Distribution::Default, &device);
        let (a, b) = (random(), random());
        best(size, || {
            device::finish(a.clone().matmul(b.clone()));
        })
    });
    let own = SIZES.map(|size| {
        if kernels(&device) != Kernels::Slices {
            return 0.0;
        }
        let values: Vec<f32> = (0..size * size).map(|i| (i % 13) as f32).collect();
        let matrix = Matrix::new(&values, size, size);
        best(size, || {
            let a = Left::new(matrix, precision, On::AllThreads);
            let b = Right::new(matrix, precision, On::AllThreads);
            drop(product_parallel(&a, &b));
        })
    });
    backend.into_iter().chain(own).fold(0.0, f64::max)
}

/// FLOP/s of the fastest of some products of square matrices.
fn best(size: usize, product: impl Fn()) -> f64 {
    let speeds = (0..REPEATS).map(|_| {
        let started = Instant::now();
        product();
        2.0 * (size as f64).powi(3) / started.elapsed().as_secs_f64()
    });
    speeds.fold(0.0, f64::max)
}
