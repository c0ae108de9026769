//! The product of activations and weights.

mod host;
mod kernel;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Device, Tensor};

use crate::host::gemv::Layout;
use crate::operation::{Operation, differentiable};
use crate::precision::Precision;
use crate::weight::{Int8, Weight};
use firebox_runtime::device::{Kernels, kernels};

/// `x · f32(weight)`: weights may be held in f32, bf16 or f16, or in [8 bits](crate::Int8); activations and sums are f32.
/// `precision` is that of the factors, of this product and of those of the gradients.
///
/// The same values as [`linear_reference`], which runs everywhere but on `flex`. There, few rows read each weight from
/// memory once, as it is held there; and the gradients, products with transposed matrices, take them as they lie.
///
/// # Shapes
///
/// - `x`: `[rows, d_in]`
/// - `weight`: `[d_in, d_out]`
/// - output: `[rows, d_out]`
///
/// # Panics
///
/// When the shapes do not fit, or the device [does not compute](Precision::runs_on) at the precision.
pub fn linear(x: Tensor<2>, weight: impl Into<Weight<2>>, precision: Precision) -> Tensor<2> {
    let (weight, device) = (weight.into(), x.device());
    precision.check(&device);
    let ([rows, d_in], [d_weight, _]) = (x.dims(), weight.dims());
    assert_eq!(
        d_in, d_weight,
        "x [{rows}, {d_in}] against weights [{d_weight}, …]"
    );
    match weight {
        Weight::Float(weight) if has_kernel(&device, weight.dtype()) => {
            on_host(x, weight, Layout::Inputs, precision)
        }
        Weight::Int8(Int8 { codes, scales }) if Int8::<2>::has_kernel(&device) => {
            Tensor::from_dispatch(<Dispatch as Int8LinearBackend>::linear_int8(
                x.into_dispatch(),
                codes.into_dispatch(),
                scales.into_dispatch(),
                precision,
            ))
        }
        weight => linear_reference(x, weight.dequantized(), precision),
    }
}

/// [`linear`] with a weight that is stored the other way round, as an embedding that serves as the head.
///
/// # Shapes
///
/// - `x`: `[rows, d_in]`
/// - `weight`: `[d_out, d_in]`
/// - output: `[rows, d_out]`
///
/// # Panics
///
/// When the shapes do not fit, or the device [does not compute](Precision::runs_on) at the precision.
pub fn linear_transposed(x: Tensor<2>, weight: Tensor<2>, precision: Precision) -> Tensor<2> {
    precision.check(&x.device());
    let ([rows, d_in], [_, d_weight]) = (x.dims(), weight.dims());
    assert_eq!(
        d_in, d_weight,
        "x [{rows}, {d_in}] against weights […, {d_weight}]"
    );
    if !has_kernel(&x.device(), weight.dtype()) {
        return linear_reference(x, weight.transpose(), precision);
    }
    on_host(x, weight, Layout::Outputs, precision)
}

/// [`linear`] in plain tensor operations. Of its gradients in bf16, the factor that is the gradient of the output is not
/// rounded.
///
/// # Panics
///
/// When the shapes do not fit, or in bf16 on a device that does not hold it.
pub fn linear_reference(x: Tensor<2>, weight: Tensor<2>, precision: Precision) -> Tensor<2> {
    let weight = precision.rounded(weight.cast(DType::F32));
    precision.rounded(x).matmul(weight)
}

/// Weights of other types than f32 have no gradient.
fn has_kernel(device: &Device, weight: DType) -> bool {
    kernels(device) == Kernels::Slices && (weight == DType::F32 || !device.is_autodiff())
}

fn on_host(x: Tensor<2>, weight: Tensor<2>, layout: Layout, precision: Precision) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as LinearBackend>::linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        Linear { layout, precision },
    ))
}

/// The operation, of `[x, weight]`.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// That of the weight.
    layout: Layout,
    /// Of the products, those of the gradients too.
    precision: Precision,
}

/// The side of [`linear`](self::linear) of the backend with kernels over slices.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Autodiff
)]
pub trait LinearBackend: Backend {
    /// See [`linear`](self::linear).
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        operation: Linear,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> LinearBackend for B
where
    Linear: Operation<B, 2>,
{
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        operation: Linear,
    ) -> FloatTensor<Self> {
        operation.forward([x, weight])
    }
}

impl<B: Backend, C: CheckpointStrategy> LinearBackend for Autodiff<B, C>
where
    Linear: Operation<B, 2>,
{
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        operation: Linear,
    ) -> FloatTensor<Self> {
        differentiable::<_, B, C, 2>(operation, [x, weight])
    }
}

/// The side of [`linear`](self::linear) of the backend with kernels over slices, with weights in 8 bits, which have no
/// gradient.
#[backend_extension(Flex: cfg(feature = "flex"))]
pub trait Int8LinearBackend: Backend {
    /// See [`linear`](self::linear).
    fn linear_int8(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;
}
