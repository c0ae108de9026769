//! GELU as one operation.

mod kernel;

use std::f64::consts::FRAC_1_SQRT_2;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

use crate::host::Host;
use crate::operation::{Operation, differentiable};

/// `x Φ(x)` with the distribution function Φ of the standard normal distribution: the exact GELU (arXiv 1606.08415).
///
/// The same values as [`gelu_reference`], which runs for other types than f32 and everywhere but on `flex`.
///
/// # Shapes
///
/// - `x`, output: any
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if kernels(&x.device()) != Kernels::Slices || x.dtype() != DType::F32 {
        return gelu_reference(x);
    }
    Tensor::from_dispatch(<Dispatch as GeluBackend>::gelu(x.into_dispatch()))
}

/// [`gelu`] in plain tensor operations. Burn's own has, on backends without their own gradient, the derivative of the
/// approximation by tanh, which is off by up to 1e-3.
pub fn gelu_reference<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let twice = x.clone().mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0);
    x * twice.mul_scalar(0.5)
}

/// The operation, of `[x]`. With φ the density of the normal distribution, `d(x) = g (Φ(x) + x φ(x))`.
#[derive(Debug, Clone, Copy)]
pub struct Gelu;

/// The backends' side of [`gelu`].
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait GeluBackend: Backend {
    /// See [`gelu`].
    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl<B: Backend> GeluBackend for B
where
    Gelu: Operation<B, 1>,
{
    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Gelu.forward([x])
    }
}

impl<B: Backend, C: CheckpointStrategy> GeluBackend for Autodiff<B, C>
where
    Gelu: Operation<B, 1>,
{
    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        differentiable::<_, B, C, 1>(Gelu, [x])
    }
}

impl<B: Host> Operation<B, 1> for Gelu {
    /// `x`
    type Saved = FloatTensor<B>;

    fn forward_saving(self, [x]: [FloatTensor<B>; 1]) -> (FloatTensor<B>, Self::Saved) {
        let output = kernel::forward(&B::values(&x));
        (B::tensor(output, x.shape()), x)
    }

    fn backward(
        x: Self::Saved,
        mut gradient: FloatTensor<B>,
        _: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        kernel::backward(B::values_mut(&mut gradient), &B::values(&x));
        [Some(gradient)]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, on_threads, values};

    on_every_device!(
        the_exact_gelu_and_its_derivative,
        equals_the_reference,
        ends_and_what_is_not_a_number,
        any_number_of_threads_gives_the_same_bits,
    );

    fn run(gelu: fn(Tensor<2>) -> Tensor<2>, x: &[f32], device: &Device) -> [Vec<f32>; 2] {
        let data = TensorData::new(x.to_vec(), [x.len() / 2, 2]);
        let x = Tensor::<2>::from_data(data, &device.clone().autodiff()).require_grad();
        let y = gelu(x.clone());
        let gradients = (y.clone() * y.clone().detach().add_scalar(0.5))
            .sum()
            .backward();
        [values(y), values(x.grad(&gradients).unwrap())]
    }

    fn the_exact_gelu_and_its_derivative(device: Device) {
        let x = Tensor::<2>::from_floats([[1.0, -1.0], [2.0, 0.0]], &device.autodiff());
        let x = x.require_grad();
        let y = gelu(x.clone());
        // Φ(1) = 0.841345, Φ(2) = 0.977250.
        let expected = [0.841_344_7, -0.158_655_3, 1.954_499_7, 0.0];
        assert_close("values", &values(y.clone()), &expected, 1e-6).unwrap();
        // Φ(x) + x φ(x), with φ(1) = 0.241971 and φ(2) = 0.053991.
        let found = values(x.grad(&y.sum().backward()).unwrap());
        let expected = [1.083_315_5, -0.083_315_5, 1.085_231_8, 0.5];
        assert_close("derivatives", &found, &expected, 1e-6).unwrap();
    }

    // Both round Φ to f32 once or twice, 6e-8 each, and then a product; of many values, the norm of the differences.
    fn equals_the_reference(device: Device) {
        let x: Vec<f32> = (0..40_000).map(|i| (i - 20_000) as f32 * 5e-4).collect();
        let (fast, slow) = (run(gelu, &x, &device), run(gelu_reference, &x, &device));
        for (name, (fast, slow)) in ["output", "d(x)"].iter().zip(fast.iter().zip(&slow)) {
            assert_close(name, fast, slow, 2e-7).unwrap();
        }
    }

    fn ends_and_what_is_not_a_number(device: Device) {
        let x = Tensor::<1>::from_floats([1e4, -1e4, f32::NAN, 3e38], &device);
        let found = values(gelu(x));
        assert_eq!(found[..2], [1e4, 0.0]);
        assert!(found[2].is_nan());
        assert_eq!(found[3], 3e38);
    }

    fn any_number_of_threads_gives_the_same_bits(device: Device) {
        let x: Vec<f32> = (0..100_000).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
        on_threads(|| run(gelu, &x, &device).concat());
    }
}
