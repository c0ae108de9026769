//! Outputs of a few rows over a span of a cache's positions.

use cubecl::prelude::*;

use super::cached::place_of;
use super::tile::{
    BLOCK_COLUMNS, DEPTH, Float2, Float4, LEFT, PITCH, TILE, UNITS, VECTOR, number_of_cube,
};
use crate::attention::segments::TABLE_HEAD;

/// Rows that a cube computes outputs of: pairs of a new position and one of the query heads that share the keys.
pub const ROWS: usize = UNITS / SIDE;
/// Units of a line: as many as a block of scores has vectors, and as a block of columns of values has pairs.
const SIDE: usize = TILE / VECTOR;
const _: () = assert!(SIDE == BLOCK_COLUMNS / 2);
/// Positions of a block that a line of units multiplies by their weights.
const SHARE: usize = TILE / ROWS;

/// The number of a row among all: `[tokens, heads]`.
#[cube]
fn row_of(first_token: usize, kv_head: usize, row: usize, group: usize, heads: usize) -> usize {
    (first_token + row / group) * heads + kv_head * group + row % group
}

/// A step's values of the keys of a block, each value's positions side by side; zeros from `count` on. A unit brings four
/// positions, from these places.
#[cube]
fn bring_keys(
    keys: &[Float2],
    places: &Array<usize>,
    count: usize,
    depth: usize,
    pairs: usize,
    tile: &mut Shared<[Float4]>,
) {
    let line = UNIT_POS as usize % (DEPTH / 2);
    let rows = UNIT_POS as usize / (DEPTH / 2);
    let pair = depth + line;
    let mut even = Float4::new(0.0f32);
    let mut odd = Float4::new(0.0f32);
    #[unroll]
    for i in 0..VECTOR {
        if rows * VECTOR + i < count && pair < pairs {
            let values = keys[places[i] * pairs + pair];
            even.insert(i, values.extract(0usize));
            odd.insert(i, values.extract(1usize));
        }
    }
    tile[line * 2 * PITCH + rows] = even;
    tile[(line * 2 + 1) * PITCH + rows] = odd;
}

/// A cube some rows of one head of the cache, over a span of its positions. The outputs are not divided by the sums
/// yet.
///
/// For the scores the units stand in 8 lines of 16, a line a row and a unit four positions of a block. For the outputs
/// a line takes eight positions of a block, of all rows, and a unit some pairs of their values, so that each value is
/// read once.
#[cube(launch_unchecked)]
pub fn attend_kernel(
    query: &[f32],
    keys: &[Float2],
    values: &[Float2],
    outputs: &mut [f32],
    maxima: &mut [f32],
    sums: &mut [f32],
    table: &[i32],
    tasks: usize,
    parts: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    pairs: usize,
    table_width: usize,
    places: usize,
    block_positions: usize,
    window: usize,
    span: usize,
    #[comptime] column_blocks: usize,
) {
    let number = number_of_cube();
    if number >= tasks {
        terminate!();
    }
    let group = heads / kv_heads;
    let segment = number / (kv_heads * parts) * table_width;
    let kv_head = number / parts % kv_heads;
    let past = table[segment] as usize;
    let new = table[segment + 1] as usize;
    let first_token = table[segment + 2] as usize;
    let blocks = segment + TABLE_HEAD;
    let first_row = number % parts * ROWS;
    let all_rows = new * group;
    if first_row >= all_rows {
        terminate!();
    }
    let rows = min(ROWS, all_rows - first_row);
    // Behind the last position that any of the rows sees.
    let length = past + (first_row + rows - 1) / group + 1;
    let head = kv_head * places;
    let width = pairs * 2;
    let unit = UNIT_POS as usize;
    let line = unit / SIDE;
    let place = unit % SIDE;
    // Lines behind the last row compute it once more, and write nothing.
    let row = first_row + min(line, rows - 1);
    let visible = past + row / group + 1;
    let first_visible = visible - min(window, visible);
    let row = row_of(first_token, kv_head, row, group, heads);

    let mut tile = Shared::<[Float4]>::new_slice(LEFT);
    let mut queries = Shared::<[f32]>::new_slice(ROWS * DEPTH);
    let mut weights = Shared::<[f32]>::new_slice(ROWS * TILE);
    let mut factors = Shared::<[f32]>::new_slice(ROWS);
    let mut shared = Shared::<[f32]>::new_slice(UNITS * 2);
    let mut found = Array::<Float2>::new(comptime!(ROWS * column_blocks));
    #[unroll]
    for place in 0..ROWS * column_blocks {
        found[place] = Float2::new(0.0f32);
    }
    let mut maximum = f32::new(f32::MIN);
    let mut sum = 0.0f32;

    // Spans are counted from the block in which what the first row sees begins.
    let first_end = past + first_row / group + 1;
    let mut start = (first_end - min(window, first_end)) / TILE * TILE;
    start += CUBE_POS_X as usize * span;
    let end = min(start + span, length);
    let mut key_places = Array::<usize>::new(VECTOR);
    while start < end {
        #[unroll]
        for i in 0..VECTOR {
            let position = start + unit / (DEPTH / 2) * VECTOR + i;
            key_places[i] = 0usize;
            if position < length {
                key_places[i] = head + place_of(table, blocks, position, block_positions);
            }
        }
        let count = length - start;
        let mut scores = Float4::new(0.0f32);
        let mut depth = 0usize;
        while depth < pairs {
            bring_keys(keys, &key_places, count, depth, pairs, &mut tile);
            let column = depth * 2 + place;
            let mut value = 0.0f32;
            if column < width {
                value = query[row * width + column];
            }
            queries[unit] = value;
            sync_cube();
            for step in 0..DEPTH {
                scores += Float4::new(queries[line * DEPTH + step]) * tile[step * PITCH + place];
            }
            sync_cube();
            depth += DEPTH / 2;
        }

        let mut largest = maximum;
        #[unroll]
        for c in 0..VECTOR {
            let position = start + place * VECTOR + c;
            if position < visible && position >= first_visible {
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
        for c in 0..VECTOR {
            // A row need not see anything of a span.
            let position = start + place * VECTOR + c;
            let hidden = position >= visible || position < first_visible;
            let weight = select(hidden, 0.0f32, (scores.extract(c) - largest).exp());
            sum += weight;
            weights[line * TILE + place * VECTOR + c] = weight;
        }
        if place == 0 {
            factors[line] = factor;
        }
        sync_cube();

        #[unroll]
        for row in 0..ROWS {
            if row < rows {
                let factor = Float2::new(factors[row]);
                #[unroll]
                for column_block in 0..column_blocks {
                    found[row * column_blocks + column_block] *= factor;
                }
            }
        }
        for step in 0..SHARE {
            let of_block = line * SHARE + step;
            let position = start + of_block;
            if position < length {
                let from = (head + place_of(table, blocks, position, block_positions)) * pairs;
                #[unroll]
                for column_block in 0..column_blocks {
                    let pair = column_block * SIDE + place;
                    let mut value = Float2::new(0.0f32);
                    if pair < pairs {
                        value = values[from + pair];
                    }
                    #[unroll]
                    for row in 0..ROWS {
                        if row < rows {
                            found[row * column_blocks + column_block] +=
                                Float2::new(weights[row * TILE + of_block]) * value;
                        }
                    }
                }
            }
        }
        start += TILE;
    }

    // One after the other: the sums of weights of every row, then each block of columns of its outputs.
    let of_span = CUBE_POS_X as usize * (tokens * heads);
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
            let to = of_span + row_of(first_token, kv_head, first_row + own, group, heads);
            #[unroll]
            for column_block in 0..column_blocks {
                sync_cube();
                let both = found[own * column_blocks + column_block];
                shared[unit * 2] = both.extract(0usize);
                shared[unit * 2 + 1] = both.extract(1usize);
                sync_cube();
                let column = column_block * BLOCK_COLUMNS + unit;
                if unit < BLOCK_COLUMNS && column < width {
                    let mut total = 0.0f32;
                    for other in 0..ROWS {
                        total += shared[other * BLOCK_COLUMNS + unit];
                    }
                    outputs[to * width + column] = total;
                }
            }
        }
    }
}
