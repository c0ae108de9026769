//! Attention of a few new positions over a cache.
//!
//! What it costs is reading the cache, so the positions of one head are divided among cubes, until there are enough to
//! fill a device. Each answers for its own positions; the answers are then put together ([`merge_kernel`]).

use burn::backend::tensor::FloatTensor;
use burn::backend::{Cube, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tile::{
    DEPTH, Head, LEFT, PITCH, Pair, QUAD, Quad, STRIP, TILE, UNITS, bring_by_depth, number_of_cube,
};
use super::{CUBES, Tables, launch_of, strips, turn};
use crate::kernels::attention::AttentionShape;
use crate::kernels::attention::cached::CachedAttention;
use crate::kernels::cube::{contiguous, empty_float, owned, units};

/// Rows that a cube answers for: pairs of a new position and one of the query heads that share the keys.
const ROWS: usize = UNITS / SIDE;
/// Units that share a row of scores.
const SIDE: usize = TILE / QUAD;
/// Positions of a block that a line of units multiplies by their weights.
const SHARE: usize = TILE / ROWS;
/// The most answers that are put together.
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
        shape: AttentionShape,
        past: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let tables = Tables {
            cosines: contiguous(cosines),
            sines: contiguous(sines),
        };
        let (key, value) = (contiguous(key), contiguous(value));
        let (keys, values) = (owned(contiguous(keys)), owned(contiguous(values)));
        let capacity = keys.shape()[2];
        let (count, dim) = units(&key.client, key.shape().num_elements() / 2);
        store_kernel::launch(
            &key.client.clone(),
            count,
            dim,
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            tables.cosines.clone().into_buffer_arg(),
            tables.sines.clone().into_buffer_arg(),
            keys.clone().into_buffer_arg(),
            values.clone().into_buffer_arg(),
            shape.length,
            shape.kv_heads,
            shape.head_dim / 2,
            capacity,
            past,
        );
        let query = turn::turn(query, &tables, shape.scale());
        let output = attend(&query, &keys, &values, shape, past);
        (output, keys, values)
    }
}

/// Answers of queries that are turned and scaled, over `past` positions and their own.
fn attend(
    query: &CubeTensor,
    keys: &CubeTensor,
    values: &CubeTensor,
    shape: AttentionShape,
    past: usize,
) -> CubeTensor {
    let AttentionShape {
        batch,
        length,
        heads,
        kv_heads,
        head_dim,
    } = shape;
    let tasks = batch * kv_heads * (length * shape.group()).div_ceil(ROWS);
    let blocks = (past + length).div_ceil(TILE);
    let span = blocks.div_ceil(CUBES.div_ceil(tasks).min(SPANS));
    let spans = blocks.div_ceil(span);
    let rows = batch * length * heads;
    let answers = empty_float(query, [spans, rows, head_dim]);
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
            answers.clone().into_buffer_arg(),
            maxima.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            batch,
            length,
            heads,
            kv_heads,
            head_dim / 2,
            keys.shape()[2],
            past,
            span * TILE,
            strips(head_dim),
        );
    }
    let output = empty_float(query, query.shape());
    let (count, dim) = units(&query.client, rows * head_dim);
    merge_kernel::launch(
        &query.client,
        count,
        dim,
        answers.into_buffer_arg(),
        maxima.into_buffer_arg(),
        sums.into_buffer_arg(),
        output.clone().into_buffer_arg(),
        spans,
        head_dim,
    );
    output
}

/// Puts new keys, turned, and values into the cache. A unit turns value i of a head with value i + head_dim/2.
#[cube(launch)]
fn store_kernel(
    key: &[f32],
    value: &[f32],
    cosines: &[f32],
    sines: &[f32],
    keys: &mut [f32],
    values: &mut [f32],
    length: usize,
    kv_heads: usize,
    half: usize,
    capacity: usize,
    past: usize,
) {
    if ABSOLUTE_POS * 2 >= key.len() {
        terminate!();
    }
    let head = ABSOLUTE_POS / half;
    let i = ABSOLUTE_POS % half;
    let token = head / kv_heads;
    let position = token % length;
    let cosine = cosines[position * half + i];
    let sine = sines[position * half + i];
    let from = head * 2 * half + i;
    let a = key[from];
    let b = key[from + half];
    let place = (token / length * kv_heads + head % kv_heads) * capacity + past + position;
    let to = place * 2 * half + i;
    keys[to] = a * cosine - b * sine;
    keys[to + half] = b * cosine + a * sine;
    values[to] = value[from];
    values[to + half] = value[from + half];
}

/// The number of a row among all: `[batch, length, heads]`.
#[cube]
fn row_of(kv_head: usize, row: usize, length: usize, heads: usize, kv_heads: usize) -> usize {
    let group = heads / kv_heads;
    let token = kv_head / kv_heads * length + row / group;
    token * heads + kv_head % kv_heads * group + row % group
}

/// A cube some rows of one head of the cache, over a span of its positions. The answers are not divided by the sums
/// yet.
///
/// For the scores the units stand in 8 lines of 16, a line a row and a unit four positions of a block. For the answers
/// a line takes eight positions of a block, of all rows, and a unit some pairs of their values, so that each value is
/// read once.
#[cube(launch_unchecked)]
fn attend_kernel(
    query: &[f32],
    keys: &[Pair],
    values: &[Pair],
    answers: &mut [f32],
    maxima: &mut [f32],
    sums: &mut [f32],
    batch: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    pairs: usize,
    capacity: usize,
    past: usize,
    span: usize,
    #[comptime] strips: usize,
) {
    let all_rows = length * (heads / kv_heads);
    let parts = all_rows.div_ceil(ROWS);
    let number = number_of_cube();
    if number >= batch * kv_heads * parts {
        terminate!();
    }
    let kv_head = number / parts;
    let first_row = number % parts * ROWS;
    let rows = min(ROWS, all_rows - first_row);
    let cache = Head {
        start: kv_head * capacity * pairs,
        stride: pairs,
        length: past + length,
        pairs,
    };
    let width = pairs * 2;
    let unit = UNIT_POS as usize;
    let line = unit / SIDE;
    let place = unit % SIDE;
    // Lines behind the last row compute it once more, and write nothing.
    let row = first_row + min(line, rows - 1);
    let visible = past + row / (heads / kv_heads) + 1;
    let row = row_of(kv_head, row, length, heads, kv_heads);

    let mut tile = Shared::<[Quad]>::new_slice(LEFT);
    let mut queries = Shared::<[f32]>::new_slice(ROWS * DEPTH);
    let mut weights = Shared::<[f32]>::new_slice(ROWS * TILE);
    let mut factors = Shared::<[f32]>::new_slice(ROWS);
    let mut shared = Shared::<[f32]>::new_slice(UNITS * 2);
    let mut found = Array::<Pair>::new(comptime!(ROWS * strips));
    #[unroll]
    for place in 0..ROWS * strips {
        found[place] = Pair::new(0.0f32);
    }
    let mut maximum = f32::new(f32::MIN);
    let mut sum = 0.0f32;

    let mut start = CUBE_POS_X as usize * span;
    let end = min(start + span, past + length);
    while start < end {
        let mut scores = Quad::new(0.0f32);
        let mut depth = 0usize;
        while depth < pairs {
            bring_by_depth(keys, &cache, start, depth, &mut tile);
            let column = depth * 2 + place;
            let mut value = 0.0f32;
            if column < width {
                value = query[row * width + column];
            }
            queries[unit] = value;
            sync_cube();
            for step in 0..DEPTH {
                scores += Quad::new(queries[line * DEPTH + step]) * tile[step * PITCH + place];
            }
            sync_cube();
            depth += DEPTH / 2;
        }

        let mut largest = maximum;
        #[unroll]
        for c in 0..QUAD {
            if start + place * QUAD + c < visible {
                largest = max(largest, scores.extract(c));
            }
        }
        shared[unit] = largest;
        sync_cube();
        for other in 0..SIDE {
            largest = max(largest, shared[line * SIDE + other]);
        }
        let factor = (maximum - largest).exp();
        maximum = largest;
        sum *= factor;
        #[unroll]
        for c in 0..QUAD {
            // A row need not see anything of a span.
            let hidden = start + place * QUAD + c >= visible;
            let weight = select(hidden, 0.0f32, (scores.extract(c) - largest).exp());
            sum += weight;
            weights[line * TILE + place * QUAD + c] = weight;
        }
        if place == 0 {
            factors[line] = factor;
        }
        sync_cube();

        #[unroll]
        for row in 0..ROWS {
            if row < rows {
                let factor = Pair::new(factors[row]);
                #[unroll]
                for strip in 0..strips {
                    found[row * strips + strip] *= factor;
                }
            }
        }
        for step in 0..SHARE {
            let of_block = line * SHARE + step;
            let position = start + of_block;
            if position < cache.length {
                #[unroll]
                for strip in 0..strips {
                    let pair = strip * SIDE + place;
                    let mut value = Pair::new(0.0f32);
                    if pair < pairs {
                        value = values[cache.start + position * pairs + pair];
                    }
                    #[unroll]
                    for row in 0..ROWS {
                        if row < rows {
                            found[row * strips + strip] +=
                                Pair::new(weights[row * TILE + of_block]) * value;
                        }
                    }
                }
            }
        }
        start += TILE;
    }

    // One after the other: the sums of weights of every row, then each strip of its answers.
    let of_span = CUBE_POS_X as usize * (batch * length * heads);
    shared[unit] = sum;
    sync_cube();
    if place == 0 && line < rows {
        let mut total = 0.0f32;
        for other in 0..SIDE {
            total += shared[line * SIDE + other];
        }
        maxima[of_span + row] = maximum;
        sums[of_span + row] = total;
    }
    #[unroll]
    for own in 0..ROWS {
        if own < rows {
            let to = of_span + row_of(kv_head, first_row + own, length, heads, kv_heads);
            #[unroll]
            for strip in 0..strips {
                sync_cube();
                let both = found[own * strips + strip];
                shared[unit * 2] = both.extract(0usize);
                shared[unit * 2 + 1] = both.extract(1usize);
                sync_cube();
                let column = strip * STRIP + unit;
                if unit < STRIP && column < width {
                    let mut total = 0.0f32;
                    for other in 0..ROWS {
                        total += shared[other * STRIP + unit];
                    }
                    answers[to * width + column] = total;
                }
            }
        }
    }
}

/// `Σ exp(maximum − largest) · answer / Σ exp(maximum − largest) · sum` over the spans; a unit a value.
#[cube(launch)]
fn merge_kernel(
    answers: &[f32],
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
    let mut answer = 0.0f32;
    let mut sum = 0.0f32;
    for span in 0..spans {
        let factor = (maxima[span * rows + row] - largest).exp();
        answer += factor * answers[span * output.len() + ABSOLUTE_POS];
        sum += factor * sums[span * rows + row];
    }
    output[ABSOLUTE_POS] = answer / sum;
}
