//! Attention of new positions over a cache whose keys serve as values too.

#[cfg(test)]
mod tests;

use std::mem;
use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

use super::reference::{rotated, split_heads};
use super::rows::AttentionShape;
use super::segments::PlacedSegment;
use super::{AttentionSpec, CachedInput, Segments, cached_attention_reference, shape_of, tables};
use crate::rope::Rotary;

/// What [`shared_attention`] takes beside the cache.
#[derive(Debug, Clone)]
pub struct SharedInput<'a> {
    /// `[rows, heads · head_dim]`
    pub query: Tensor<2>,
    /// `[rows, kv_heads · head_dim]`
    pub key: Tensor<2>,
    /// The rotary position of each row.
    pub rotary: &'a Rotary,
    /// Where the rows belong.
    pub segments: &'a Segments,
    /// What is computed.
    pub spec: AttentionSpec,
}

/// [`cached_attention`](super::cached_attention) with the rotated keys as values, so that the cache keeps them once: latent
/// attention, whose queries meet the latents themselves (DeepSeek-V2, arXiv 2405.04434, section 2.1).
///
/// The same values as [`shared_attention_reference`], which runs everywhere but on `flex`.
///
/// # Shapes
///
/// - `cache`: `[kv_heads, blocks, block_positions, head_dim]`
/// - output: `[rows, heads · head_dim]`
///
/// # Panics
///
/// When the shapes do not fit, or the cache does not have the segments' blocks.
pub fn shared_attention(input: SharedInput<'_>, cache: &mut Tensor<4>) -> Tensor<2> {
    let shape = input.shape(cache);
    let device = input.query.device();
    let kernel = kernels(&device) == Kernels::Slices && !device.is_autodiff();
    if !kernel || input.query.dtype() != DType::F32 {
        return shared_attention_reference(input, cache);
    }
    // Taken out, since what nobody else holds is changed in place.
    let keys = mem::replace(cache, Tensor::empty([0; 4], &device));
    let (cosines, sines) = tables(Some(input.rotary), &device);
    let (output, keys) = <Dispatch as SharedAttention>::shared_attention(
        input.query.into_dispatch(),
        input.key.into_dispatch(),
        cosines.into_dispatch(),
        sines.into_dispatch(),
        keys.into_dispatch(),
        input.segments.list().clone(),
        shape,
    );
    *cache = Tensor::from_dispatch(keys);
    Tensor::from_dispatch(output)
}

impl SharedInput<'_> {
    /// That of all rows as if they were one sequence.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    fn shape(&self, cache: &Tensor<4>) -> AttentionShape {
        let tensors = [&self.query, &self.key, &self.key];
        let shape = shape_of(tensors, 1, Some(self.rotary), None, &self.spec);
        let [kv_heads, blocks, block_positions, head_dim] = cache.dims();
        assert!(
            (shape.kv_heads, shape.head_dim) == (kv_heads, head_dim)
                && self.segments.rows() == shape.length
                && self.segments.fit(blocks, block_positions),
            "a cache {:?} and segments {:?} against {shape:?}",
            cache.dims(),
            self.segments.list(),
        );
        shape
    }
}

/// [`shared_attention`] as attention over a cache and a copy of it.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn shared_attention_reference(input: SharedInput<'_>, cache: &mut Tensor<4>) -> Tensor<2> {
    input.shape(cache);
    let rotate = |x: Tensor<2>| {
        let dims = x.dims();
        let heads = split_heads(x, 1, input.spec.head_dim);
        rotated(heads, Some(input.rotary))
            .swap_dims(1, 2)
            .reshape(dims)
    };
    let (query, key) = (rotate(input.query), rotate(input.key));
    let input = CachedInput {
        query,
        key: key.clone(),
        value: key,
        rotary: None,
        sinks: None,
        segments: input.segments,
        spec: input.spec,
    };
    let mut values = cache.clone();
    cached_attention_reference(input, [cache, &mut values])
}

/// The backends' side of [`shared_attention`](self::shared_attention); it has no gradient.
#[backend_extension(Flex: cfg(feature = "flex"))]
pub trait SharedAttention: Backend {
    /// The outputs, and the cache with the new keys in it.
    fn shared_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        segments: Arc<[PlacedSegment]>,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}
