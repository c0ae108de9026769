//! The CPU kernels' side: tensors to slices and back.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::rows::{AttentionShape, RopeTables};
use super::stretches::Stretches;
use super::{Attention, FirstKeys, backward, forward};
use crate::host::Host;
use crate::operation::Operation;

/// What the forward pass took and made.
#[derive(Debug, Clone)]
pub struct Saved<B: Host> {
    operation: Attention<B>,
    /// Query, key, value, sinks.
    inputs: [FloatTensor<B>; 4],
    output: FloatTensor<B>,
    log_sum_exp: Arc<Vec<f32>>,
}

impl<B: Host> Attention<B> {
    /// The output, and the logarithm of each row's sum of exponentials.
    fn attend(&self, inputs: &[FloatTensor<B>; 4]) -> (FloatTensor<B>, Vec<f32>) {
        let [query, key, value, sinks] = inputs.each_ref().map(|t| B::values(t));
        let sinks = self.shape.sinks.then_some(&sinks[..]);
        let tables = RopeTables {
            cosines: &B::values(&self.cosines),
            sines: &B::values(&self.sines),
            half: self.shape.rotary_dim / 2,
        };
        let first = first_keys::<B>(&self.first, self.shape);
        let stretches = Stretches::new(first.as_deref(), self.shape);
        let (output, log_sum_exp) = forward::forward(
            [&query, &key, &value],
            sinks,
            tables,
            stretches,
            self.shape,
            self.precision,
        );
        (B::tensor(output, inputs[0].shape()), log_sum_exp)
    }
}

/// Of each query, where they differ; with the window.
fn first_keys<B: Host>(first: &FirstKeys<B>, shape: AttentionShape) -> Option<Vec<i64>> {
    let first = match first {
        FirstKeys::OfSequence => None,
        FirstKeys::OfQuery(first) => Some(B::integers(first.clone())),
    };
    let Some(window) = shape.window.filter(|&window| window < shape.length) else {
        return first;
    };
    let mut first = first.unwrap_or_else(|| vec![0; shape.batch * shape.length]);
    for first in first.chunks_exact_mut(shape.length) {
        for (position, first) in first.iter_mut().enumerate() {
            *first = (*first).max((position + 1).saturating_sub(window) as i64);
        }
    }
    Some(first)
}

impl<B: Host> Operation<B, 4> for Attention<B> {
    type Saved = Saved<B>;

    fn forward(self, inputs: [FloatTensor<B>; 4]) -> FloatTensor<B> {
        self.attend(&inputs).0
    }

    fn forward_saving(self, inputs: [FloatTensor<B>; 4]) -> (FloatTensor<B>, Saved<B>) {
        let (output, log_sum_exp) = self.attend(&inputs);
        let saved = Saved {
            operation: self,
            inputs,
            output: output.clone(),
            log_sum_exp: Arc::new(log_sum_exp),
        };
        (output, saved)
    }

    fn backward(
        saved: Saved<B>,
        gradient: FloatTensor<B>,
        needs_grad: [bool; 4],
    ) -> [Option<FloatTensor<B>>; 4] {
        let Attention {
            cosines,
            sines,
            first,
            shape,
            precision,
        } = &saved.operation;
        let [query, key, value, sinks] = saved.inputs.each_ref().map(|t| B::values(t));
        let first = first_keys::<B>(first, *shape);
        let slices = backward::Saved {
            query: &query,
            key: &key,
            value: &value,
            sinks: shape.sinks.then_some(&sinks[..]),
            output: &B::values(&saved.output),
            log_sum_exp: &saved.log_sum_exp,
            tables: RopeTables {
                cosines: &B::values(cosines),
                sines: &B::values(sines),
                half: shape.rotary_dim / 2,
            },
            stretches: Stretches::new(first.as_deref(), *shape),
            shape: *shape,
            precision: *precision,
        };
        let found = backward::backward(&slices, &B::values(&gradient), needs_grad);
        let mut shapes = saved.inputs.iter().map(|tensor| tensor.shape());
        found.map(|values| {
            let shape = shapes.next().expect("a shape for each input");
            values.map(|values| B::tensor(values, shape))
        })
    }
}
