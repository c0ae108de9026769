//! Outputs, block by block, with a running maximum and sum (FlashAttention-2, arXiv 2307.08691, algorithm 1).

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tile::{
    Float2, Float4, Head, LEFT, RIGHT, SCORES, SIDE, TILE, VECTOR, accumulate, column_of_unit,
    first_block, first_from_the_end, first_key, is_hidden, number_of_cube, row_of_unit, scores,
    write,
};
use super::{Limits, Ranges, column_blocks, launch_of};
use crate::attention::AttentionShape;
use crate::cube::empty_float;

/// Outputs, and of every row of scores ln Σ exp(score).
///
/// # Shapes
///
/// - `query`: `[batch, length, heads, head_dim]`, rotated and scaled
/// - `key`, `value`: `[batch, length, kv_heads, head_dim]`, keys rotated
/// - `sinks`: `[heads]`, where the shape has them
/// - output: `[batch, length, heads, head_dim]` and `[batch, length, heads]`
pub fn forward(
    [query, key, value, sinks]: [&CubeTensor; 4],
    ranges: &Ranges,
    shape: AttentionShape,
) -> (CubeTensor, CubeTensor) {
    let AttentionShape {
        batch,
        length,
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let output = empty_float(query, query.shape());
    let log_sum_exp = empty_float(query, [batch, length, heads]);
    let (count, dim) = launch_of(length.div_ceil(TILE), batch * heads);
    // SAFETY: positions and values of heads are compared with their number before they are read or written.
    #[allow(unsafe_code)]
    unsafe {
        forward_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            query.clone().into_buffer_arg(),
            key.clone().into_buffer_arg(),
            value.clone().into_buffer_arg(),
            sinks.clone().into_buffer_arg(),
            ranges.first.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            log_sum_exp.clone().into_buffer_arg(),
            batch,
            length,
            heads,
            kv_heads,
            head_dim / 2,
            ranges.window,
            column_blocks(head_dim),
            ranges.limits,
            shape.sinks,
        );
    }
    (output, log_sum_exp)
}

/// A cube a block of queries of one head. The last blocks, which see most keys, come first.
#[cube(launch_unchecked)]
fn forward_kernel(
    query: &[Float2],
    key: &[Float2],
    value: &[Float2],
    sinks: &[f32],
    first_keys: &[i32],
    output: &mut [Float2],
    log_sum_exp: &mut [f32],
    batch: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    pairs: usize,
    window: usize,
    #[comptime] column_blocks: usize,
    #[comptime] limits: Limits,
    #[comptime] with_sinks: bool,
) {
    let number = number_of_cube();
    if number >= batch * heads {
        terminate!();
    }
    let queries = Head::new(number, length, heads, pairs);
    let keys = Head::new(number / (heads / kv_heads), length, kv_heads, pairs);
    let first = first_from_the_end(length);
    let place = UNIT_POS as usize % SIDE;

    let mut left = Shared::<[Float4]>::new_slice(LEFT);
    let mut right = Shared::<[Float4]>::new_slice(RIGHT);
    let mut shared = Shared::<[f32]>::new_slice(TILE * SIDE);
    let mut weights = Array::<Float4>::new(VECTOR * SCORES);
    let mut outputs = Array::<Float4>::new(comptime!(VECTOR * column_blocks));
    #[unroll]
    for output in 0..VECTOR * column_blocks {
        outputs[output] = Float4::new(0.0f32);
    }
    // Of each row the largest score so far, and Σ exp(score − largest) over the unit's own columns.
    let mut maxima = Array::<f32>::new(VECTOR);
    let mut sums = Array::<f32>::new(VECTOR);
    let mut first_seen = Array::<usize>::new(VECTOR);
    #[unroll]
    for i in 0..VECTOR {
        maxima[i] = f32::MIN;
        sums[i] = 0.0f32;
        if comptime!(with_sinks) {
            // As if it had been seen already, with a value of 0, by one unit of the row.
            maxima[i] = sinks[number % heads];
            sums[i] = select(place == 0, 1.0f32, 0.0f32);
        }
        first_seen[i] = first_key(
            first_keys,
            number / heads,
            first + row_of_unit(i),
            length,
            window,
            limits,
        );
    }

    let mut start = first_block(first_keys, number / heads, first, length, window, limits);
    while start <= first {
        scores(
            query,
            &queries,
            first,
            key,
            &keys,
            start,
            &mut left,
            &mut right,
            &mut weights,
        );
        #[unroll]
        for i in 0..VECTOR {
            let row = first + row_of_unit(i);
            let mut maximum = maxima[i];
            #[unroll]
            for j in 0..SCORES {
                let mut all = weights[i * SCORES + j];
                #[unroll]
                for c in 0..VECTOR {
                    let column = start + column_of_unit(j, c);
                    let hidden = is_hidden(column, row, first_seen[i], limits);
                    let score = select(hidden, f32::MIN, all.extract(c));
                    maximum = max(maximum, score);
                    all.insert(c, score);
                }
                weights[i * SCORES + j] = all;
            }
            shared[row_of_unit(i) * SIDE + place] = maximum;
        }
        sync_cube();
        #[unroll]
        for i in 0..VECTOR {
            let mut maximum = maxima[i];
            #[unroll]
            for other in 0..SIDE {
                maximum = max(maximum, shared[row_of_unit(i) * SIDE + other]);
            }
            let factor = (maxima[i] - maximum).exp();
            maxima[i] = maximum;
            let mut sum = sums[i] * factor;
            #[unroll]
            for j in 0..SCORES {
                // A row that has seen nothing yet has weights of 1 here, which the factor 0 of its first score wipes out.
                let all = (weights[i * SCORES + j] - Float4::new(maximum)).exp();
                #[unroll]
                for c in 0..VECTOR {
                    sum += all.extract(c);
                }
                weights[i * SCORES + j] = all;
            }
            sums[i] = sum;
            #[unroll]
            for column_block in 0..column_blocks {
                outputs[i * column_blocks + column_block] *= Float4::new(factor);
            }
        }
        accumulate(
            &weights,
            value,
            &keys,
            start,
            &mut left,
            &mut right,
            &mut outputs,
            column_blocks,
        );
        start += TILE;
    }

    #[unroll]
    for i in 0..VECTOR {
        shared[row_of_unit(i) * SIDE + place] = sums[i];
    }
    sync_cube();
    let mut factors = Array::<f32>::new(VECTOR);
    #[unroll]
    for i in 0..VECTOR {
        let mut sum = 0.0f32;
        #[unroll]
        for other in 0..SIDE {
            sum += shared[row_of_unit(i) * SIDE + other];
        }
        factors[i] = 1.0f32 / sum;
        let position = first + row_of_unit(i);
        if place == 0 && position < length {
            let row = number / heads * length + position;
            log_sum_exp[row * heads + number % heads] = maxima[i] + sum.ln();
        }
    }
    write(&outputs, &factors, output, &queries, first, column_blocks);
}
