//! The weights of products.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use firebox_kernels::{Int8, Weight};

/// The weights of a product, or a stack of them: a parameter, or integers of 8 bits.
///
/// The latter are for inference. They are no parameters: nothing trains them, and [`visit`](crate::parameters::visit) and
/// [`map`](crate::parameters::map) pass them by.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // handles of tensors, one or two a matrix
pub enum Matrix<const D: usize> {
    /// `[…, d_in, d_out]`
    Float(Param<Tensor<D>>),
    /// Quantized: `[…, d_in, d_out]` too.
    Int8(Int8<D>),
}

impl<const D: usize> Matrix<D> {
    /// `[…, d_in, d_out]`
    pub fn dims(&self) -> [usize; D] {
        match self {
            // Values that nobody has read yet need not be there.
            Self::Float(weight) => weight.lazy_shape().dims(),
            Self::Int8(weight) => weight.dims(),
        }
    }

    /// As products take them.
    pub fn weight(&self) -> Weight<D> {
        match self {
            Self::Float(weight) => weight.val().into(),
            Self::Int8(weight) => weight.clone().into(),
        }
    }
}

impl<const D: usize> From<Param<Tensor<D>>> for Matrix<D> {
    fn from(weight: Param<Tensor<D>>) -> Self {
        Self::Float(weight)
    }
}
