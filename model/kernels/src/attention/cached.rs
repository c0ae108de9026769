//! Attention of new positions over a cache, to which they are added in place.

mod host;
#[cfg(test)]
mod tests;

use std::mem;
use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

use super::reference::{masked_attention, outside, rotated, split_heads};
use super::rows::AttentionShape;
use super::segments::PlacedSegment;
use super::{AttentionSpec, Segments, shape_of, sink_scores, tables};
use crate::rope::Rotary;

/// What [`cached_attention`] takes beside the cache.
#[derive(Debug, Clone)]
pub struct CachedInput<'a> {
    /// `[rows, heads · head_dim]`, as the projection gives it.
    pub query: Tensor<2>,
    /// `[rows, kv_heads · head_dim]`
    pub key: Tensor<2>,
    /// `[rows, kv_heads · head_dim]`
    pub value: Tensor<2>,
    /// The rotary position of each row; `None` for queries and keys that do not depend on their positions.
    pub rotary: Option<&'a Rotary>,
    /// `[heads]`: see [`AttentionInput`](super::AttentionInput::sinks).
    pub sinks: Option<Tensor<1>>,
    /// Where the rows belong.
    pub segments: &'a Segments,
    /// What is computed.
    pub spec: AttentionSpec,
}

/// Rotates new queries and keys by their positions, writes the keys and values into the cache, and attends over all
/// that their sequence has there then, or the window of it.
///
/// The same values as [`cached_attention_reference`], which runs where there is no kernel: on devices without any, under
/// autodiff, and for other types than f32. The kernel copies neither the cache nor a part of it but where neighbouring
/// positions lie apart, reads no block in front of the window, and what it computes of a sequence depends neither on the
/// other segments nor on the blocks that it lies in.
///
/// # Shapes
///
/// - `cache`: keys and values, `[kv_heads, blocks, block_positions, head_dim]`
/// - output: `[rows, heads · head_dim]`
///
/// # Panics
///
/// When the shapes do not fit, or the cache does not have the segments' blocks.
pub fn cached_attention(input: CachedInput<'_>, cache: [&mut Tensor<4>; 2]) -> Tensor<2> {
    let shape = input.shape(&cache);
    let device = input.query.device();
    let kernel = kernels(&device) != Kernels::None && !device.is_autodiff();
    if !kernel || input.query.dtype() != DType::F32 {
        return cached_attention_reference(input, cache);
    }
    // Taken out, since what nobody else holds is changed in place.
    let [keys, values] = cache;
    let take = |tensor: &mut Tensor<4>| mem::replace(tensor, Tensor::empty([0; 4], &device));
    let sinks = sink_scores(input.sinks.clone(), &device);
    let (cosines, sines) = tables(input.rotary, &device);
    let (output, new_keys, new_values) = <Dispatch as CachedAttention>::cached_attention(
        input.query.into_dispatch(),
        input.key.into_dispatch(),
        input.value.into_dispatch(),
        sinks.into_dispatch(),
        cosines.into_dispatch(),
        sines.into_dispatch(),
        take(keys).into_dispatch(),
        take(values).into_dispatch(),
        input.segments.table().clone().into_dispatch(),
        input.segments.list().clone(),
        shape,
    );
    *keys = Tensor::from_dispatch(new_keys);
    *values = Tensor::from_dispatch(new_values);
    Tensor::from_dispatch(output)
}

impl CachedInput<'_> {
    /// That of all rows as if they were one sequence.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    fn shape(&self, cache: &[&mut Tensor<4>; 2]) -> AttentionShape {
        let shape = shape_of(
            [&self.query, &self.key, &self.value],
            1,
            self.rotary,
            self.sinks.as_ref(),
            &self.spec,
        );
        let [kv_heads, blocks, block_positions, head_dim] = cache[0].dims();
        assert!(
            shape.kv_heads == kv_heads
                && shape.head_dim == head_dim
                && self.segments.rows() == shape.length
                && self.segments.fit(blocks, block_positions)
                && cache[1].dims() == cache[0].dims(),
            "a cache {:?} and segments {:?} against {shape:?}",
            cache[0].dims(),
            self.segments.list(),
        );
        shape
    }
}

/// [`cached_attention`] in plain tensor operations, segment by segment.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn cached_attention_reference(
    input: CachedInput<'_>,
    mut cache: [&mut Tensor<4>; 2],
) -> Tensor<2> {
    let AttentionShape {
        kv_heads,
        head_dim,
        window,
        scale,
        ..
    } = input.shape(&cache);
    let [_, blocks, block_positions, _] = cache[0].dims();
    let outputs = input.segments.list().iter().map(|segment| {
        let (row, new, all) = (segment.row, segment.new, segment.end());
        let first = first_seen(segment.past, window.unwrap_or(usize::MAX));
        let of = |x: &Tensor<2>| split_heads(x.clone().narrow(0, row, new), 1, head_dim);
        let rotary = input.rotary.map(|rotary| rotary.range(row, new));
        let new_keys = rotated(of(&input.key), rotary.as_ref());
        let so_far = [new_keys, of(&input.value)].map(|new| new.squeeze_dim::<3>(0));
        let so_far = cache
            .each_mut()
            .into_iter()
            .zip(so_far)
            .map(|(cache, new)| {
                let dims = cache.dims();
                let by_position = [kv_heads, blocks * block_positions, head_dim];
                let mut start = 0;
                cache.inplace(|cached| {
                    let mut cached = cached.reshape(by_position);
                    for place in segment.places(segment.past..all) {
                        let part = new.clone().narrow(1, start, place.len());
                        start += place.len();
                        cached = cached.slice_assign([0..kv_heads, place, 0..head_dim], part);
                    }
                    cached.reshape(dims)
                });
                let cached = cache.clone().reshape(by_position);
                let parts = segment.places(first..all);
                let parts = parts.map(|place| cached.clone().narrow(1, place.start, place.len()));
                Tensor::cat(parts.collect(), 1).unsqueeze::<4>()
            });
        let so_far: Vec<Tensor<4>> = so_far.collect();
        let [keys, values] = so_far.try_into().expect("keys and values");
        let all = all - first;
        let window = window.filter(|&window| window < all);
        let hidden = window.map(|window| outside(window, [new, all], &keys.device()));
        let query = rotated(of(&input.query), rotary.as_ref());
        masked_attention(
            query,
            keys,
            values,
            scale,
            input.sinks.clone(),
            hidden.as_ref(),
        )
    });
    Tensor::cat(outputs.collect(), 0)
}

/// The backends' side of [`cached_attention`](self::cached_attention); it has no gradient.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube")
)]
pub trait CachedAttention: Backend {
    /// The outputs, and the cache's keys and values with the new ones among them.
    #[allow(clippy::too_many_arguments)] // each tensor crosses the border between backends by itself
    fn cached_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        sinks: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        table: IntTensor<Self>,
        segments: Arc<[PlacedSegment]>,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// The first position that the query at a position sees.
#[inline(always)]
fn first_seen(position: usize, window: usize) -> usize {
    (position + 1).saturating_sub(window)
}
