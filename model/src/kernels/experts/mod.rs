//! Everything between router and residual stream as one operation: gather, the experts' SwiGLUs, weighted sum.
//!
//! On the CPU backends each expert's rows are taken in blocks whose activations stay in a core's cache from one
//! product to the next ([`forward`]), and the backward pass is written by hand ([`backward`]). Other backends
//! compute [`experts_reference`].

// NdArray is deprecated upstream; it is kept as an independent second opinion.
#![allow(deprecated)]

mod activation;
mod backward;
mod forward;
mod rows;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::host::{Host, is_host};
use super::weights::Held;
use super::{grouped_matmul, linear_reference};
use crate::moe::dispatch::DispatchPlan;
use crate::number::Number;
use backward::ByInput;
use forward::{Inputs, Saved};

/// Each token's sum of what its experts answer: `y[t] = Σ_j w[t, j] · SwiGLU_e(x[t])`, with e the j-th expert of
/// token t and `SwiGLU_e(x) = (silu(x W_gate[e]) ⊙ x W_up[e]) W_down[e]` (arXiv 2002.05202).
///
/// # Shapes
///
/// - `x`, output: `[tokens, d_model]`
/// - `weights`: `[tokens, per_token]`
/// - `gate`, `up`: `[experts, d_model, d_ff]`
/// - `down`: `[experts, d_ff, d_model]`
///
/// # Panics
///
/// When the shapes do not fit each other or the plan.
pub fn experts(
    x: Tensor<2>,
    weights: Tensor<2>,
    gate: Tensor<3>,
    up: Tensor<3>,
    down: Tensor<3>,
    plan: &DispatchPlan,
) -> Tensor<2> {
    let device = x.device();
    let kernel = is_host(&device) && (gate.dtype() == DType::F32 || !device.is_autodiff());
    if !kernel {
        return experts_reference(x, weights, gate, up, down, plan);
    }
    check(&x, &weights, [&gate, &up, &down], plan);
    Tensor::from_dispatch(<Dispatch as ExpertsBackend>::experts(
        x.into_dispatch(),
        weights.into_dispatch(),
        gate.into_dispatch(),
        up.into_dispatch(),
        down.into_dispatch(),
        plan.clone(),
    ))
}

/// [`experts`] in plain tensor operations and [`grouped_matmul`].
///
/// # Panics
///
/// When the shapes do not fit each other or the plan.
pub fn experts_reference(
    x: Tensor<2>,
    weights: Tensor<2>,
    gate: Tensor<3>,
    up: Tensor<3>,
    down: Tensor<3>,
    plan: &DispatchPlan,
) -> Tensor<2> {
    check(&x, &weights, [&gate, &up, &down], plan);
    let [tokens, d_model] = x.dims();
    let device = x.device();
    let indices = |values: &[u32]| {
        let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
        let length = values.len();
        Tensor::<1, Int>::from_data(TensorData::new(values, [length]), &device)
    };
    let rows = x.select(0, indices(&plan.token_of_row)); // [tokens · k, d_model], by expert
    let gate = silu(grouped_matmul(rows.clone(), gate, &plan.offsets));
    let up = grouped_matmul(rows, up, &plan.offsets);
    let answers = grouped_matmul(gate * up, down, &plan.offsets)
        .select(0, indices(&plan.row_of_assignment)) // back in the order of tokens
        .reshape([tokens, plan.per_token, d_model]);
    (answers * weights.unsqueeze_dim(2))
        .sum_dim(1)
        .reshape([tokens, d_model])
}

/// `(silu(x W_gate) ⊙ x W_up) W_down` (arXiv 2002.05202): [`experts`] with one that every token visits.
///
/// # Shapes
///
/// - `x`, output: `[tokens, d_model]`
/// - `gate`, `up`: `[d_model, d_ff]`
/// - `down`: `[d_ff, d_model]`
///
/// # Panics
///
/// When the shapes do not fit each other.
pub fn swiglu(x: Tensor<2>, gate: Tensor<2>, up: Tensor<2>, down: Tensor<2>) -> Tensor<2> {
    let (device, [tokens, _]) = (x.device(), x.dims());
    if !is_host(&device) {
        return swiglu_reference(x, gate, up, down);
    }
    experts(
        x,
        Tensor::ones([tokens, 1], &device),
        gate.unsqueeze(),
        up.unsqueeze(),
        down.unsqueeze(),
        &DispatchPlan::new(&vec![0; tokens], 1, 1),
    )
}

/// [`swiglu`] in plain tensor operations.
pub fn swiglu_reference(
    x: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    down: Tensor<2>,
) -> Tensor<2> {
    linear_reference(
        silu(linear_reference(x.clone(), gate)) * linear_reference(x, up),
        down,
    )
}

fn check(x: &Tensor<2>, weights: &Tensor<2>, stacks: [&Tensor<3>; 3], plan: &DispatchPlan) {
    let [tokens, d_model] = x.dims();
    let [gate, up, down] = stacks.map(|stack| stack.dims());
    let d_ff = gate[2];
    assert_eq!(
        weights.dims(),
        [tokens, plan.per_token],
        "router weights of {tokens} tokens"
    );
    assert_eq!(
        plan.token_of_row.len(),
        tokens * plan.per_token,
        "rows of {tokens} tokens"
    );
    assert_eq!(gate, [plan.experts, d_model, d_ff], "gate");
    assert_eq!(up, [plan.experts, d_model, d_ff], "up");
    assert_eq!(down, [plan.experts, d_ff, d_model], "down");
    let types = stacks.map(|stack| stack.dtype());
    assert!(
        types.iter().all(|&held| held == types[0]),
        "weights of one type, not {types:?}"
    );
}

/// The CPU backends' side of [`experts`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Autodiff
)]
pub trait ExpertsBackend: Backend {
    /// See [`experts`](super::experts).
    fn experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        plan: DispatchPlan,
    ) -> FloatTensor<Self>;
}

/// The tensors of the operation, and its plan.
#[derive(Debug, Clone)]
struct Operands<B: Backend> {
    /// x, router weights, gate, up, down.
    tensors: [FloatTensor<B>; 5],
    plan: DispatchPlan,
}

impl<B: Host> Operands<B> {
    /// What `work` makes of the operands' values, whose weights are f32. It runs inside the thread pool as a whole:
    /// entering the pool anew for each of its steps takes about as long as the steps of a single token.
    fn with_values<R: Send>(&self, work: impl FnOnce(&Inputs) -> R + Send) -> R {
        let [_, _, gate, up, down] = self.tensors.each_ref().map(|tensor| B::values(tensor));
        self.with([&gate, &up, &down], work)
    }

    fn with<T: Number, R: Send>(
        &self,
        [gate, up, down]: [&[T]; 3],
        work: impl FnOnce(&Inputs<T>) -> R + Send,
    ) -> R {
        let [x, weights] = [0, 1].map(|operand: usize| B::values(&self.tensors[operand]));
        let [_, d_model, d_ff] = self.tensors[2].shape().dims();
        let inputs = Inputs {
            x: &x,
            weights: &weights,
            gate,
            up,
            down,
            plan: &self.plan,
            d_model,
            d_ff,
        };
        rayon::scope(|_| work(&inputs))
    }

    fn forward(&self) -> FloatTensor<B> {
        let [_, _, gate, up, down] = self.tensors.each_ref().map(|tensor| B::weights(tensor));
        let output = match (&gate, &up, &down) {
            (Held::F32(gate), Held::F32(up), Held::F32(down)) => {
                self.with([gate, up, down], forward::forward)
            }
            (Held::Bf16(gate), Held::Bf16(up), Held::Bf16(down)) => {
                self.with([gate, up, down], forward::forward)
            }
            (Held::F16(gate), Held::F16(up), Held::F16(down)) => {
                self.with([gate, up, down], forward::forward)
            }
            _ => panic!("weights of one type, as was checked"),
        };
        B::tensor(output, self.tensors[0].shape())
    }

    fn forward_saving(&self) -> (FloatTensor<B>, Saved) {
        let (output, saved) = self.with_values(forward::forward_saving);
        (B::tensor(output, self.tensors[0].shape()), saved)
    }
}

#[cfg(feature = "flex")]
impl ExpertsBackend for burn::backend::Flex {
    fn experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        plan: DispatchPlan,
    ) -> FloatTensor<Self> {
        let tensors = [x, weights, gate, up, down];
        Operands::<Self> { tensors, plan }.forward()
    }
}

#[cfg(feature = "ndarray")]
impl ExpertsBackend for burn::backend::NdArray {
    fn experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        plan: DispatchPlan,
    ) -> FloatTensor<Self> {
        let tensors = [x, weights, gate, up, down];
        Operands::<Self> { tensors, plan }.forward()
    }
}

impl<B: ExpertsBackend + Host, C: CheckpointStrategy> ExpertsBackend for Autodiff<B, C> {
    fn experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        plan: DispatchPlan,
    ) -> FloatTensor<Self> {
        let tensors = [x, weights, gate, up, down];
        let parents = tensors.each_ref().map(|tensor| tensor.node());
        let tensors = tensors.map(|tensor| tensor.into_primitive());
        let operands = Operands::<B> { tensors, plan };
        match ExpertsBackward
            .prepare::<C>(parents)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (output, saved) = operands.forward_saving();
                prep.finish((operands, saved), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(operands.forward()),
        }
    }
}

#[derive(Debug)]
struct ExpertsBackward;

impl<B: Host> Backward<B, 5> for ExpertsBackward {
    type State = (Operands<B>, Saved);

    fn backward(self, ops: Ops<Self::State, 5>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let (operands, saved) = ops.state;
        let [x, weights, gate, up, down] = ops.parents.each_ref().map(|node| node.is_some());
        let wanted = ByInput {
            x,
            weights,
            gate,
            up,
            down,
        };
        let values = B::values(&gradient);
        let found =
            operands.with_values(|inputs| backward::backward(inputs, saved, &values, wanted));
        let found = [found.x, found.weights, found.gate, found.up, found.down];
        for ((node, values), tensor) in ops.parents.into_iter().zip(found).zip(operands.tensors) {
            if let (Some(node), Some(values)) = (node, values) {
                gradients.register::<B>(node.id, B::tensor(values, tensor.shape()));
            }
        }
    }
}
