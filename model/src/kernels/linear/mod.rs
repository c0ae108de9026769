//! The product of activations and weights.

// NdArray is deprecated upstream; it is kept as an independent second opinion.
#![allow(deprecated)]

mod kernel;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Device, Tensor};

use super::host::{Host, is_host};
use super::weights::{FEW, Held, Layout};

/// `x · f32(weight)`: weights may be held in f32, bf16 or f16; activations, products and sums are f32.
///
/// The same values as [`linear_reference`], which is what runs on a GPU and in training. On the CPU, each weight is
/// read from memory once, as it is held there.
///
/// # Shapes
///
/// - `x`: `[rows, d_in]`
/// - `weight`: `[d_in, d_out]`
/// - output: `[rows, d_out]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let ([rows, d_in], [d_weight, _]) = (x.dims(), weight.dims());
    assert_eq!(
        d_in, d_weight,
        "x [{rows}, {d_in}] against weights [{d_weight}, …]"
    );
    if !has_kernel(&x.device(), rows, weight.dtype()) {
        return linear_reference(x, weight);
    }
    on_host(x, weight, Layout::Inputs)
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
/// When the shapes do not fit.
pub fn linear_transposed(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let ([rows, d_in], [_, d_weight]) = (x.dims(), weight.dims());
    assert_eq!(
        d_in, d_weight,
        "x [{rows}, {d_in}] against weights […, {d_weight}]"
    );
    if !has_kernel(&x.device(), rows, weight.dtype()) {
        return linear_reference(x, weight.transpose());
    }
    on_host(x, weight, Layout::Outputs)
}

/// [`linear`] in plain tensor operations.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn linear_reference(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    x.matmul(weight.cast(DType::F32))
}

/// The backend's own product of many f32 rows is as good, and knows its gradient.
fn has_kernel(device: &Device, rows: usize, weight: DType) -> bool {
    let gains = rows <= FEW || weight != DType::F32;
    gains && !device.is_autodiff() && is_host(device)
}

fn on_host(x: Tensor<2>, weight: Tensor<2>, layout: Layout) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Linear>::linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        layout,
    ))
}

/// The CPU backends' side of [`linear`](self::linear); it has no gradient.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray")
)]
pub trait Linear: Backend {
    /// See [`linear`](self::linear); the layout is that of `weight`.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, layout: Layout)
    -> FloatTensor<Self>;
}

impl<B: Host> Linear for B {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        layout: Layout,
    ) -> FloatTensor<Self> {
        let [rows, d_in] = x.shape().dims();
        let elements = weight.shape().num_elements();
        let d_out = match layout {
            Layout::Inputs => weight.shape()[1],
            Layout::Outputs => weight.shape()[0],
        };
        debug_assert_eq!(elements, d_in * d_out);
        let x = B::values(&x);
        let values = match &B::weights(&weight) {
            Held::F32(weights) => kernel::linear(&x, rows, weights, [d_in, d_out], layout),
            Held::Bf16(weights) => kernel::linear(&x, rows, weights, [d_in, d_out], layout),
            Held::F16(weights) => kernel::linear(&x, rows, weights, [d_in, d_out], layout),
        };
        B::tensor(values, [rows, d_out].into())
    }
}
