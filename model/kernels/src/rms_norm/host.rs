//! The CPU backends' side: tensors to slices and back.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::{RmsNormKernels, kernel};
use crate::host::Host;

impl<B: Host> RmsNormKernels for B {
    type Saved = Vec<f32>;

    fn forward(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, Vec<f32>) {
        let (output, inverse) = kernel::forward(&B::values(x), &B::values(gamma), epsilon);
        (B::tensor(output, x.shape()), inverse)
    }

    fn backward(
        mut gradient: FloatTensor<Self>,
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        inverse: Vec<f32>,
    ) -> [FloatTensor<Self>; 2] {
        let gamma_gradient = kernel::backward(
            B::values_mut(&mut gradient),
            &B::values(x),
            &B::values(gamma),
            &inverse,
        );
        [gradient, B::tensor(gamma_gradient, gamma.shape())]
    }
}
