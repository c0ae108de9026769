//! Attention of new positions over a cache, to which they are added in place.

#[cfg(test)]
mod tests;

use std::mem;
use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};
use rayon::prelude::*;

use super::reference::{masked_attention, split_heads};
use super::rows::{AttentionShape, RopeTables, scratch_slice};
use super::segments::with_first_rows;
use super::{Segment, Segments, shape_of};
use crate::host::Host;
use crate::host::exp::exp;
use crate::host::gemm::{Accumulate, Matrix, gemm};
use crate::host::simd::{maximum, sum, vectorized};
use crate::rope::Rotary;

/// Minimum bytes of keys and values per thread.
const MIN_BYTES_PER_THREAD: usize = 1 << 17;

/// Rows of a block: pairs of a position and a query head. The scores of so many rows over some thousand positions stay
/// in the second level of the cache.
const BLOCK_ROWS: usize = 128;

/// Rotates new queries and keys by their positions, writes the keys and values into the cache, and attends over all
/// that their sequence has there then.
///
/// The same values as [`cached_attention_reference`], which runs where there is no kernel: on devices without any, under
/// autodiff, and for other types than f32. The kernel copies neither the cache nor a part of it, and what it computes of
/// a sequence does not depend on the other segments.
///
/// # Shapes
///
/// - `query`: `[rows, heads · head_dim]`, as the projection gives it
/// - `key`, `value`: `[rows, kv_heads · head_dim]`
/// - `rotary`: a row for each of these
/// - `cache`: keys and values, `[sequences, kv_heads, capacity, head_dim]`
/// - output: `[rows, heads · head_dim]`
///
/// # Panics
///
/// When the shapes do not fit, or a sequence has several segments.
pub fn cached_attention(
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    rotary: &Rotary,
    cache: [&mut Tensor<4>; 2],
    segments: &Segments,
) -> Tensor<2> {
    let [sequences, kv_heads, capacity, head_dim] = cache[0].dims();
    let shape = shape_of(&query, &key, &value, 1, rotary);
    let mut taken = vec![false; sequences];
    let fits = segments.list().iter().all(|segment| {
        let place = taken.get_mut(segment.sequence);
        segment.end() <= capacity && place.is_some_and(|taken| !mem::replace(taken, true))
    });
    assert!(
        shape.kv_heads == kv_heads
            && shape.head_dim == head_dim
            && fits
            && segments.rows() == shape.length
            && cache[1].dims() == cache[0].dims(),
        "a cache {:?} and segments {:?} against {shape:?}",
        cache[0].dims(),
        segments.list(),
    );
    let device = query.device();
    let kernel = kernels(&device) != Kernels::None && !device.is_autodiff();
    if !kernel || query.dtype() != DType::F32 {
        return cached_attention_reference(query, key, value, rotary, cache, segments);
    }
    // Taken out, since what nobody else holds is changed in place.
    let [keys, values] = cache;
    let take = |tensor: &mut Tensor<4>| mem::replace(tensor, Tensor::empty([0; 4], &device));
    let (cosines, sines) = rotary.tables();
    let (output, new_keys, new_values) = <Dispatch as CachedAttention>::cached_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        cosines.into_dispatch(),
        sines.into_dispatch(),
        take(keys).into_dispatch(),
        take(values).into_dispatch(),
        segments.table().clone().into_dispatch(),
        segments.list().clone(),
        shape,
    );
    *keys = Tensor::from_dispatch(new_keys);
    *values = Tensor::from_dispatch(new_values);
    Tensor::from_dispatch(output)
}

/// [`cached_attention`] in plain tensor operations, segment by segment.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn cached_attention_reference(
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    rotary: &Rotary,
    [keys, values]: [&mut Tensor<4>; 2],
    segments: &Segments,
) -> Tensor<2> {
    let [_, kv_heads, _, head_dim] = keys.dims();
    let outputs = with_first_rows(segments.list()).map(|(row, segment)| {
        let Segment {
            sequence,
            past,
            new,
        } = segment;
        let all = segment.end();
        let of = |x: &Tensor<2>| split_heads(x.clone().narrow(0, row, new), 1, head_dim);
        let rotary = rotary.range(row, new);
        let place = [sequence..sequence + 1, 0..kv_heads, past..all, 0..head_dim];
        let rotated = rotary.apply(of(&key));
        keys.inplace(|keys| keys.slice_assign(place.clone(), rotated));
        values.inplace(|values| values.slice_assign(place, of(&value)));
        let so_far = |cache: &Tensor<4>| cache.clone().narrow(0, sequence, 1).narrow(2, 0, all);
        masked_attention(rotary.apply(of(&query)), so_far(keys), so_far(values), None)
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
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        table: IntTensor<Self>,
        segments: Arc<[Segment]>,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl<B: Host> CachedAttention for B {
    fn cached_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        mut keys: FloatTensor<Self>,
        mut values: FloatTensor<Self>,
        _table: IntTensor<Self>,
        segments: Arc<[Segment]>,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let new = New {
            query: &B::values(&query),
            key: &B::values(&key),
            value: &B::values(&value),
            tables: RopeTables {
                cosines: &B::values(&cosines),
                sines: &B::values(&sines),
            },
            capacity: keys.shape()[2],
            segments: &segments,
            shape,
        };
        let (keys_now, values_now) = (B::values_mut(&mut keys), B::values_mut(&mut values));
        // Inside the thread pool as a whole: entering it takes about as long as a step of a single token.
        let output = rayon::scope(|_| {
            new.store(keys_now, values_now);
            new.attend(keys_now, values_now)
        });
        (B::tensor(output, query.shape()), keys, values)
    }
}

/// Positions of a segment whose rows are computed together, for one key/value head.
#[derive(Debug, Clone, Copy)]
struct Block {
    sequence: usize,
    kv_head: usize,
    /// The row of the first position among all.
    row: usize,
    /// Positions before the first.
    past: usize,
    positions: usize,
}

/// The rows of a step.
struct New<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    tables: RopeTables<'a>,
    /// Positions that the cache has room for in each sequence.
    capacity: usize,
    segments: &'a [Segment],
    shape: AttentionShape,
}

impl New<'_> {
    /// Puts new keys, rotated, and values into the cache, `[sequences, kv_heads, capacity, head_dim]`.
    fn store(&self, keys: &mut [f32], values: &mut [f32]) {
        let AttentionShape {
            kv_heads, head_dim, ..
        } = self.shape;
        let of_head = self.capacity * head_dim;
        let mut segments = vec![None; keys.len() / (kv_heads * of_head).max(1)];
        for (row, segment) in with_first_rows(self.segments) {
            segments[segment.sequence] = Some((row, segment));
        }
        let bytes = size_of_val(self.key) * 2 / (segments.len() * kv_heads);
        keys.par_chunks_mut(of_head)
            .zip(values.par_chunks_mut(of_head))
            .enumerate()
            .with_min_len((MIN_BYTES_PER_THREAD / bytes.max(1)).max(1))
            .for_each(|(index, (keys, values))| {
                let Some((row, segment)) = segments[index / kv_heads] else {
                    return;
                };
                let place = segment.past * head_dim..segment.end() * head_dim;
                let (keys, values) = (&mut keys[place.clone()], &mut values[place]);
                vectorized(
                    #[inline(always)]
                    || {
                        let keys = keys.chunks_exact_mut(head_dim);
                        let values = values.chunks_exact_mut(head_dim);
                        for (token, (key, value)) in keys.zip(values).enumerate() {
                            let row = row + token;
                            let from = (row * kv_heads + index % kv_heads) * head_dim;
                            key.copy_from_slice(&self.key[from..][..head_dim]);
                            self.tables.rotate(key, row, 1.0);
                            value.copy_from_slice(&self.value[from..][..head_dim]);
                        }
                    },
                );
            });
    }

    /// The rows of each segment in blocks, and of each block those of every key/value head. The cut depends on the
    /// segment alone.
    fn blocks(&self) -> Vec<Block> {
        let AttentionShape { kv_heads, .. } = self.shape;
        let most = (BLOCK_ROWS / self.shape.group()).max(1);
        let mut blocks = Vec::with_capacity(self.segments.len() * kv_heads);
        for (row, segment) in with_first_rows(self.segments) {
            for start in (0..segment.new).step_by(most) {
                blocks.extend((0..kv_heads).map(|kv_head| Block {
                    sequence: segment.sequence,
                    kv_head,
                    row: row + start,
                    past: segment.past + start,
                    positions: most.min(segment.new - start),
                }));
            }
        }
        blocks
    }

    /// Outputs, `[rows, heads · head_dim]`, of queries over a cache that has their keys and values already.
    fn attend(&self, keys: &[f32], values: &[f32]) -> Vec<f32> {
        let AttentionShape {
            kv_heads, head_dim, ..
        } = self.shape;
        let of_head = self.capacity * head_dim;
        let columns = self.shape.group() * head_dim;
        let blocks = self.blocks();
        let longest = blocks.iter().map(|block| block.past + block.positions);
        let bytes = 2 * longest.max().unwrap_or(0) * head_dim * size_of::<f32>();
        let mut outputs = vec![0.0; self.query.len()];
        let mut rest = &mut outputs[..];
        let places = blocks.iter().map(|block| {
            let place = rest.split_off_mut(..block.positions * columns);
            (*block, place.expect("the blocks cover the output"))
        });
        let tasks: Vec<_> = places.collect();
        tasks
            .into_par_iter()
            .with_min_len((MIN_BYTES_PER_THREAD / bytes.max(1)).max(1))
            .for_each_init(Vec::new, |scratch, (block, outputs)| {
                let head = (block.sequence * kv_heads + block.kv_head) * of_head;
                let place = head..head + (block.past + block.positions) * head_dim;
                let cache = [&keys[place.clone()], &values[place]];
                self.block(block, cache, scratch, outputs);
            });
        if kv_heads == 1 || blocks.iter().all(|block| block.positions == 1) {
            return outputs;
        }
        // From [blocks, kv_heads, positions, …] to [blocks, positions, kv_heads, …].
        let mut output = Vec::with_capacity(outputs.len());
        let mut rest = &outputs[..];
        for block in blocks.iter().step_by(kv_heads) {
            let of_block;
            (of_block, rest) = rest.split_at(kv_heads * block.positions * columns);
            for position in 0..block.positions {
                for head in of_block.chunks(block.positions * columns) {
                    output.extend_from_slice(&head[position * columns..][..columns]);
                }
            }
        }
        output
    }

    /// # Shapes
    ///
    /// - `keys`, `values`: `[past + positions, head_dim]`
    /// - `outputs`: `[positions, group · head_dim]`
    fn block(
        &self,
        block: Block,
        [keys, values]: [&[f32]; 2],
        scratch: &mut Vec<f32>,
        outputs: &mut [f32],
    ) {
        let shape = self.shape;
        let (group, head_dim) = (shape.group(), shape.head_dim);
        let (rows, all) = (block.positions * group, block.past + block.positions);
        let (queries, scores) =
            scratch_slice(scratch, rows * (head_dim + all)).split_at_mut(rows * head_dim);

        vectorized(
            #[inline(always)]
            || {
                let packed = queries.chunks_exact_mut(group * head_dim);
                for (position, packed) in packed.enumerate() {
                    let row = block.row + position;
                    let from = row * shape.width() + block.kv_head * group * head_dim;
                    packed.copy_from_slice(&self.query[from..][..group * head_dim]);
                    for head in packed.chunks_exact_mut(head_dim) {
                        self.tables.rotate(head, row, shape.scale());
                    }
                }
            },
        );
        gemm(
            Matrix::new(queries, rows, head_dim),
            Matrix::new(keys, all, head_dim).t(),
            1.0,
            Accumulate::Replace,
            scores,
            all,
        );
        vectorized(
            #[inline(always)]
            || {
                for (row, scores) in scores.chunks_exact_mut(all).enumerate() {
                    let (visible, later) = scores.split_at_mut(block.past + row / group + 1);
                    softmax(visible);
                    later.fill(0.0);
                }
            },
        );
        gemm(
            Matrix::new(scores, rows, all),
            Matrix::new(values, all, head_dim),
            1.0,
            Accumulate::Replace,
            outputs,
            head_dim,
        );
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = maximum(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let inverse = sum(scores, |weight| weight).recip();
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}
