//! Attention of a few new positions over a cache.
//!
//! What it costs is reading the cache, so the positions of one head are divided among cubes, until there are enough to
//! fill a device. Each computes partial outputs over its own positions,
//! which [`merge_kernel`] then combines.

use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Cube, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::span::{ROWS, attend_kernel};
use super::tile::TILE;
use super::{CUBES, Ranges, Tables, column_blocks, forward, launch_of, rotate};
use crate::attention::cached::CachedAttention;
use crate::attention::segments::{PlacedSegment, TABLE_HEAD};
use crate::attention::{AttentionShape, FirstKeys};
use crate::cube::{contiguous, empty_float, owned, units};

/// The most partial outputs that are combined.
const SPANS: usize = 64;

impl CachedAttention for Cube {
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
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let tables = Tables::new(cosines, sines, shape);
        let [key, value, sinks] = [key, value, sinks].map(contiguous);
        let table = contiguous(table);
        let cache = Cache {
            keys: owned(keys),
            values: owned(values),
            width: table.shape()[1],
            table,
        };
        let (count, dim) = units(&key.client, key.shape().num_elements() / 2);
        store_kernel::launch(
            &key.client.clone(),
            count,
            dim,
            key.clone().into_buffer_arg(),
            value.clone().into_buffer_arg(),
            tables.cosines.clone().into_buffer_arg(),
            tables.sines.clone().into_buffer_arg(),
            cache.keys.clone().into_buffer_arg(),
            cache.values.clone().into_buffer_arg(),
            cache.table.clone().into_buffer_arg(),
            segments.len(),
            cache.width,
            shape.kv_heads,
            shape.head_dim / 2,
            tables.half,
            cache.places(),
            cache.block_positions(),
        );
        let query = rotate::rotate(query, &tables, shape.head_dim, shape.scale);
        let new = segments[0].new;
        let prompts = new > ROWS
            && segments
                .iter()
                .all(|segment| segment.end() == new && segment.past == 0);
        let output = match prompts {
            // Equally long texts from their beginning: large tiles serve them better than spans do.
            true => {
                let shape = AttentionShape {
                    batch: segments.len(),
                    length: new,
                    keys: new,
                    ..shape
                };
                let key = rotate::rotate(key, &tables, shape.head_dim, 1.0);
                let ranges = Ranges::new(FirstKeys::OfSequence, shape, &query);
                forward::forward([&query, &key, &value, &sinks], &ranges, shape).0
            }
            false => attend([&query, &sinks], &cache, &segments, shape),
        };
        (output, cache.keys, cache.values)
    }
}

/// A cache, and where the segments of a step lie in it.
struct Cache {
    keys: CubeTensor,
    values: CubeTensor,
    /// `[segments, width]`, see [`Segments`](crate::attention::Segments).
    table: CubeTensor,
    width: usize,
}

impl Cache {
    /// Positions of a block.
    fn block_positions(&self) -> usize {
        self.keys.shape()[2]
    }

    /// Positions that all blocks have room for.
    fn places(&self) -> usize {
        self.keys.shape()[1] * self.block_positions()
    }
}

/// Outputs of queries that are rotated and scaled, over what their sequences hold.
fn attend(
    [query, sinks]: [&CubeTensor; 2],
    cache: &Cache,
    segments: &[PlacedSegment],
    shape: AttentionShape,
) -> CubeTensor {
    let AttentionShape {
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let tokens = shape.batch * shape.length;
    let of_all =
        |number: fn(&PlacedSegment) -> usize| segments.iter().map(number).max().unwrap_or(0);
    // Of the segment with the most new positions; cubes of others have nothing to do.
    let parts = (of_all(|segment| segment.new) * shape.group()).div_ceil(ROWS);
    let tasks = segments.len() * kv_heads * parts;
    // What the rows of a cube see with a window begins anywhere in a block.
    let window = shape.window.unwrap_or(usize::MAX);
    let positions = of_all(PlacedSegment::end).min(window.saturating_add(ROWS - 1 + TILE - 1));
    let blocks = positions.div_ceil(TILE);
    let span = blocks.div_ceil(CUBES.div_ceil(tasks).min(SPANS));
    let spans = blocks.div_ceil(span);
    let rows = tokens * heads;
    let partial = empty_float(query, [spans, rows, head_dim]);
    let [maxima, sums] = [(); 2].map(|()| empty_float(query, [spans, rows]));
    let (count, dim) = launch_of(spans, tasks);
    // SAFETY: positions, rows and values of heads are compared with their number before they are read or written.
    #[allow(unsafe_code)]
    unsafe {
        attend_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            query.clone().into_buffer_arg(),
            cache.keys.clone().into_buffer_arg(),
            cache.values.clone().into_buffer_arg(),
            partial.clone().into_buffer_arg(),
            maxima.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            cache.table.clone().into_buffer_arg(),
            tasks,
            parts,
            tokens,
            heads,
            kv_heads,
            head_dim / 2,
            cache.width,
            cache.places(),
            cache.block_positions(),
            window.min(u32::MAX as usize),
            span * TILE,
            column_blocks(head_dim),
        );
    }
    let output = empty_float(query, query.shape());
    let (count, dim) = units(&query.client, rows * head_dim);
    merge_kernel::launch(
        &query.client,
        count,
        dim,
        partial.into_buffer_arg(),
        maxima.into_buffer_arg(),
        sums.into_buffer_arg(),
        sinks.clone().into_buffer_arg(),
        output.clone().into_buffer_arg(),
        spans,
        heads,
        head_dim,
        shape.sinks,
    );
    output
}

/// The place of a position among all of the cache, where the blocks of its sequence are in the table from `blocks` on.
#[cube]
pub fn place_of(table: &[i32], blocks: usize, position: usize, block_positions: usize) -> usize {
    table[blocks + position / block_positions] as usize * block_positions
        + position % block_positions
}

/// Puts new keys, rotated, and values into the cache. A unit rotates value i of a head with value i + half, or copies two
/// neighbours of the values behind those.
#[cube(launch)]
fn store_kernel(
    key: &[f32],
    value: &[f32],
    cosines: &[f32],
    sines: &[f32],
    keys: &mut [f32],
    values: &mut [f32],
    table: &[i32],
    segments: usize,
    width: usize,
    kv_heads: usize,
    pairs: usize,
    half: usize,
    places: usize,
    block_positions: usize,
) {
    if ABSOLUTE_POS * 2 >= key.len() {
        terminate!();
    }
    let head = ABSOLUTE_POS / pairs;
    let i = ABSOLUTE_POS % pairs;
    let token = head / kv_heads;
    // Those of a step are few.
    let mut segment = 0usize;
    for later in 1..segments {
        if table[later * width + 2] as usize <= token {
            segment = later;
        }
    }
    let segment = segment * width;
    let position = table[segment] as usize + token - table[segment + 2] as usize;
    let place = place_of(table, segment + TABLE_HEAD, position, block_positions);
    let from = head * 2 * pairs;
    let to = (head % kv_heads * places + place) * 2 * pairs;
    values[to + 2 * i] = value[from + 2 * i];
    values[to + 2 * i + 1] = value[from + 2 * i + 1];
    if i < half {
        let angle = token * half % cosines.len() + i;
        let cosine = cosines[angle];
        let sine = sines[angle];
        let a = key[from + i];
        let b = key[from + i + half];
        keys[to + i] = a * cosine - b * sine;
        keys[to + i + half] = b * cosine + a * sine;
    } else {
        keys[to + 2 * i] = key[from + 2 * i];
        keys[to + 2 * i + 1] = key[from + 2 * i + 1];
    }
}

/// `Σ exp(maximum − largest) · output / Σ exp(maximum − largest) · sum` over the spans, where a sink is one more of them
/// without an output; a unit a value.
#[cube(launch)]
fn merge_kernel(
    partial: &[f32],
    maxima: &[f32],
    sums: &[f32],
    sinks: &[f32],
    output: &mut [f32],
    spans: usize,
    heads: usize,
    head_dim: usize,
    #[comptime] with_sinks: bool,
) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let row = ABSOLUTE_POS / head_dim;
    let rows = output.len() / head_dim;
    let mut largest = f32::new(f32::MIN);
    if comptime!(with_sinks) {
        largest = sinks[row % heads];
    }
    for span in 0..spans {
        largest = max(largest, maxima[span * rows + row]);
    }
    let mut total = 0.0f32;
    let mut sum = 0.0f32;
    if comptime!(with_sinks) {
        sum = (sinks[row % heads] - largest).exp();
    }
    for span in 0..spans {
        let factor = (maxima[span * rows + row] - largest).exp();
        total += factor * partial[span * output.len() + ABSOLUTE_POS];
        sum += factor * sums[span * rows + row];
    }
    output[ABSOLUTE_POS] = total / sum;
}
