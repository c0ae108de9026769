//! The CPU kernels' side: tensors to slices and back.

use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::backward::{self, ByInput};
use super::forward::{self, Biases, Inputs, Int8Stack, Stack};
use super::{Experts, ExpertsSpec, Int8ExpertsBackend};
use crate::dispatch::Tables;
use crate::host::Host;
use crate::host::gemv::WeightStorage;
use crate::operation::Operation;

impl<B: Host> Experts<B> {
    /// What `work` makes of the inputs' values, whose weights are f32.
    fn with_values<R: Send>(
        &self,
        inputs: &[FloatTensor<B>; 8],
        work: impl FnOnce(&Inputs<'_, &[f32]>) -> R + Send,
    ) -> R {
        let [_, _, gate, up, down, ..] = inputs.each_ref().map(|tensor| B::values(tensor));
        self.with(inputs, [&gate[..], &up, &down], work)
    }

    /// The same with weights in any type, of whose tensors no more than the shape is read.
    fn with<S: Stack, R: Send>(
        &self,
        inputs: &[FloatTensor<B>; 8],
        stacks: [S; 3],
        work: impl FnOnce(&Inputs<'_, S>) -> R + Send,
    ) -> R {
        let [x, weights, gate, _, _, biases @ ..] = inputs;
        let [_, d_model, d_ff] = gate.shape().dims();
        self.with_stacks(
            [x, weights],
            stacks,
            [d_model, d_ff],
            biases.each_ref(),
            work,
        )
    }

    /// It runs inside the thread pool as a whole: entering the pool anew for each of its steps takes about as long as
    /// the steps of a single token.
    fn with_stacks<S: Stack, R: Send>(
        &self,
        [x, weights]: [&FloatTensor<B>; 2],
        [gate, up, down]: [S; 3],
        [d_model, d_ff]: [usize; 2],
        biases: [&FloatTensor<B>; 3],
        work: impl FnOnce(&Inputs<'_, S>) -> R + Send,
    ) -> R {
        let Tables::Host(plan) = &self.tables else {
            unreachable!("a CPU backend makes no other");
        };
        let [gate_bias, up_bias, down_bias] = biases.map(|bias| B::values(bias));
        let biases = Biases {
            gate: &gate_bias,
            up: &up_bias,
            down: &down_bias,
        };
        let inputs = Inputs {
            x: &B::values(x),
            weights: &B::values(weights),
            gate,
            up,
            down,
            biases: self.spec.biased.then_some(biases),
            activation: self.spec.activation,
            plan,
            d_model,
            d_ff,
            precision: self.spec.precision,
        };
        rayon::scope(|_| work(&inputs))
    }
}

impl<B: Host> Int8ExpertsBackend for B {
    fn experts_int8(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: IntTensor<Self>,
        gate_scales: FloatTensor<Self>,
        up: IntTensor<Self>,
        up_scales: FloatTensor<Self>,
        down: IntTensor<Self>,
        down_scales: FloatTensor<Self>,
        gate_bias: FloatTensor<Self>,
        up_bias: FloatTensor<Self>,
        down_bias: FloatTensor<Self>,
        tables: Tables<Self>,
        spec: ExpertsSpec,
    ) -> FloatTensor<Self> {
        let [_, d_model, d_ff] = gate.shape().dims();
        let codes = [&gate, &up, &down].map(|codes| B::codes(codes));
        let scales = [&gate_scales, &up_scales, &down_scales].map(|scales| B::halves(scales));
        let stacks = [0, 1, 2].map(|stack| Int8Stack {
            codes: &codes[stack],
            scales: &scales[stack],
        });
        let biases = [&gate_bias, &up_bias, &down_bias];
        let operation = Experts::<B> { tables, spec };
        let sizes = [d_model, d_ff];
        let output = operation.with_stacks([&x, &weights], stacks, sizes, biases, forward::forward);
        B::tensor(output, x.shape())
    }
}

impl<B: Host> Operation<B, 8> for Experts<B> {
    type Saved = (Self, [FloatTensor<B>; 8], forward::Saved);

    fn forward(self, inputs: [FloatTensor<B>; 8]) -> FloatTensor<B> {
        let [_, _, gate, up, down, ..] = inputs.each_ref().map(|t| B::weights(t));
        let output = match (&gate, &up, &down) {
            (WeightStorage::F32(gate), WeightStorage::F32(up), WeightStorage::F32(down)) => {
                self.with(&inputs, [&gate[..], up, down], forward::forward)
            }
            (WeightStorage::Bf16(gate), WeightStorage::Bf16(up), WeightStorage::Bf16(down)) => {
                self.with(&inputs, [&gate[..], up, down], forward::forward)
            }
            (WeightStorage::F16(gate), WeightStorage::F16(up), WeightStorage::F16(down)) => {
                self.with(&inputs, [&gate[..], up, down], forward::forward)
            }
            _ => unreachable!("weights of one type, as was checked"),
        };
        B::tensor(output, inputs[0].shape())
    }

    fn forward_saving(self, inputs: [FloatTensor<B>; 8]) -> (FloatTensor<B>, Self::Saved) {
        let (output, saved) = self.with_values(&inputs, forward::forward_saving);
        let output = B::tensor(output, inputs[0].shape());
        (output, (self, inputs, saved))
    }

    fn backward(
        (operation, inputs, saved): Self::Saved,
        gradient: FloatTensor<B>,
        needs_grad: [bool; 8],
    ) -> [Option<FloatTensor<B>>; 8] {
        let gradient = B::values(&gradient);
        let needs_grad = ByInput::from(needs_grad);
        let found = operation.with_values(&inputs, |inputs| {
            backward::backward(inputs, saved, &gradient, needs_grad)
        });
        let mut shapes = inputs.iter().map(|tensor| tensor.shape());
        <[_; 8]>::from(found).map(|values| {
            let shape = shapes.next().expect("a shape for each input");
            values.map(|values| B::tensor(values, shape))
        })
    }
}
