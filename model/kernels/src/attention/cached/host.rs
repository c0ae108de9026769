//! The CPU kernel.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::{CachedAttention, first_seen};
use crate::attention::rows::{AttentionShape, RopeTables, scratch_slice};
use crate::attention::segments::PlacedSegment;
use crate::attention::shared::SharedAttention;
use crate::host::Host;
use crate::host::exp::exp;
use crate::host::gemm::{Accumulate, Matrix, gemm};
use crate::host::simd::{maximum, sum, vectorized};
use crate::host::spin_pool::for_each_init;

/// Minimum bytes of keys and values per thread.
const MIN_BYTES_PER_THREAD: usize = 1 << 17;

/// Rows of a block: pairs of a position and a query head. The scores of so many rows over some thousand positions stay
/// in the second level of the cache.
const BLOCK_ROWS: usize = 128;

/// Positions whose keys and values a product takes together. Where they do not lie side by side, they are copied
/// first, so that what is computed does not depend on where they lie.
const CHUNK: usize = 256;

/// New positions that are put into the cache together.
const STORED: usize = 64;

impl<B: Host> CachedAttention for B {
    fn cached_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        sinks: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        mut keys: FloatTensor<Self>,
        mut values: FloatTensor<Self>,
        _table: IntTensor<Self>,
        segments: Arc<[PlacedSegment]>,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let sinks = B::values(&sinks);
        let new = New {
            query: &B::values(&query),
            key: &B::values(&key),
            value: &B::values(&value),
            sinks: shape.sinks.then_some(&sinks[..]),
            tables: RopeTables {
                cosines: &B::values(&cosines),
                sines: &B::values(&sines),
                half: shape.rotary_dim / 2,
            },
            segments: &segments,
            window: shape.window.unwrap_or(usize::MAX),
            shape,
        };
        let (keys_now, values_now) = (B::values_mut(&mut keys), B::values_mut(&mut values));
        // Inside the thread pool as a whole: entering it takes about as long as a step of a single token.
        let output = rayon::scope(|_| {
            new.store(keys_now, Some(&mut *values_now));
            new.attend(keys_now, values_now)
        });
        (B::tensor(output, query.shape()), keys, values)
    }
}

impl<B: Host> SharedAttention for B {
    fn shared_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        mut keys: FloatTensor<Self>,
        segments: Arc<[PlacedSegment]>,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let new = New {
            query: &B::values(&query),
            key: &B::values(&key),
            value: &[],
            sinks: None,
            tables: RopeTables {
                cosines: &B::values(&cosines),
                sines: &B::values(&sines),
                half: shape.rotary_dim / 2,
            },
            segments: &segments,
            window: shape.window.unwrap_or(usize::MAX),
            shape,
        };
        let keys_now = B::values_mut(&mut keys);
        let output = rayon::scope(|_| {
            new.store(keys_now, None);
            new.attend(keys_now, keys_now)
        });
        (B::tensor(output, query.shape()), keys)
    }
}

/// Positions of a segment whose rows are computed together, for one key/value head.
#[derive(Debug, Clone, Copy)]
struct Block<'a> {
    segment: &'a PlacedSegment,
    kv_head: usize,
    /// The first of its new positions that belongs to the block, counted from the sequence's first.
    start: usize,
    positions: usize,
}

impl Block<'_> {
    /// The row of a position among all.
    fn row(&self, position: usize) -> usize {
        self.segment.row + position - self.segment.past
    }

    /// The positions of which its rows see anything.
    fn seen(&self, window: usize) -> Range<usize> {
        first_seen(self.start, window)..self.start + self.positions
    }
}

/// What a thread needs; kept from block to block.
#[derive(Default)]
struct Scratch {
    /// Queries and scores.
    rows: Vec<f32>,
    /// Keys or values that do not lie side by side.
    gathered: Vec<f32>,
}

/// The rows of a step.
struct New<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    sinks: Option<&'a [f32]>,
    tables: RopeTables<'a>,
    segments: &'a [PlacedSegment],
    /// The most positions that a query sees.
    window: usize,
    shape: AttentionShape,
}

impl New<'_> {
    /// Puts new keys, rotated, and values into the cache, `[kv_heads, places, head_dim]`.
    fn store(&self, keys: &mut [f32], values: Option<&mut [f32]>) {
        let AttentionShape {
            kv_heads, head_dim, ..
        } = self.shape;
        // Place, positions, and first row of what is put side by side.
        let mut pieces: Vec<(usize, usize, usize)> = Vec::with_capacity(self.segments.len());
        for segment in self.segments {
            let mut row = segment.row;
            for place in segment.places(segment.past..segment.end()) {
                for start in place.clone().step_by(STORED) {
                    let length = STORED.min(place.end - start);
                    pieces.push((start, length, row));
                    row += length;
                }
            }
        }
        pieces.sort_unstable();
        let of_head = keys.len() / kv_heads;
        let mut of_values = values.map(|values| values.chunks_exact_mut(of_head));
        let mut tasks = Vec::with_capacity(pieces.len() * kv_heads);
        for (kv_head, mut keys) in keys.chunks_exact_mut(of_head).enumerate() {
            let mut values = of_values.as_mut().and_then(Iterator::next);
            let mut before = 0;
            for &(place, length, row) in &pieces {
                let end = place + length;
                let (skipped, length) = ((place - before) * head_dim, length * head_dim);
                let keys = cut(&mut keys, skipped, length);
                let values = values.as_mut();
                let values = values.map(|values| cut(values, skipped, length));
                tasks.push((kv_head, row, keys, values));
                before = end;
            }
        }
        let threads = size_of_val(self.key) * 2 / MIN_BYTES_PER_THREAD;
        for_each_init(
            tasks,
            threads,
            || (),
            |(), (kv_head, row, keys, mut values)| {
                vectorized(
                    #[inline(always)]
                    || {
                        let from = |row: usize| (row * kv_heads + kv_head) * head_dim;
                        for (key, row) in keys.chunks_exact_mut(head_dim).zip(row..) {
                            key.copy_from_slice(&self.key[from(row)..][..head_dim]);
                            self.tables.rotate(key, row, 1.0);
                        }
                        if let Some(values) = values.as_deref_mut() {
                            for (value, row) in values.chunks_exact_mut(head_dim).zip(row..) {
                                value.copy_from_slice(&self.value[from(row)..][..head_dim]);
                            }
                        }
                    },
                );
            },
        );
    }

    /// The rows of each segment in blocks, and of each block those of every key/value head. The cut depends on the
    /// segment alone.
    fn blocks(&self) -> Vec<Block<'_>> {
        let AttentionShape { kv_heads, .. } = self.shape;
        let most = (BLOCK_ROWS / self.shape.group()).max(1);
        let mut blocks = Vec::with_capacity(self.segments.len() * kv_heads);
        for segment in self.segments {
            for start in (segment.past..segment.end()).step_by(most) {
                blocks.extend((0..kv_heads).map(|kv_head| Block {
                    segment,
                    kv_head,
                    start,
                    positions: most.min(segment.end() - start),
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
        let of_head = keys.len() / kv_heads;
        let columns = self.shape.group() * head_dim;
        let blocks = self.blocks();
        let seen = blocks.iter().map(|block| block.seen(self.window).len());
        let bytes = 2 * seen.sum::<usize>() * head_dim * size_of::<f32>();
        let mut outputs = vec![0.0; self.query.len()];
        let mut rest = &mut outputs[..];
        let places = blocks.iter().map(|block| {
            let place = rest.split_off_mut(..block.positions * columns);
            (*block, place.expect("the blocks cover the output"))
        });
        for_each_init(
            places.collect(),
            bytes / MIN_BYTES_PER_THREAD,
            Scratch::default,
            |scratch, (block, outputs)| {
                let head = block.kv_head * of_head..(block.kv_head + 1) * of_head;
                let cache = [&keys[head.clone()], &values[head]];
                self.block(block, cache, scratch, outputs);
            },
        );
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
    /// - `keys`, `values`: `[places, head_dim]`
    /// - `outputs`: `[positions, group · head_dim]`
    fn block(
        &self,
        block: Block<'_>,
        [keys, values]: [&[f32]; 2],
        scratch: &mut Scratch,
        outputs: &mut [f32],
    ) {
        let shape = self.shape;
        let (group, head_dim) = (shape.group(), shape.head_dim);
        let seen = block.seen(self.window);
        let (rows, all) = (block.positions * group, seen.len());
        let Scratch {
            rows: scratch,
            gathered,
        } = scratch;
        let (queries, scores) =
            scratch_slice(scratch, rows * (head_dim + all)).split_at_mut(rows * head_dim);

        vectorized(
            #[inline(always)]
            || {
                let packed = queries.chunks_exact_mut(group * head_dim);
                for (position, packed) in (block.start..).zip(packed) {
                    let row = block.row(position);
                    let from = row * shape.width() + block.kv_head * group * head_dim;
                    packed.copy_from_slice(&self.query[from..][..group * head_dim]);
                    for head in packed.chunks_exact_mut(head_dim) {
                        self.tables.rotate(head, row, shape.scale);
                    }
                }
            },
        );
        let queries = Matrix::new(queries, rows, head_dim);
        for chunk in chunks(seen.clone()) {
            let columns = chunk.start - seen.start..chunk.end - seen.start;
            let keys = side_by_side(keys, block.segment, chunk, head_dim, gathered);
            let keys = Matrix::new(keys, columns.len(), head_dim);
            let scores = &mut scores[columns.start..];
            gemm(queries, keys.t(), 1.0, Accumulate::Replace, scores, all);
        }
        vectorized(
            #[inline(always)]
            || {
                for (row, scores) in scores.chunks_exact_mut(all).enumerate() {
                    let position = block.start + row / group;
                    let (visible, later) = scores.split_at_mut(position + 1 - seen.start);
                    let first = first_seen(position, self.window) - seen.start;
                    let (before, visible) = visible.split_at_mut(first);
                    let head = block.kv_head * group + row % group;
                    softmax(visible, self.sinks.map(|sinks| sinks[head]));
                    before.fill(0.0);
                    later.fill(0.0);
                }
            },
        );
        for chunk in chunks(seen.clone()) {
            let columns = chunk.start - seen.start..chunk.end - seen.start;
            let values = side_by_side(values, block.segment, chunk, head_dim, gathered);
            let values = Matrix::new(values, columns.len(), head_dim);
            let weights = Matrix::strided(&scores[columns.start..], rows, columns.len(), all);
            let into = match columns.start {
                0 => Accumulate::Replace,
                _ => Accumulate::Add,
            };
            gemm(weights, values, 1.0, into, outputs, head_dim);
        }
    }
}

/// The next `length` values after those that are skipped.
fn cut<'a>(rest: &mut &'a mut [f32], skipped: usize, length: usize) -> &'a mut [f32] {
    let cut = rest.split_off_mut(..skipped + length);
    &mut cut.expect("places of the cache")[skipped..]
}

/// Positions in parts of [`CHUNK`], counted from the sequence's first.
fn chunks(positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = positions;
    let starts = (start / CHUNK * CHUNK..end).step_by(CHUNK);
    starts.map(move |chunk| start.max(chunk)..end.min(chunk + CHUNK))
}

/// The keys or values of some positions of a segment, from those of all places of a head.
fn side_by_side<'a>(
    cached: &'a [f32],
    segment: &PlacedSegment,
    positions: Range<usize>,
    head_dim: usize,
    gathered: &'a mut Vec<f32>,
) -> &'a [f32] {
    let mut places = segment.places(positions.clone());
    let of = |place: Range<usize>| &cached[place.start * head_dim..place.end * head_dim];
    let first = places.next().expect("a place for each position");
    if first.len() == positions.len() {
        return of(first);
    }
    gathered.clear();
    gathered.extend_from_slice(of(first));
    for place in places {
        gathered.extend_from_slice(of(place));
    }
    gathered
}

#[inline(always)]
fn softmax(scores: &mut [f32], sink: Option<f32>) {
    let mut largest = maximum(scores);
    if let Some(sink) = sink {
        largest = largest.max(sink);
    }
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let mut total = sum(scores, |weight| weight);
    if let Some(sink) = sink {
        total += exp(sink - largest);
    }
    let inverse = total.recip();
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}
