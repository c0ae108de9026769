//! What all operations with a gradient have in common.
//!
//! An operation is a struct that holds what takes no gradient: sizes, tables, masks. It implements [`Operation`] for the
//! backends that have kernels. A trait of its own under `#[backend_extension]` lets Burn find the backend of a tensor;
//! that trait's implementations do no more than call [`Operation::forward`], or [`differentiable`] under autodiff.

use std::fmt::{self, Debug, Formatter};
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

/// What backend `B` computes of an operation of `N` inputs that may need a gradient.
pub trait Operation<B: Backend, const N: usize>: Sized + 'static {
    /// What the backward pass needs of the forward pass, inputs included.
    type Saved: Clone + Debug + Send + 'static;

    /// The output alone.
    fn forward(self, inputs: [FloatTensor<B>; N]) -> FloatTensor<B> {
        self.forward_saving(inputs).0
    }

    /// The output, and what [`backward`](Self::backward) needs.
    fn forward_saving(self, inputs: [FloatTensor<B>; N]) -> (FloatTensor<B>, Self::Saved);

    /// The gradients of the inputs that need one, from that of the output. Others may be there too, where they are a
    /// by-product.
    fn backward(
        saved: Self::Saved,
        gradient: FloatTensor<B>,
        needs_grad: [bool; N],
    ) -> [Option<FloatTensor<B>>; N];
}

/// Runs an operation on the tensors that autodiff wraps, and has its backward pass called later.
pub fn differentiable<O, B, C, const N: usize>(
    operation: O,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
) -> FloatTensor<Autodiff<B, C>>
where
    O: Operation<B, N>,
    B: Backend,
    C: CheckpointStrategy,
{
    let parents = inputs.each_ref().map(|input| input.node());
    let inputs = inputs.map(|input| input.into_primitive());
    let step = Step::<O>(PhantomData);
    match step.prepare::<C>(parents).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, saved) = operation.forward_saving(inputs);
            prep.finish(saved, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(operation.forward(inputs)),
    }
}

/// An operation's place in the graph of autodiff.
struct Step<O>(PhantomData<fn() -> O>);

impl<O> Debug for Step<O> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(std::any::type_name::<O>())
    }
}

impl<O: Operation<B, N>, B: Backend, const N: usize> Backward<B, N> for Step<O> {
    type State = O::Saved;

    fn backward(self, ops: Ops<O::Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let needs_grad = ops.parents.each_ref().map(Option::is_some);
        let found = O::backward(ops.state, gradient, needs_grad);
        for (node, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}
