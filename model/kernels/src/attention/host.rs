//! The CPU backends' side: tensors to slices and back.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::rows::Angles;
use super::{AttentionKernels, Operands, backward, forward};
use crate::host::Host;

/// What the forward pass took and made.
#[derive(Debug, Clone)]
pub struct Saved<B: Host> {
    operands: Operands<B>,
    output: FloatTensor<B>,
    log_sum_exp: Arc<Vec<f32>>,
}

impl<B: Host> AttentionKernels for B {
    type Saved = Saved<B>;

    fn forward(operands: Operands<Self>) -> FloatTensor<Self> {
        attend(&operands).0
    }

    fn forward_saving(operands: Operands<Self>) -> (FloatTensor<Self>, Saved<B>) {
        let (output, log_sum_exp) = attend(&operands);
        let saved = Saved {
            operands,
            output: output.clone(),
            log_sum_exp: Arc::new(log_sum_exp),
        };
        (output, saved)
    }

    fn backward(
        saved: Saved<B>,
        gradient: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3] {
        let Operands { tensors, shape } = &saved.operands;
        let [query, key, value, cosines, sines] = tensors.each_ref().map(|t| B::values(t));
        let slices = backward::Saved {
            query: &query,
            key: &key,
            value: &value,
            output: &B::values(&saved.output),
            log_sum_exp: &saved.log_sum_exp,
            angles: Angles {
                cosines: &cosines,
                sines: &sines,
            },
            shape: *shape,
        };
        let found = backward::backward(&slices, &B::values(&gradient), wanted);
        let mut shapes = tensors.iter().map(|tensor| tensor.shape());
        found.map(|values| {
            let shape = shapes.next().expect("a shape for each input");
            values.map(|values| B::tensor(values, shape))
        })
    }
}

/// The output, and the logarithm of each row's sum of exponentials.
fn attend<B: Host>(operands: &Operands<B>) -> (FloatTensor<B>, Vec<f32>) {
    let [query, key, value, cosines, sines] = operands.tensors.each_ref().map(|t| B::values(t));
    let angles = Angles {
        cosines: &cosines,
        sines: &sines,
    };
    let (output, log_sum_exp) = forward::forward(&query, &key, &value, angles, operands.shape);
    (B::tensor(output, operands.tensors[0].shape()), log_sum_exp)
}
