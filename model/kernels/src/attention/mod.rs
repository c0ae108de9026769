//! Attention as one operation: causal, over all of a sequence or over ranges of it, or ([`biased`]) to all keys.
//!
//! On `flex` blocks of queries and keys meet in a core's cache ([`forward`], [`backward`]), on the CubeCL
//! backends in a cube's registers and shared memory ([`cube`]). The backward pass is written by hand on both.

mod backward;
mod biased;
mod cached;
#[cfg(feature = "cube")]
mod cube;
mod forward;
mod host;
mod ranges;
mod reference;
mod rows;
mod segments;
mod shared;
mod spec;
mod stretches;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Device, Tensor};
use firebox_runtime::device::{Kernels, kernels};

pub use biased::{
    BiasedInput, HIDDEN, biased_attention, biased_attention_reference, biased_weights,
};
pub use cached::{CachedInput, cached_attention, cached_attention_reference};
pub use ranges::{FirstKeys, KeyRanges};
pub use reference::attention_reference;
pub use rows::AttentionShape;
pub use segments::{PlacedSegment, Segment, Segments};
pub use shared::{SharedInput, shared_attention, shared_attention_reference};
pub use spec::AttentionSpec;

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
    /// The rotary positions; `None` for queries and keys that do not depend on their positions.
    pub rotary: Option<&'a Rotary>,
    /// `[heads]`: a score of each query head that takes part in its softmax without a key or a value, so that the weights
    /// of what a query sees add up to less than 1 (gpt-oss, arXiv 2508.10925). It is not multiplied by the scale.
    pub sinks: Option<Tensor<1>>,
    /// The keys that each query sees; `None` for those of all positions up to its own. A window is taken of these.
    pub ranges: Option<&'a KeyRanges>,
    /// What is computed.
    pub spec: AttentionSpec,
    /// That of the factors of its products, forward and backward: queries and keys after their rotation, values, weights,
    /// and gradients. Scores, softmax and sums are f32.
    pub precision: Precision,
}

/// `softmax(scale · q kᵀ) v` within each of `batch` sequences, where a query sees the keys at its own position and
/// before, or a [range](KeyRanges) or window of them; queries and keys are rotated by their positions first. With sinks s,
/// `Σ exp(zⱼ) vⱼ / (exp(s) + Σ exp(zⱼ))` over the scores z.
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
/// When the shapes do not fit, or the device does not compute products of this precision.
pub fn attention(input: AttentionInput<'_>) -> Tensor<2> {
    input.precision.check(&input.query.device());
    let shape = input.shape();
    if input.query.dims()[0] == 0 {
        return input.query; // as empty as the output, which some backends refuse to compute
    }
    let device = input.query.device();
    if kernels(&device) == Kernels::None || input.query.dtype() != DType::F32 {
        return attention_reference(input);
    }
    let sinks = sink_scores(input.sinks.clone(), &device);
    let (cosines, sines) = tables(input.rotary, &device);
    let output = <Dispatch as AttentionBackend>::attention(
        input.query.into_dispatch(),
        input.key.into_dispatch(),
        input.value.into_dispatch(),
        sinks.into_dispatch(),
        cosines.into_dispatch(),
        sines.into_dispatch(),
        input.ranges.into(),
        shape,
        input.precision,
    );
    Tensor::from_dispatch(output)
}

/// Cosines and sines; single values that nobody reads where nothing is rotated.
fn tables(rotary: Option<&Rotary>, device: &Device) -> (Tensor<2>, Tensor<2>) {
    match rotary {
        Some(rotary) => rotary.tables(),
        None => {
            let nothing = Tensor::empty([1, 1], device);
            (nothing.clone(), nothing)
        }
    }
}

/// In f32; a single value that nobody reads where there are none.
fn sink_scores(sinks: Option<Tensor<1>>, device: &Device) -> Tensor<1> {
    match sinks {
        Some(sinks) => sinks.cast(DType::F32),
        None => Tensor::empty([1], device),
    }
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
            sinks,
            ranges,
            spec,
            ..
        } = self;
        let shape = shape_of([query, key, value], *batch, *rotary, sinks.as_ref(), spec);
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
    [query, key, value]: [&Tensor<2>; 3],
    batch: usize,
    rotary: Option<&Rotary>,
    sinks: Option<&Tensor<1>>,
    spec: &AttentionSpec,
) -> AttentionShape {
    spec.check();
    let AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        window,
        scale,
    } = *spec;
    let tokens = query.dims()[0];
    let length = tokens / batch.max(1);
    assert!(
        tokens == batch * length
            && query.dims()[1] == heads * head_dim
            && key.dims() == [tokens, kv_heads * head_dim]
            && value.dims() == key.dims(),
        "{batch} sequences in queries {:?}, keys {:?} and values {:?} against {spec:?}",
        query.dims(),
        key.dims(),
        value.dims(),
    );
    let rotary_dim = rotary.map_or(0, Rotary::rotary_dim);
    assert!(
        rotary_dim <= head_dim
            && rotary.is_none_or(|rotary| {
                tokens == 0 || rotary.rows() == length || rotary.rows() == tokens
            }),
        "{:?} rotary rows of {rotary_dim} values against {batch} sequences of {length} positions in heads of {head_dim}",
        rotary.map(Rotary::rows),
    );
    assert!(
        sinks.is_none_or(|sinks| sinks.dims() == [heads]),
        "sinks {:?} against {heads} query heads",
        sinks.map(Tensor::dims),
    );
    AttentionShape {
        batch,
        length,
        keys: length,
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        window,
        scale,
        sinks: sinks.is_some(),
    }
}

/// The operation, of `[query, key, value, sinks]`.
#[derive(Debug, Clone)]
pub struct Attention<B: Backend> {
    /// Of the rotary positions, `[length or batch · length, rotary_dim / 2]`.
    cosines: FloatTensor<B>,
    /// Of the rotary positions, `[length or batch · length, rotary_dim / 2]`.
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
    /// positions, `[length or batch · length, rotary_dim / 2]`, and take no gradient. `sinks` are `[heads]`, or a single
    /// value that nobody reads.
    #[allow(clippy::too_many_arguments)] // each tensor crosses the border between backends by itself
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        sinks: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        #[extension_type] first: FirstKeys<Self>,
        shape: AttentionShape,
        precision: Precision,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> AttentionBackend for B
where
    Attention<B>: Operation<B, 4>,
{
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        sinks: FloatTensor<Self>,
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
        operation.forward([query, key, value, sinks])
    }
}

impl<B: Backend, C: CheckpointStrategy> AttentionBackend for Autodiff<B, C>
where
    Attention<B>: Operation<B, 4>,
{
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        sinks: FloatTensor<Self>,
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
        differentiable::<_, B, C, 4>(operation, [query, key, value, sinks])
    }
}
