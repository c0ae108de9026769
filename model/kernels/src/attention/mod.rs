//! Causal attention as one operation.
//!
//! On the CPU backends blocks of queries and keys meet in a core's cache ([`forward`], [`backward`]), on the CubeCL
//! backends in a cube's registers and shared memory ([`cube`]). The backward pass is written by hand on both.

// NdArray is deprecated upstream; it is kept as an independent second opinion.
#![allow(deprecated)]

mod backward;
mod cached;
#[cfg(feature = "cube")]
mod cube;
mod forward;
mod host;
mod reference;
mod rows;
#[cfg(test)]
mod tests;

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};

pub use cached::{cached_attention, has_cached_attention};
pub use reference::causal_attention_reference;
pub use reference::{masked_attention, split_heads};
pub use rows::AttentionShape;

use crate::rope::Rotary;

/// `softmax(q kᵀ / √head_dim) v` within each of `batch` sequences, where position i sees positions 0 … i; queries
/// and keys are turned by their positions first.
///
/// Grouped-query attention (arXiv 2305.13245): `heads / kv_heads` query heads in a row share a key/value head.
/// The same values as [`causal_attention_reference`], which is what runs for other types than f32. Blocks of queries
/// meet blocks of keys (FlashAttention-2, arXiv 2307.08691): no matrix of scores comes to memory, queries and values
/// are read where the projections left them, and blocks that causality hides are not computed.
///
/// # Shapes
///
/// - `query`: `[batch · length, heads · head_dim]`, as the projection gives it
/// - `key`, `value`: `[batch · length, kv_heads · head_dim]`
/// - output: `[batch · length, heads · head_dim]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn causal_attention(
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    batch: usize,
    rotary: &Rotary,
) -> Tensor<2> {
    let shape = shape_of(&query, &key, &value, batch, rotary);
    if query.dims()[0] == 0 {
        return query; // as empty as the answer, which some backends refuse to compute
    }
    if query.dtype() != DType::F32 {
        return causal_attention_reference(query, key, value, batch, rotary);
    }
    let (cosines, sines) = rotary.tables();
    let output = <Dispatch as CausalAttention>::causal_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        cosines.into_dispatch(),
        sines.into_dispatch(),
        shape,
    );
    Tensor::from_dispatch(output)
}

fn shape_of(
    query: &Tensor<2>,
    key: &Tensor<2>,
    value: &Tensor<2>,
    batch: usize,
    rotary: &Rotary,
) -> AttentionShape {
    let ([tokens, width], [key_tokens, kv_width]) = (query.dims(), key.dims());
    let (length, head_dim) = (rotary.positions(), rotary.head_dim());
    let (heads, kv_heads) = (width / head_dim, kv_width / head_dim);
    assert!(
        tokens == batch * length && key_tokens == tokens && value.dims() == key.dims(),
        "{batch} sequences of {length} positions against queries {:?}, keys {:?} and values {:?}",
        query.dims(),
        key.dims(),
        value.dims(),
    );
    assert!(
        width == heads * head_dim
            && kv_width == kv_heads * head_dim
            && kv_heads > 0
            && heads.is_multiple_of(kv_heads),
        "queries of {width} values and keys of {kv_width}, in heads of {head_dim}"
    );
    AttentionShape {
        batch,
        length,
        heads,
        kv_heads,
        head_dim,
    }
}

/// The backends' side of [`causal_attention`](self::causal_attention).
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait CausalAttention: Backend {
    /// See [`causal_attention`](self::causal_attention); `cosines` and `sines` are the tables of its rotary
    /// positions, `[length, head_dim / 2]`, and take no gradient.
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;
}

/// The tensors of the operation, and their sizes.
#[derive(Debug, Clone)]
pub struct Operands<B: Backend> {
    /// Query, key, value, cosines, sines.
    tensors: [FloatTensor<B>; 5],
    shape: AttentionShape,
}

/// What a backend computes of [`causal_attention`](self::causal_attention) and its gradients.
pub trait AttentionKernels: Backend {
    /// What the backward pass needs of the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// The answers, `[batch · length, heads · head_dim]`.
    fn forward(operands: Operands<Self>) -> FloatTensor<Self>;

    /// [`forward`](Self::forward), and what [`backward`](Self::backward) needs of it.
    fn forward_saving(operands: Operands<Self>) -> (FloatTensor<Self>, Self::Saved);

    /// The gradients of query, key and value that are `wanted`, from that of the output.
    fn backward(
        saved: Self::Saved,
        gradient: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3];
}

impl<B: AttentionKernels> CausalAttention for B {
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let tensors = [query, key, value, cosines, sines];
        B::forward(Operands { tensors, shape })
    }
}

impl<B: AttentionKernels, C: CheckpointStrategy> CausalAttention for Autodiff<B, C> {
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let parents = [query.node(), key.node(), value.node()];
        let tensors = [query, key, value, cosines, sines].map(|tensor| tensor.into_primitive());
        let operands = Operands::<B> { tensors, shape };
        match CausalAttentionBackward
            .prepare::<C>(parents)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (output, saved) = B::forward_saving(operands);
                prep.finish(saved, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::forward(operands)),
        }
    }
}

#[derive(Debug)]
struct CausalAttentionBackward;

impl<B: AttentionKernels> Backward<B, 3> for CausalAttentionBackward {
    type State = B::Saved;

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = B::backward(ops.state, gradient, wanted);
        for (node, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}
