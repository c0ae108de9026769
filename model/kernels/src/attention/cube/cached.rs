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
use crate::attention::{AttentionShape, FirstKeys, Segment};
use crate::cube::{contiguous, empty_float, owned, units};

/// The most partial outputs that are combined.
const SPANS: usize = 64;

impl CachedAttention for Cube {
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
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let tables = Tables {
            cosines: contiguous(cosines),
            sines: contiguous(sines),
        };
        let (key, value) = (contiguous(key), contiguous(value));
        let (keys, values) = (owned(keys), owned(values));
        let table = contiguous(table);
        let capacity = keys.shape()[2];
        let (count, dim) = units(&key.client, key.shape().num_elements() / 2);
        store_kernel::launch(
            &key.client.clone(),
            count,
            dim,
            key.clone().into_buffer_arg(),
            value.clone().into_buffer_arg(),
            tables.cosines.clone().into_buffer_arg(),
            tables.sines.clone().into_buffer_arg(),
            keys.clone().into_buffer_arg(),
            values.clone().into_buffer_arg(),
            table.clone().into_buffer_arg(),
            segments.len(),
            shape.kv_heads,
            shape.head_dim / 2,
            capacity,
        );
        let query = rotate::rotate(query, &tables, shape.scale());
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
                    ..shape
                };
                let key = rotate::rotate(key, &tables, 1.0);
                let ranges = Ranges::new(FirstKeys::OfSequence, &query);
                forward::forward(&query, &key, &value, &ranges, shape).0
            }
            false => attend(&query, [&keys, &values], &table, &segments, shape),
        };
        (output, keys, values)
    }
}

/// Outputs of queries that are rotated and scaled, over what their sequences hold.
fn attend(
    query: &CubeTensor,
    [keys, values]: [&CubeTensor; 2],
    table: &CubeTensor,
    segments: &[Segment],
    shape: AttentionShape,
) -> CubeTensor {
    let AttentionShape {
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let tokens = shape.batch * shape.length;
    let of_all = |number: fn(&Segment) -> usize| segments.iter().map(number).max().unwrap_or(0);
    // Of the segment with the most new positions; cubes of others have nothing to do.
    let parts = (of_all(|segment| segment.new) * shape.group()).div_ceil(ROWS);
    let tasks = segments.len() * kv_heads * parts;
    let blocks = of_all(Segment::end).div_ceil(TILE);
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
            keys.clone().into_buffer_arg(),
            values.clone().into_buffer_arg(),
            partial.clone().into_buffer_arg(),
            maxima.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            table.clone().into_buffer_arg(),
            tasks,
            parts,
            tokens,
            heads,
            kv_heads,
            head_dim / 2,
            keys.shape()[2],
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
        output.clone().into_buffer_arg(),
        spans,
        head_dim,
    );
    output
}

/// Puts new keys, rotated, and values into the cache. A unit rotates value i of a head with value i + head_dim/2.
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
    kv_heads: usize,
    half: usize,
    capacity: usize,
) {
    if ABSOLUTE_POS * 2 >= key.len() {
        terminate!();
    }
    let head = ABSOLUTE_POS / half;
    let i = ABSOLUTE_POS % half;
    let token = head / kv_heads;
    // Those of a step are few.
    let mut segment = 0usize;
    for later in 1..segments {
        if table[later * 4 + 3] as usize <= token {
            segment = later;
        }
    }
    let sequence = table[segment * 4] as usize;
    let past = table[segment * 4 + 1] as usize;
    let position = past + token - table[segment * 4 + 3] as usize;
    let angle = token * half % cosines.len() + i;
    let cosine = cosines[angle];
    let sine = sines[angle];
    let from = head * 2 * half + i;
    let a = key[from];
    let b = key[from + half];
    let place = (sequence * kv_heads + head % kv_heads) * capacity + position;
    let to = place * 2 * half + i;
    keys[to] = a * cosine - b * sine;
    keys[to + half] = b * cosine + a * sine;
    values[to] = value[from];
    values[to + half] = value[from + half];
}

/// `Σ exp(maximum − largest) · output / Σ exp(maximum − largest) · sum` over the spans; a unit a value.
#[cube(launch)]
fn merge_kernel(
    partial: &[f32],
    maxima: &[f32],
    sums: &[f32],
    output: &mut [f32],
    spans: usize,
    head_dim: usize,
) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let row = ABSOLUTE_POS / head_dim;
    let rows = output.len() / head_dim;
    let mut largest = f32::new(f32::MIN);
    for span in 0..spans {
        largest = max(largest, maxima[span * rows + row]);
    }
    let mut total = 0.0f32;
    let mut sum = 0.0f32;
    for span in 0..spans {
        let factor = (maxima[span * rows + row] - largest).exp();
        total += factor * partial[span * output.len() + ABSOLUTE_POS];
        sum += factor * sums[span * rows + row];
    }
    output[ABSOLUTE_POS] = total / sum;
}
