//! The CPU backends' side: tensors to slices and back.

use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::CrossEntropyKernels;
use super::kernel::{self, Normalizer, Targets};
use crate::host::Host;

impl<B: Host> CrossEntropyKernels for B {
    type Saved = (Targets, Vec<Normalizer>);

    fn forward(
        logits: &FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, Self::Saved) {
        let ids = B::integers(targets).into_iter().map(|id| id as u32);
        let targets = Targets {
            ids: ids.collect(),
            counted: B::into_values(counted),
        };
        let (nats, normalizers) = kernel::forward(&B::values(logits), logits.shape()[1], &targets);
        (B::tensor(vec![nats], [1].into()), (targets, normalizers))
    }

    fn backward(
        mut logits: FloatTensor<Self>,
        (targets, normalizers): Self::Saved,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let vocabulary = logits.shape()[1];
        let gradient = B::values(&gradient)[0];
        let values = B::values_mut(&mut logits);
        kernel::backward(values, vocabulary, &targets, &normalizers, gradient);
        logits
    }
}
