//! The CPU kernels' side: tensors to slices and back.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::CrossEntropy;
use super::kernel::{self, Normalizer, Targets};
use crate::host::Host;
use crate::operation::Operation;

impl<B: Host> Operation<B, 1> for CrossEntropy<B> {
    /// Logits, targets, and what each row's softmax is normalized by.
    type Saved = (FloatTensor<B>, Targets, Vec<Normalizer>);

    fn forward_saving(self, [logits]: [FloatTensor<B>; 1]) -> (FloatTensor<B>, Self::Saved) {
        let ids = B::integers(self.targets).into_iter().map(|id| id as u32);
        let targets = Targets {
            ids: ids.collect(),
            counted: B::into_values(self.counted),
        };
        let (nats, normalizers) = kernel::forward(&B::values(&logits), logits.shape()[1], &targets);
        let output = B::tensor(vec![nats], [1].into());
        (output, (logits, targets, normalizers))
    }

    fn backward(
        (mut logits, targets, normalizers): Self::Saved,
        gradient: FloatTensor<B>,
        _: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        let vocab_size = logits.shape()[1];
        let gradient = B::values(&gradient)[0];
        let values = B::values_mut(&mut logits);
        kernel::backward(values, vocab_size, &targets, &normalizers, gradient);
        [Some(logits)]
    }
}
