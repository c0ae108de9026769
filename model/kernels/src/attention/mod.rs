//! Causal attention as one operation, over all of a sequence or over ranges of it.
//!
//! On `flex` blocks of queries and keys meet in a core's cache ([`forward`], [`backward`]), on the CubeCL
//! backends in a cube's registers and shared memory ([`cube`]). The backward pass is written by hand on both.

mod backward;
mod cached;
#[cfg(feature = "cube")]
mod cube;
mod forward;
mod host;
mod ranges;
mod reference;
mod rows;
mod segments;
mod stretches;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

pub use cached::{cached_attention, cached_attention_reference};
pub use ranges::{FirstKeys, KeyRanges};
pub use reference::attention_reference;
pub use rows::AttentionShape;
pub use segments::{Segment, Segments};

use crate::operation::{Operation, differentiable};
use crate::precision::Precision;
use crate::rope::Rotary;

/// What [`attention`](self::attention) takes.
#[derive(Debug, Clone)]
pub struct AttentionInput<'a> {
    /// `[batch · length, heads · head_dim]`, as the projection gives it.
    pub query: Tensor<2>,
    /// `[batch · length, kv_heads · head_dim]`
    pub key: Tensor<2>,
    /// `[batch · length, kv_heads · head_dim]`
    pub value: Tensor<2>,
    /// Number of sequences.
    pub batch: usize,
    /// The rotary positions.
    pub rotary: &'a Rotary,
    /// The keys that each query sees; `None` for those of all positions up to its own.
    pub ranges: Option<&'a KeyRanges>,
}

/// `softmax(q kᵀ / √head_dim) v` within each of `batch` sequences, where a query sees the keys at its own position and
/// before, or a [range](KeyRanges) of them; queries and keys are rotated by their positions first.
///
/// Grouped-query attention (arXiv 2305.13245): `heads / kv_heads` query heads in a row share a key/value head.
/// The same values as [`attention_reference`], which is what runs for other types than f32 and on a device without
/// kernels. Blocks of queries meet blocks of keys (FlashAttention-2, arXiv 2307.08691): no matrix of scores comes to
/// memory, queries and values are read where the projections left them, and blocks of which nothing is seen are not
/// computed.
///
/// # Shapes
///
/// - output: `[batch · length, heads · head_dim]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn attention(input: AttentionInput<'_>) -> Tensor<2> {
    at_precision(input, Precision::F32)
}

/// [`attention`](self::attention) with the factors of its products in bf16, forward and backward: queries and keys after
/// their rotation, values, weights, and gradients. Scores, softmax and sums are f32.
///
/// # Panics
///
/// When the shapes do not fit, or the device [does not compute](Precision::runs_on) such products.
pub fn attention_in_bf16(input: AttentionInput<'_>) -> Tensor<2> {
    Precision::Bf16.check(&input.query.device());
    at_precision(input, Precision::Bf16)
}

fn at_precision(input: AttentionInput<'_>, precision: Precision) -> Tensor<2> {
    let shape = input.shape();
    if input.query.dims()[0] == 0 {
        return input.query; // as empty as the output, which some backends refuse to compute
    }
    if kernels(&input.query.device()) == Kernels::None || input.query.dtype() != DType::F32 {
        return attention_reference(input);
    }
    let (cosines, sines) = input.rotary.tables();
    let output = <Dispatch as AttentionBackend>::attention(
        input.query.into_dispatch(),
        input.key.into_dispatch(),
        input.value.into_dispatch(),
        cosines.into_dispatch(),
        sines.into_dispatch(),
        input.ranges.into(),
        shape,
        precision,
    );
    Tensor::from_dispatch(output)
}

impl AttentionInput<'_> {
    /// # Panics
    ///
    /// When the shapes do not fit.
    fn shape(&self) -> AttentionShape {
        let Self {
            query,
            key,
            value,
            batch,
            rotary,
            ranges,
        } = self;
        let shape = shape_of(query, key, value, *batch, rotary);
        let tokens = query.dims()[0];
        assert!(
            ranges.is_none_or(|ranges| ranges.tokens() == tokens),
            "ranges of {:?} queries against {tokens}",
            ranges.map(KeyRanges::tokens),
        );
        shape
    }
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
pub struct Attention<B: Backend> {
    /// Of the rotary positions, `[length or batch · length, head_dim / 2]`.
    cosines: FloatTensor<B>,
    /// Of the rotary positions, `[length or batch · length, head_dim / 2]`.
    sines: FloatTensor<B>,
    first: FirstKeys<B>,
    shape: AttentionShape,
    precision: Precision,
}

/// The backends' side of [`attention`](self::attention).
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait AttentionBackend: Backend {
    /// See [`attention`](self::attention); `cosines` and `sines` are the tables of its rotary
    /// positions, `[length or batch · length, head_dim / 2]`, and take no gradient.
    #[allow(clippy::too_many_arguments)] // each tensor crosses the border between backends by itself
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        #[extension_type] first: FirstKeys<Self>,
        shape: AttentionShape,
        precision: Precision,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> AttentionBackend for B
where
    Attention<B>: Operation<B, 3>,
{
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        first: FirstKeys<Self>,
        shape: AttentionShape,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let operation = Attention::<B> {
            cosines,
            sines,
            first,
            shape,
            precision,
        };
        operation.forward([query, key, value])
    }
}

impl<B: Backend, C: CheckpointStrategy> AttentionBackend for Autodiff<B, C>
where
    Attention<B>: Operation<B, 3>,
{
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        first: FirstKeys<Self>,
        shape: AttentionShape,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let operation = Attention::<B> {
            cosines: cosines.into_primitive(),
            sines: sines.into_primitive(),
            first: first.without_autodiff(),
            shape,
            precision,
        };
        differentiable::<_, B, C, 3>(operation, [query, key, value])
    }
}
