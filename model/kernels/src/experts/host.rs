//! The CPU backends' side: tensors to slices and back.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::backward::{self, ByInput};
use super::forward::{self, Inputs, Saved};
use super::{ExpertsKernels, Operands};
use crate::dispatch::Tables;
use crate::dtype::StorageFloat;
use crate::host::Host;
use crate::host::gemv::Held;

impl<B: Host> Operands<B> {
    /// What `work` makes of the operands' values, whose weights are f32. It runs inside the thread pool as a whole:
    /// entering the pool anew for each of its steps takes about as long as the steps of a single token.
    fn with_values<R: Send>(&self, work: impl FnOnce(&Inputs) -> R + Send) -> R {
        let [_, _, gate, up, down] = self.tensors.each_ref().map(|tensor| B::values(tensor));
        self.with([&gate, &up, &down], work)
    }

    fn with<T: StorageFloat, R: Send>(
        &self,
        [gate, up, down]: [&[T]; 3],
        work: impl FnOnce(&Inputs<T>) -> R + Send,
    ) -> R {
        let Tables::Host(plan) = &self.tables else {
            unreachable!("a CPU backend makes no other");
        };
        let [x, weights] = [0, 1].map(|operand: usize| B::values(&self.tensors[operand]));
        let [_, d_model, d_ff] = self.tensors[2].shape().dims();
        let inputs = Inputs {
            x: &x,
            weights: &weights,
            gate,
            up,
            down,
            plan,
            d_model,
            d_ff,
        };
        rayon::scope(|_| work(&inputs))
    }
}

impl<B: Host> ExpertsKernels for B {
    type Saved = Saved;

    fn forward(operands: &Operands<Self>) -> FloatTensor<Self> {
        let [_, _, gate, up, down] = operands.tensors.each_ref().map(|t| B::weights(t));
        let output = match (&gate, &up, &down) {
            (Held::F32(gate), Held::F32(up), Held::F32(down)) => {
                operands.with([gate, up, down], forward::forward)
            }
            (Held::Bf16(gate), Held::Bf16(up), Held::Bf16(down)) => {
                operands.with([gate, up, down], forward::forward)
            }
            (Held::F16(gate), Held::F16(up), Held::F16(down)) => {
                operands.with([gate, up, down], forward::forward)
            }
            _ => unreachable!("weights of one type, as was checked"),
        };
        B::tensor(output, operands.tensors[0].shape())
    }

    fn forward_saving(operands: &Operands<Self>) -> (FloatTensor<Self>, Saved) {
        let (output, saved) = operands.with_values(forward::forward_saving);
        (B::tensor(output, operands.tensors[0].shape()), saved)
    }

    fn backward(
        operands: &Operands<Self>,
        saved: Saved,
        gradient: FloatTensor<Self>,
        wanted: ByInput<bool>,
    ) -> ByInput<Option<FloatTensor<Self>>> {
        let gradient = B::values(&gradient);
        let found =
            operands.with_values(|inputs| backward::backward(inputs, saved, &gradient, wanted));
        let [x, weights, gate, up, down] = operands.tensors.each_ref().map(|t| t.shape());
        ByInput {
            x: found.x.map(|values| B::tensor(values, x)),
            weights: found.weights.map(|values| B::tensor(values, weights)),
            gate: found.gate.map(|values| B::tensor(values, gate)),
            up: found.up.map(|values| B::tensor(values, up)),
            down: found.down.map(|values| B::tensor(values, down)),
        }
    }
}
