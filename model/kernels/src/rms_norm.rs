//! RMSNorm as one operation.

#[cfg(feature = "cube")]
mod cube;
mod host;
mod kernel;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

use crate::operation::{Operation, differentiable};

/// `x / √(mean(x²) + ε) ⊙ γ` over the last dimension (arXiv 1910.07467, eq. 4).
///
/// The same values as [`rms_norm_reference`]. A row comes from memory once; it keeps `1 / √(mean(x²) + ε)` of it for
/// the backward pass, and turns the gradient of the output into that of `x` in place, where nobody else holds it.
/// Of other types than f32, and on a device without kernels, it is the reference itself.
///
/// # Shapes
///
/// - `x`, output: `[…, width]`
/// - `gamma`: `[width]`
///
/// # Panics
///
/// When the widths differ, or are 0.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    check(&x, &gamma);
    let plain = kernels(&x.device()) == Kernels::None;
    if plain || x.dtype() != DType::F32 || gamma.dtype() != DType::F32 {
        return rms_norm_reference(x, gamma, epsilon);
    }
    Tensor::from_dispatch(<Dispatch as RmsNormBackend>::rms_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        RmsNorm {
            epsilon: epsilon as f32,
        },
    ))
}

/// [`rms_norm`] in plain tensor operations: in f32, and the output in the type of `x`.
///
/// # Panics
///
/// When the widths differ, or are 0.
pub fn rms_norm_reference<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    check(&x, &gamma);
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let root = (x.clone().square().mean_dim(D - 1) + epsilon).sqrt();
    (x / root * gamma.cast(DType::F32).unsqueeze()).cast(dtype)
}

fn check<const D: usize>(x: &Tensor<D>, gamma: &Tensor<1>) {
    let [width] = gamma.dims();
    let shape = x.dims();
    assert!(
        width > 0 && shape.last() == Some(&width),
        "x {shape:?} against gamma [{width}]"
    );
}

/// The operation, of `[x, gamma]`.
///
/// With g the gradient of the output, `h = g ⊙ γ` and `s = 1 / √(mean(x²) + ε)`:
/// `d(x) = s h − x s³ mean(h ⊙ x)`, `d(γ) = Σ_rows s g ⊙ x`.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    epsilon: f32,
}

/// The backends' side of [`rms_norm`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait RmsNormBackend: Backend {
    /// See [`rms_norm`].
    fn rms_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        operation: RmsNorm,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> RmsNormBackend for B
where
    RmsNorm: Operation<B, 2>,
{
    fn rms_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        operation: RmsNorm,
    ) -> FloatTensor<Self> {
        operation.forward([x, gamma])
    }
}

impl<B: Backend, C: CheckpointStrategy> RmsNormBackend for Autodiff<B, C>
where
    RmsNorm: Operation<B, 2>,
{
    fn rms_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        operation: RmsNorm,
    ) -> FloatTensor<Self> {
        differentiable::<_, B, C, 2>(operation, [x, gamma])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, devices, on_threads, values, wave};

    type Norm<const D: usize> = fn(Tensor<D>, Tensor<1>, f64) -> Tensor<D>;

    /// The output, and the gradients of a weighted sum of it for `x` and the gain.
    fn run<const D: usize>(norm: Norm<D>, shape: [usize; D], device: &Device) -> [Vec<f32>; 3] {
        let device = device.clone().autodiff();
        let x = wave(shape, 0.1, &device).require_grad();
        let gamma = wave([shape[D - 1]], 0.5, &device).require_grad();
        let output = norm(x.clone(), gamma.clone(), 1e-5);
        let gradients = (output.clone() * wave(shape, 0.9, &device))
            .sum()
            .backward();
        [
            values(output),
            values(x.grad(&gradients).unwrap()),
            values(gamma.grad(&gradients).unwrap()),
        ]
    }

    on_every_device!(
        three_and_four,
        equals_the_reference,
        of_four_dimensions,
        more_rows_than_a_block_and_rows_longer_than_one,
        more_rows_than_a_launch_has_cubes_in_a_line,
        no_rows,
        rows_that_do_not_lie_side_by_side_and_a_gradient_that_is_shared,
        any_number_of_threads_gives_the_same_bits,
    );

    /// Sums of the same terms, taken in another order. Twice what 4,000 random shapes showed at most, 2.4e-7 and 5.7e-7;
    /// for γ's gradient twice the 2.2e-6 of 9000 rows, which the reference adds up one after the other.
    const TOLERANCES: [(&str, f64); 3] = [("output", 5e-7), ("d(x)", 1.2e-6), ("d(gamma)", 4.5e-6)];

    fn assert_same<const D: usize>(
        shape: [usize; D],
        device: &Device,
    ) -> Result<(), TestCaseError> {
        let fast = run(rms_norm, shape, device);
        let slow = run(rms_norm_reference, shape, device);
        for ((name, tolerance), (fast, slow)) in TOLERANCES.iter().zip(fast.iter().zip(&slow)) {
            assert_close(name, fast, slow, *tolerance)?;
        }
        Ok(())
    }

    // The root of the mean of 9 and 16 is √12.5, about 3.5355.
    fn three_and_four(device: Device) {
        let x = Tensor::<2>::from_floats([[3.0, 4.0]], &device);
        let gamma = Tensor::from_floats([1.0, 2.0], &device);
        let root = 12.5f32.sqrt();
        let expected = [3.0 / root, 8.0 / root];
        assert_close("output", &values(rms_norm(x, gamma, 0.0)), &expected, 2e-7).unwrap();
    }

    // One value a row leaves d(x) nothing but rounding: its exact value is of the size of epsilon.
    fn equals_the_reference(device: Device) {
        proptest!(ProptestConfig::with_cases(24), |(rows in 1usize..40, width in 2usize..140)| {
            assert_same([rows, width], &device)?;
        });
    }

    fn of_four_dimensions(device: Device) {
        let shapes = [1usize..4, 1usize..4, 1usize..6, 2usize..40];
        proptest!(ProptestConfig::with_cases(24), |(shape in shapes)| {
            assert_same(shape, &device)?;
        });
    }

    fn more_rows_than_a_block_and_rows_longer_than_one(device: Device) {
        for shape in [[700, 64], [3, 20_000], [9000, 6]] {
            assert_same(shape, &device).unwrap();
        }
    }

    // γ's gradient is added up in f64 here: so many rows are too many for a plain sum of them; see `cube.rs`.
    fn more_rows_than_a_launch_has_cubes_in_a_line(device: Device) {
        let shape = [600_000, 2];
        let [output, x_gradient, gamma_gradient] = run(rms_norm, shape, &device);
        let [slow, slow_gradient, _] = run(rms_norm_reference, shape, &device);
        assert_close("output", &output, &slow, 5e-7).unwrap();
        assert_close("d(x)", &x_gradient, &slow_gradient, 1.2e-6).unwrap();
        let (weights, gamma) = (wave(shape, 0.9, &device), wave([2], 0.5, &device));
        let (weights, gamma) = (values(weights), values(gamma));
        let expected = [0, 1].map(|column| {
            let terms = output.iter().zip(&weights).skip(column).step_by(2);
            let sum: f64 = terms.map(|(&y, &w)| f64::from(y) * f64::from(w)).sum();
            (sum / f64::from(gamma[column])) as f32
        });
        // Without a kernel, Burn adds up the rows one after the other.
        let tolerance = match kernels(&device) {
            Kernels::None => 3e-5,
            _ => 2e-6,
        };
        assert_close("d(gamma)", &gamma_gradient, &expected, tolerance).unwrap();
    }

    fn no_rows(device: Device) {
        let device = device.autodiff();
        let gamma = wave([5], 0.5, &device).require_grad();
        let output = rms_norm(Tensor::zeros([0, 5], &device), gamma.clone(), 1e-5);
        assert_eq!(output.dims(), [0, 5]);
        let gradients = output.sum().backward();
        assert_eq!(values(gamma.grad(&gradients).unwrap()), [0.0; 5]);
    }

    fn rows_that_do_not_lie_side_by_side_and_a_gradient_that_is_shared(device: Device) {
        let device = device.autodiff();
        let run = |norm: Norm<3>| {
            let x = wave([4, 3, 8], 0.1, &device).require_grad();
            let gamma = wave([8], 0.5, &device);
            let output = norm(x.clone().swap_dims(0, 1), gamma, 1e-5);
            // Both summands of `+` receive the same gradient.
            let loss = (output + x.clone().swap_dims(0, 1)) * wave([3, 4, 8], 0.9, &device);
            values(x.grad(&loss.sum().backward()).unwrap())
        };
        assert_close("d(x)", &run(rms_norm), &run(rms_norm_reference), 1.2e-6).unwrap();
    }

    fn any_number_of_threads_gives_the_same_bits(device: Device) {
        on_threads(|| run(rms_norm, [1000, 100], &device).concat());
    }

    #[test]
    #[should_panic(expected = "against gamma [3]")]
    fn widths_that_differ_are_refused() {
        let device = devices().remove(0);
        let _ = rms_norm(wave([4, 2], 0.0, &device), wave([3], 0.0, &device), 1e-5);
    }
}
