//! Causal attention as one operation.
//!
//! On `flex` blocks of queries and keys meet in a core's cache ([`forward`], [`backward`]), on the CubeCL
//! backends in a cube's registers and shared memory ([`cube`]). The backward pass is written by hand on both.

mod backward;
mod cached;
#[cfg(feature = "cube")]
mod cube;
mod forward;
mod host;
mod reference;
mod rows;
mod segments;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

pub use cached::{cached_attention, cached_attention_reference};
pub use reference::causal_attention_reference;
pub use reference::{masked_attention, split_heads};
pub use rows::AttentionShape;
pub use segments::{Segment, Segments};

use crate::operation::{Operation, differentiable};
use crate::rope::Rotary;

/// `softmax(q kᵀ / √head_dim) v` within each of `batch` sequences, where position i sees positions 0 … i; queries
/// and keys are rotated by their positions first.
///
/// Grouped-query attention (arXiv 2305.13245): `heads / kv_heads` query heads in a row share a key/value head.
/// The same values as [`causal_attention_reference`], which is what runs for other types than f32 and on a
/// device without kernels. Blocks of queries meet blocks of keys (FlashAttention-2, arXiv 2307.08691): no matrix of scores comes to memory, queries and values
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
        return query; // as empty as the output, which some backends refuse to compute
    }
    if kernels(&query.device()) == Kernels::None || query.dtype() != DType::F32 {
        return causal_attention_reference(query, key, value, batch, rotary);
    }
    let (cosines, sines) = rotary.tables();
    let output = <Dispatch as CausalAttentionBackend>::causal_attention(
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
    let (length, head_dim) = (tokens / batch.max(1), rotary.head_dim());
    let (heads, kv_heads) = (width / head_dim, kv_width / head_dim);
    assert!(
        tokens == batch * length
            && key_tokens == tokens
            && value.dims() == key.dims()
            && (tokens == 0 || rotary.rows() == length || rotary.rows() == tokens),
        "{batch} sequences and {} rotary rows against queries {:?}, keys {:?} and values {:?}",
        rotary.rows(),
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

/// The operation, of `[query, key, value]`.
#[derive(Debug, Clone)]
pub struct CausalAttention<B: Backend> {
    /// Of the rotary positions, `[length or batch · length, head_dim / 2]`.
    cosines: FloatTensor<B>,
    /// Of the rotary positions, `[length or batch · length, head_dim / 2]`.
    sines: FloatTensor<B>,
    shape: AttentionShape,
}

/// The backends' side of [`causal_attention`](self::causal_attention).
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait CausalAttentionBackend: Backend {
    /// See [`causal_attention`](self::causal_attention); `cosines` and `sines` are the tables of its rotary
    /// positions, `[length or batch · length, head_dim / 2]`, and take no gradient.
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> CausalAttentionBackend for B
where
    CausalAttention<B>: Operation<B, 3>,
{
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let operation = CausalAttention::<B> {
            cosines,
            sines,
            shape,
        };
        operation.forward([query, key, value])
    }
}

impl<B: Backend, C: CheckpointStrategy> CausalAttentionBackend for Autodiff<B, C>
where
    CausalAttention<B>: Operation<B, 3>,
{
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let operation = CausalAttention::<B> {
            cosines: cosines.into_primitive(),
            sines: sines.into_primitive(),
            shape,
        };
        differentiable::<_, B, C, 3>(operation, [query, key, value])
    }
}
