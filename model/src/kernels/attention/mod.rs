//! Causal attention as one operation.

// NdArray is deprecated upstream; it is kept as an independent second opinion.
#![allow(deprecated)]

mod backward;
mod cached;
mod forward;
mod reference;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};

pub(crate) use cached::{cached_attention, has_cached_attention};
pub use reference::causal_attention_reference;
pub(crate) use reference::{masked_attention, split_heads};
pub use rows::AttentionShape;

use super::host::{Host, is_host};
use crate::rotary::Rotary;
use backward::Saved;
use rows::Angles;

/// `softmax(q kᵀ / √head_dim) v` within each of `batch` sequences, where position i sees positions 0 … i; queries
/// and keys are turned by their positions first.
///
/// Grouped-query attention (arXiv 2305.13245): `heads / kv_heads` query heads in a row share a key/value head.
/// The same values as [`causal_attention_reference`], which is what runs on a GPU and for other types than f32.
/// On the CPU, blocks of queries meet blocks of keys (FlashAttention-2, arXiv 2307.08691): no matrix of scores
/// comes to memory, queries and values are read where the projections left them, and blocks that causality hides
/// are not computed. The keys alone, which every block of queries meets, are copied once, turned.
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
    if !is_host(&query.device()) || query.dtype() != DType::F32 {
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

/// The CPU backends' side of [`causal_attention`](self::causal_attention).
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
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

#[cfg(feature = "flex")]
impl CausalAttention for burn::backend::Flex {
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        forward::<Self>(&[query, key, value, cosines, sines], shape).0
    }
}

#[cfg(feature = "ndarray")]
impl CausalAttention for burn::backend::NdArray {
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        forward::<Self>(&[query, key, value, cosines, sines], shape).0
    }
}

/// The output, and the logarithm of each row's sum of exponentials.
fn forward<B: Host>(
    inputs: &[FloatTensor<B>; 5],
    shape: AttentionShape,
) -> (FloatTensor<B>, Vec<f32>) {
    let [query, key, value, cosines, sines] = inputs.each_ref().map(B::values);
    let angles = Angles {
        cosines: &cosines,
        sines: &sines,
    };
    let (output, log_sum_exp) = forward::forward(&query, &key, &value, angles, shape);
    (B::tensor(output, inputs[0].shape()), log_sum_exp)
}

impl<B: Host + CausalAttention, C: CheckpointStrategy> CausalAttention for Autodiff<B, C> {
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let parents = [query.node(), key.node(), value.node()];
        let inputs = [query, key, value, cosines, sines].map(|tensor| tensor.into_primitive());
        let (output, log_sum_exp) = forward::<B>(&inputs, shape);
        match CausalAttentionBackward
            .prepare::<C>(parents)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let state = (inputs, output.clone(), Arc::new(log_sum_exp), shape);
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct CausalAttentionBackward;

impl<B: Host> Backward<B, 3> for CausalAttentionBackward {
    type State = (
        [FloatTensor<B>; 5],
        FloatTensor<B>,
        Arc<Vec<f32>>,
        AttentionShape,
    );

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let (inputs, output, log_sum_exp, shape) = ops.state;
        let shapes = [0, 1, 2].map(|input: usize| inputs[input].shape());
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = {
            let [query, key, value, cosines, sines] = inputs.each_ref().map(B::values);
            let saved = Saved {
                query: &query,
                key: &key,
                value: &value,
                output: &B::values(&output),
                log_sum_exp: &log_sum_exp,
                angles: Angles {
                    cosines: &cosines,
                    sines: &sines,
                },
                shape,
            };
            backward::backward(&saved, &B::values(&gradient), wanted)
        };
        for ((node, values), shape) in ops.parents.into_iter().zip(found).zip(shapes) {
            if let (Some(node), Some(values)) = (node, values) {
                gradients.register::<B>(node.id, B::tensor(values, shape));
            }
        }
    }
}
