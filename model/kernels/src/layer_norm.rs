//! LayerNorm as one operation.

mod kernel;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

use crate::host::Host;
use crate::operation::{Operation, differentiable};

/// `(x − mean(x)) / √(variance(x) + ε) ⊙ γ + β` over the last dimension (arXiv 1607.06450).
///
/// The same values as [`layer_norm_reference`], which runs for other types than f32 and everywhere but on `flex`.
///
/// # Shapes
///
/// - `x`, output: `[rows, width]`
/// - `gamma`, `beta`: `[width]`
///
/// # Panics
///
/// When the widths differ, or are 0.
pub fn layer_norm(x: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Tensor<2> {
    check(&x, [&gamma, &beta]);
    let all_f32 = [x.dtype(), gamma.dtype(), beta.dtype()] == [DType::F32; 3];
    if kernels(&x.device()) != Kernels::Slices || !all_f32 {
        return layer_norm_reference(x, gamma, beta, epsilon);
    }
    Tensor::from_dispatch(<Dispatch as LayerNormBackend>::layer_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        LayerNorm {
            epsilon: epsilon as f32,
        },
    ))
}

/// [`layer_norm`] in plain tensor operations.
///
/// # Panics
///
/// When the widths differ, or are 0.
pub fn layer_norm_reference(
    x: Tensor<2>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<2> {
    check(&x, [&gamma, &beta]);
    let mean = x.clone().mean_dim(1);
    let centred = x - mean;
    let variance = centred.clone().square().mean_dim(1);
    let scale = variance.add_scalar(epsilon).sqrt().recip();
    centred * scale * gamma.unsqueeze() + beta.unsqueeze()
}

fn check(x: &Tensor<2>, parameters: [&Tensor<1>; 2]) {
    let [_, width] = x.dims();
    let widths = parameters.map(|parameter| parameter.dims()[0]);
    assert!(
        width > 0 && widths == [width; 2],
        "x {:?} against gamma and beta of {widths:?}",
        x.dims()
    );
}

/// The operation, of `[x, gamma, beta]`.
///
/// With g the gradient of the output, `s = 1 / √(variance(x) + ε)`, `u = s (x − mean(x))` and `h = g ⊙ γ`:
/// `d(x) = s (h − mean(h) − u mean(h ⊙ u))`, `d(γ) = Σ_rows g ⊙ u`, `d(β) = Σ_rows g`.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    epsilon: f32,
}

/// The backends' side of [`layer_norm`].
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait LayerNormBackend: Backend {
    /// See [`layer_norm`].
    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        operation: LayerNorm,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> LayerNormBackend for B
where
    LayerNorm: Operation<B, 3>,
{
    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        operation: LayerNorm,
    ) -> FloatTensor<Self> {
        operation.forward([x, gamma, beta])
    }
}

impl<B: Backend, C: CheckpointStrategy> LayerNormBackend for Autodiff<B, C>
where
    LayerNorm: Operation<B, 3>,
{
    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        operation: LayerNorm,
    ) -> FloatTensor<Self> {
        differentiable::<_, B, C, 3>(operation, [x, gamma, beta])
    }
}

impl<B: Host> Operation<B, 3> for LayerNorm {
    /// `x`, `gamma`, and mean and `1 / √(variance(x) + ε)` of each row.
    type Saved = (FloatTensor<B>, FloatTensor<B>, Vec<[f32; 2]>);

    fn forward_saving(self, inputs: [FloatTensor<B>; 3]) -> (FloatTensor<B>, Self::Saved) {
        let [x, gamma, beta] = inputs;
        let parameters = [&*B::values(&gamma), &*B::values(&beta)];
        let (output, moments) = kernel::forward(&B::values(&x), parameters, self.epsilon);
        (B::tensor(output, x.shape()), (x, gamma, moments))
    }

    // The gradients of γ and β are by-products.
    fn backward(
        (x, gamma, moments): Self::Saved,
        mut gradient: FloatTensor<B>,
        _: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let of_parameters = kernel::backward(
            B::values_mut(&mut gradient),
            &B::values(&x),
            &B::values(&gamma),
            &moments,
        );
        let [of_gamma, of_beta] = of_parameters.map(|values| B::tensor(values, gamma.shape()));
        [Some(gradient), Some(of_gamma), Some(of_beta)]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, devices, on_threads, values, wave};

    type Norm = fn(Tensor<2>, Tensor<1>, Tensor<1>, f64) -> Tensor<2>;

    on_every_device!(
        one_and_three,
        equals_the_reference,
        more_rows_than_a_block_and_rows_longer_than_one,
        far_from_zero,
        no_rows,
        any_number_of_threads_gives_the_same_bits,
    );

    const NAMES: [&str; 4] = ["output", "d(x)", "d(gamma)", "d(beta)"];

    /// The output, and the gradients of a weighted sum of it for `x`, the gain and the bias.
    fn run(norm: Norm, shape: [usize; 2], device: &Device) -> [Vec<f32>; 4] {
        let device = device.clone().autodiff();
        let x = wave(shape, 0.1, &device).require_grad();
        let gamma = wave([shape[1]], 0.5, &device).require_grad();
        let beta = wave([shape[1]], 0.7, &device).require_grad();
        let output = norm(x.clone(), gamma.clone(), beta.clone(), 1e-5);
        let gradients = (output.clone() * wave(shape, 0.9, &device))
            .sum()
            .backward();
        [
            values(output),
            values(x.grad(&gradients).unwrap()),
            values(gamma.grad(&gradients).unwrap()),
            values(beta.grad(&gradients).unwrap()),
        ]
    }

    /// Sums of the same terms, taken in another order. The gradients of γ and β are sums over up to 9000 rows, which the
    /// reference adds up one after the other.
    fn assert_same(shape: [usize; 2], device: &Device) -> Result<(), TestCaseError> {
        let fast = run(layer_norm, shape, device);
        let slow = run(layer_norm_reference, shape, device);
        let tolerances = [1e-6, 3e-6, 5e-6, 5e-6];
        for index in 0..4 {
            assert_close(NAMES[index], &fast[index], &slow[index], tolerances[index])?;
        }
        Ok(())
    }

    // Variance 1 plus ε = 8 is 9, so that each difference from the mean is divided by 3.
    fn one_and_three(device: Device) {
        let x = Tensor::<2>::from_floats([[1.0, 3.0], [7.0, 7.0]], &device);
        let gamma = Tensor::from_floats([1.0, 2.0], &device);
        let beta = Tensor::from_floats([0.5, 0.0], &device);
        let third = 1.0 / 3.0;
        let expected = [0.5 - third, 2.0 * third, 0.5, 0.0];
        let found = values(layer_norm(x, gamma, beta, 8.0));
        assert_close("output", &found, &expected, 1e-6).unwrap();
    }

    // Two values a row leave d(x) nothing but rounding: its exact value is of the size of epsilon.
    fn equals_the_reference(device: Device) {
        proptest!(ProptestConfig::with_cases(24), |(rows in 1usize..40, width in 3usize..140)| {
            assert_same([rows, width], &device)?;
        });
    }

    fn more_rows_than_a_block_and_rows_longer_than_one(device: Device) {
        for shape in [[700, 64], [3, 20_000], [9000, 6]] {
            assert_same(shape, &device).unwrap();
        }
    }

    // The variance is that of differences from the mean: of squares, nothing would be left of it here.
    fn far_from_zero(device: Device) {
        let x = Tensor::<2>::from_floats([[10_000.0, 10_002.0]], &device);
        let ones = Tensor::<1>::ones([2], &device);
        let found = values(layer_norm(x, ones.clone(), ones.zeros_like(), 0.0));
        assert_close("output", &found, &[-1.0, 1.0], 1e-6).unwrap();
    }

    fn no_rows(device: Device) {
        let device = device.autodiff();
        let gamma = wave([5], 0.5, &device).require_grad();
        let beta = wave([5], 0.5, &device).require_grad();
        let x = Tensor::zeros([0, 5], &device);
        let output = layer_norm(x, gamma.clone(), beta.clone(), 1e-5);
        assert_eq!(output.dims(), [0, 5]);
        let gradients = output.sum().backward();
        for parameter in [gamma, beta] {
            assert_eq!(values(parameter.grad(&gradients).unwrap()), [0.0; 5]);
        }
    }

    fn any_number_of_threads_gives_the_same_bits(device: Device) {
        on_threads(|| run(layer_norm, [1000, 100], &device).concat());
    }

    #[test]
    #[should_panic(expected = "against gamma and beta of [2, 3]")]
    fn widths_that_differ_are_refused() {
        let device = devices().remove(0);
        let of = |width: usize| wave([width], 0.0, &device);
        let _ = layer_norm(wave([4, 2], 0.0, &device), of(2), of(3), 1e-5);
    }
}
