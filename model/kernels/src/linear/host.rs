//! The CPU kernels' side: tensors to slices and back.

use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::{Int8LinearBackend, Linear, kernel};
use crate::host::Host;
use crate::host::gemv::{Int8Matrix, Layout, WeightStorage};
use crate::operation::Operation;
use crate::precision::Precision;

impl<B: Host> Operation<B, 2> for Linear {
    type Saved = (Self, [FloatTensor<B>; 2]);

    fn forward_saving(self, inputs: [FloatTensor<B>; 2]) -> (FloatTensor<B>, Self::Saved) {
        let [x, weight] = &inputs;
        let (rows, sizes) = (x.shape()[0], self.sizes(weight));
        let Self { layout, precision } = self;
        let x = B::values(x);
        let values = match &B::weights(weight) {
            WeightStorage::F32(weights) => {
                kernel::linear(&x, rows, weights, sizes, layout, precision)
            }
            WeightStorage::Bf16(weights) => {
                kernel::linear(&x, rows, weights, sizes, layout, precision)
            }
            WeightStorage::F16(weights) => {
                kernel::linear(&x, rows, weights, sizes, layout, precision)
            }
        };
        let output = B::tensor(values, [rows, sizes[1]].into());
        drop(x);
        (output, (self, inputs))
    }

    fn backward(
        (operation, [x, weight]): Self::Saved,
        gradient: FloatTensor<B>,
        [x_needs_grad, weight_needs_grad]: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        let (rows, sizes) = (x.shape()[0], operation.sizes(&weight));
        let Self { layout, precision } = operation;
        let gradient = B::values(&gradient);
        let of_x = x_needs_grad.then(|| {
            let weight = B::values(&weight);
            let values = kernel::x_gradient(&gradient, rows, &weight, sizes, layout, precision);
            B::tensor(values, x.shape())
        });
        let of_weight = weight_needs_grad.then(|| {
            let x = B::values(&x);
            let values = kernel::weight_gradient(&gradient, rows, &x, sizes, layout, precision);
            B::tensor(values, weight.shape())
        });
        [of_x, of_weight]
    }
}

impl<B: Host> Int8LinearBackend for B {
    fn linear_int8(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let (rows, sizes) = (x.shape()[0], codes.shape().dims::<2>());
        let (codes, scales) = (B::codes(&codes), B::halves(&scales));
        let weights = Int8Matrix::new(&codes, &scales, sizes[0], sizes[1]);
        let values = kernel::linear_int8(&B::values(&x), rows, weights, sizes, precision);
        B::tensor(values, [rows, sizes[1]].into())
    }
}

impl Linear {
    /// `[d_in, d_out]` of a weight.
    fn sizes(self, weight: &impl TensorMetadata) -> [usize; 2] {
        let [rows, columns] = weight.shape().dims();
        match self.layout {
            Layout::Inputs => [rows, columns],
            Layout::Outputs => [columns, rows],
        }
    }
}
