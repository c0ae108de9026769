//! The product of activations and weights.

use burn::tensor::{DType, Tensor};

/// `x · f32(weight)`: weights may be held in f32, bf16 or f16; activations, products and sums are f32.
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
    linear_reference(x, weight)
}

/// [`linear`] in plain tensor operations.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn linear_reference(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    x.matmul(weight.cast(DType::F32))
}
