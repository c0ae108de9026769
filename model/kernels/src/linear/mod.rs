//! The product of activations and weights.

// NdArray is deprecated upstream; it is kept as an independent second opinion.
#![allow(deprecated)]

mod kernel;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Device, Tensor};

use crate::host::Host;
use crate::host::gemv::{Held, Layout};
use firebox_runtime::device::is_host;

/// `x · f32(weight)`: weights may be held in f32, bf16 or f16; activations, products and sums are f32.
///
/// The same values as [`linear_reference`], which is what runs on a GPU. On the CPU, few rows read each weight from
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
/// When the shapes do not fit.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let ([rows, d_in], [d_weight, _]) = (x.dims(), weight.dims());
    assert_eq!(
        d_in, d_weight,
        "x [{rows}, {d_in}] against weights [{d_weight}, …]"
    );
    if !has_kernel(&x.device(), weight.dtype()) {
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
    if !has_kernel(&x.device(), weight.dtype()) {
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

/// Weights of other types than f32 have no gradient.
fn has_kernel(device: &Device, weight: DType) -> bool {
    is_host(device) && (weight == DType::F32 || !device.is_autodiff())
}

fn on_host(x: Tensor<2>, weight: Tensor<2>, layout: Layout) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Linear>::linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        layout,
    ))
}

/// The CPU backends' side of [`linear`](self::linear).
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Autodiff
)]
pub trait Linear: Backend {
    /// See [`linear`](self::linear); the layout is that of `weight`.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, layout: Layout)
    -> FloatTensor<Self>;
}

/// `[d_in, d_out]` of a weight.
fn sizes(weight: &impl TensorMetadata, layout: Layout) -> [usize; 2] {
    let [rows, columns] = weight.shape().dims();
    match layout {
        Layout::Inputs => [rows, columns],
        Layout::Outputs => [columns, rows],
    }
}

impl<B: Host> Linear for B {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        layout: Layout,
    ) -> FloatTensor<Self> {
        let rows = x.shape()[0];
        let sizes = sizes(&weight, layout);
        let x = B::values(&x);
        let values = match &B::weights(&weight) {
            Held::F32(weights) => kernel::linear(&x, rows, weights, sizes, layout),
            Held::Bf16(weights) => kernel::linear(&x, rows, weights, sizes, layout),
            Held::F16(weights) => kernel::linear(&x, rows, weights, sizes, layout),
        };
        B::tensor(values, [rows, sizes[1]].into())
    }
}

impl<B: Linear + Host, C: CheckpointStrategy> Linear for Autodiff<B, C> {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        layout: Layout,
    ) -> FloatTensor<Self> {
        let parents = [x.node(), weight.node()];
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        match LinearBackward
            .prepare::<C>(parents)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let output = <B as Linear>::linear(x.clone(), weight.clone(), layout);
                prep.finish((x, weight, layout), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(<B as Linear>::linear(x, weight, layout)),
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: Host> Backward<B, 2> for LinearBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Layout);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (x, weight, layout) = ops.state;
        let (rows, sizes) = (x.shape()[0], sizes(&weight, layout));
        let gradient = B::values(&gradient);
        if let Some(node) = x_node {
            let values = kernel::x_gradient(&gradient, rows, &B::values(&weight), sizes, layout);
            gradients.register::<B>(node.id, B::tensor(values, x.shape()));
        }
        if let Some(node) = weight_node {
            let values = kernel::weight_gradient(&gradient, rows, &B::values(&x), sizes, layout);
            gradients.register::<B>(node.id, B::tensor(values, weight.shape()));
        }
    }
}
