//! Attention of new positions over a cache, to which they are added in place.

use std::mem;
use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};
use rayon::prelude::*;

use super::reference::masked_attention;
use super::reference::split_heads;
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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, on_threads, values, wave};

    type Attention =
        fn(Tensor<2>, Tensor<2>, Tensor<2>, &Rotary, [&mut Tensor<4>; 2], &Segments) -> Tensor<2>;

    /// Sequences of a cache, heads, key/value heads, values of a head.
    type Sizes = [usize; 4];

    fn segment((sequence, past, new): (usize, usize, usize)) -> Segment {
        Segment {
            sequence,
            past,
            new,
        }
    }

    /// Outputs for new positions, and the cache after them. The inputs of a segment depend on its sequence alone.
    fn run(
        attention: Attention,
        [sequences, heads, kv_heads, head_dim]: Sizes,
        list: &[Segment],
        device: &Device,
    ) -> [Vec<f32>; 3] {
        let longest = list.iter().map(Segment::end).max().unwrap();
        let table = Rotary::new(0, longest, head_dim, 1e4, device);
        let input = |width: usize, phase: f32| {
            let of = |segment: &Segment| {
                wave(
                    [segment.new, width],
                    phase + segment.sequence as f32,
                    device,
                )
            };
            Tensor::cat(list.iter().map(of).collect(), 0)
        };
        let query = input(heads * head_dim, 0.1);
        let [key, value] = [0.4, 0.7].map(|phase| input(kv_heads * head_dim, phase));
        let positions = list.iter().flat_map(|segment| segment.past..segment.end());
        let positions: Vec<i32> = positions.map(|position| position as i32).collect();
        let rotary = table.at(&Tensor::from_ints(positions.as_slice(), device));
        // What is in it depends on its size.
        let capacity = (longest + 2).next_multiple_of(128);
        let cache = [sequences, kv_heads, capacity, head_dim];
        let (mut keys, mut values_) = (wave(cache, 0.2, device), wave(cache, 0.9, device));
        let cache = [&mut keys, &mut values_];
        let segments = Segments::new(list.to_vec(), device);
        let output = attention(query, key, value, &rotary, cache, &segments);
        [values(output), values(keys), values(values_)]
    }

    on_every_device!(
        a_second_position,
        equals_the_reference,
        long_pasts_wide_heads_and_long_pieces,
        a_segment_does_not_depend_on_the_others,
        any_number_of_threads_gives_the_same_bits,
    );

    // Its scores are 0 and ln 3, its weights 1/4 and 3/4.
    fn a_second_position(device: Device) {
        let row = |row: [f32; 2]| Tensor::<2>::from_floats([row], &device);
        // Those of another sequence stand before.
        let cache =
            |rows: [[f32; 2]; 3]| Tensor::<4>::from_floats([[[[7.0; 2]; 3]], [rows]], &device);
        let mut keys = cache([[0.0, 0.0], [9.0, 9.0], [9.0, 9.0]]);
        let mut so_far = cache([[4.0, 0.0], [9.0, 9.0], [9.0, 9.0]]);
        let output = cached_attention(
            row([2f32.sqrt(), 0.0]),
            row([3f32.ln(), 0.0]),
            row([0.0, 8.0]),
            &Rotary::new(1, 1, 2, 1e4, &device),
            [&mut keys, &mut so_far],
            &Segments::new(vec![segment((1, 1, 1))], &device),
        );
        assert_close("output", &values(output), &[1.0, 6.0], 5e-7).unwrap();
        assert_eq!(values(so_far)[6..], [4.0, 0.0, 0.0, 8.0, 9.0, 9.0]);
        // ln 3 · (cos 1, sin 1)
        let expected = [0.0, 0.0, 0.593_582_8, 0.924_450_4, 9.0, 9.0];
        assert_close("keys", &values(keys)[6..], &expected, 3e-7).unwrap();
    }

    fn check(sizes: Sizes, list: &[Segment], device: &Device) -> Result<(), TestCaseError> {
        let (fast, slow) = (
            run(cached_attention, sizes, list, device),
            run(cached_attention_reference, sizes, list, device),
        );
        for (name, (fast, slow)) in ["output", "keys", "values"]
            .iter()
            .zip(fast.iter().zip(&slow))
        {
            assert_close(name, fast, slow, 5e-6)?;
        }
        Ok(())
    }

    fn equals_the_reference(device: Device) {
        proptest!(ProptestConfig::with_cases(24), |(
            lengths in prop::collection::vec((0usize..40, 1usize..24), 1..5),
            first in 0usize..5,
            (kv_heads, group, half) in (1usize..3, 1usize..4, 1usize..9),
        )| {
            // In another order than in the cache, which has one more.
            let sequences = lengths.len() + 1;
            let list = lengths.iter().enumerate().map(|(number, &(past, new))| {
                segment(((first + 2 * number) % sequences, past, new))
            });
            let mut list: Vec<Segment> = list.collect();
            let mut seen = Vec::new();
            list.retain(|segment| {
                let fresh = !seen.contains(&segment.sequence);
                seen.push(segment.sequence);
                fresh
            });
            check([sequences, kv_heads * group, kv_heads, 2 * half], &list, &device)?;
        });
    }

    fn long_pasts_wide_heads_and_long_pieces(device: Device) {
        for (past, new, head_dim) in [
            (700, 5, 80),
            (127, 2, 256),
            (4500, 1, 8),
            (0, 300, 16),
            (90, 150, 10),
        ] {
            let list = [segment((1, past, new)), segment((0, past / 3, 1))];
            check([2, 6, 2, head_dim], &list, &device).unwrap();
        }
        // Prompts of one length.
        let list = [2, 0, 1].map(|sequence| segment((sequence, 0, 70)));
        check([3, 6, 2, 16], &list, &device).unwrap();
    }

    fn a_segment_does_not_depend_on_the_others(device: Device) {
        let sizes = [3, 6, 2, 24];
        let all = [
            segment((2, 40, 3)),
            segment((0, 0, 70)),
            segment((1, 90, 1)),
        ];
        let rows = |attention, list: &[Segment]| run(attention, sizes, list, &device)[0].clone();
        let together = rows(cached_attention, &all);
        // How many spans the positions are cut into on a GPU depends on the longest sequence.
        let tolerance = match kernels(&device) {
            Kernels::Cube => 2e-6,
            Kernels::Slices | Kernels::None => 0.0,
        };
        let mut start = 0;
        for segment in all {
            let end = start + segment.new * 6 * 24;
            let alone = rows(cached_attention, &[segment]);
            assert_close("alone", &together[start..end], &alone, tolerance).unwrap();
            start = end;
        }
    }

    fn any_number_of_threads_gives_the_same_bits(device: Device) {
        let list = [segment((2, 700, 2)), segment((0, 3, 200))];
        on_threads(|| run(cached_attention, [3, 4, 2, 32], &list, &device).concat());
    }

    #[test]
    #[should_panic(expected = "a step has new positions")]
    fn a_segment_is_not_empty() {
        let device = firebox_runtime::testing::devices().remove(0);
        let _ = Segments::new(vec![segment((0, 3, 0))], &device);
    }

    #[test]
    #[should_panic(expected = "a cache [1, 1, 5, 4] and segments")]
    fn a_sequence_has_one_segment() {
        let device = firebox_runtime::testing::devices().remove(0);
        let twice = vec![segment((0, 0, 1)), segment((0, 1, 1))];
        let x = || wave([2, 4], 0.0, &device);
        let mut cache = [(); 2].map(|()| wave([1, 1, 5, 4], 0.0, &device));
        let _ = cached_attention(
            x(),
            x(),
            x(),
            &Rotary::new(0, 2, 4, 1e4, &device),
            cache.each_mut(),
            &Segments::new(twice, &device),
        );
    }
}
