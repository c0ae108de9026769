//! The CPU kernels' side: tensors to slices and back.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::{RmsNorm, kernel};
use crate::host::Host;
use crate::operation::Operation;

impl<B: Host> Operation<B, 2> for RmsNorm {
    /// `x`, `gamma`, and `1 / √(mean(x²) + ε)` of each row.
    type Saved = (FloatTensor<B>, FloatTensor<B>, Vec<f32>);

    fn forward_saving(self, [x, gamma]: [FloatTensor<B>; 2]) -> (FloatTensor<B>, Self::Saved) {
        let (output, inverse) = kernel::forward(&B::values(&x), &B::values(&gamma), self.epsilon);
        (B::tensor(output, x.shape()), (x, gamma, inverse))
    }

    // The gain's gradient is a by-product, and never needed without the other.
    fn backward(
        (x, gamma, inverse): Self::Saved,
        mut gradient: FloatTensor<B>,
        _: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        let gamma_gradient = kernel::backward(
            B::values_mut(&mut gradient),
            &B::values(&x),
            &B::values(&gamma),
            &inverse,
        );
        let gamma_gradient = B::tensor(gamma_gradient, gamma.shape());
        [Some(gradient), Some(gamma_gradient)]
    }
}
