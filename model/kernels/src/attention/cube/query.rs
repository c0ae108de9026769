//! The gradient of queries.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::backward::Pass;
use super::tile::{
    Float2, Float4, Head, LEFT, RIGHT, SCORES, TILE, VECTOR, accumulate, column_of_unit,
    first_block, first_from_the_end, first_key, is_hidden, number_of_cube, row_of_unit, scores,
    write,
};
use super::{Limits, column_blocks, launch_of};
use crate::attention::AttentionShape;
use crate::cube::empty_float;

/// The gradient of the queries, still rotated, `[batch · length, heads · head_dim]`.
pub fn gradient(pass: &Pass<'_>) -> CubeTensor {
    let AttentionShape {
        batch,
        length,
        heads,
        kv_heads,
        head_dim,
        ..
    } = pass.saved.shape;
    let output = empty_float(&pass.gradient, pass.gradient.shape());
    let (count, dim) = launch_of(length.div_ceil(TILE), batch * heads);
    let [query, key, value, gradient, rows] = pass.inputs();
    // SAFETY: positions and values of heads are compared with their number before they are read or written.
    #[allow(unsafe_code)]
    unsafe {
        query_kernel::launch_unchecked(
            &output.client,
            count,
            dim,
            query.into_buffer_arg(),
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            gradient.into_buffer_arg(),
            rows.into_buffer_arg(),
            pass.saved.ranges.first.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            batch,
            length,
            heads,
            kv_heads,
            head_dim / 2,
            pass.saved.shape.scale,
            pass.saved.ranges.window,
            column_blocks(head_dim),
            pass.saved.ranges.limits,
        );
    }
    output
}

/// A cube a block of queries of one head. The last blocks, which see most keys, come first.
#[cube(launch_unchecked)]
fn query_kernel(
    query: &[Float2],
    key: &[Float2],
    value: &[Float2],
    gradient: &[Float2],
    rows: &[Float2],
    first_keys: &[i32],
    output: &mut [Float2],
    batch: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    pairs: usize,
    scale: f32,
    window: usize,
    #[comptime] column_blocks: usize,
    #[comptime] limits: Limits,
) {
    let number = number_of_cube();
    if number >= batch * heads {
        terminate!();
    }
    let queries = Head::new(number, length, heads, pairs);
    let keys = Head::new(number / (heads / kv_heads), length, kv_heads, pairs);
    let first = first_from_the_end(length);

    let mut left = Shared::<[Float4]>::new_slice(LEFT);
    let mut right = Shared::<[Float4]>::new_slice(RIGHT);
    let mut weights = Array::<Float4>::new(VECTOR * SCORES);
    let mut score_gradients = Array::<Float4>::new(VECTOR * SCORES);
    let mut sums = Array::<Float4>::new(comptime!(VECTOR * column_blocks));
    #[unroll]
    for sum in 0..VECTOR * column_blocks {
        sums[sum] = Float4::new(0.0f32);
    }
    let mut of_row = Array::<Float2>::new(VECTOR);
    let mut scales = Array::<f32>::new(VECTOR);
    let mut first_seen = Array::<usize>::new(VECTOR);
    #[unroll]
    for i in 0..VECTOR {
        // Rows behind the last one are computed like that one, and not written.
        let position = min(first + row_of_unit(i), length - 1);
        of_row[i] = rows[(number / heads * length + position) * heads + number % heads];
        scales[i] = scale;
        first_seen[i] = first_key(first_keys, number / heads, position, length, window, limits);
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
        scores(
            gradient,
            &queries,
            first,
            value,
            &keys,
            start,
            &mut left,
            &mut right,
            &mut score_gradients,
        );
        #[unroll]
        for i in 0..VECTOR {
            let row = first + row_of_unit(i);
            #[unroll]
            for j in 0..SCORES {
                let all = weights[i * SCORES + j];
                let mut found = score_gradients[i * SCORES + j];
                #[unroll]
                for c in 0..VECTOR {
                    let column = start + column_of_unit(j, c);
                    let hidden = is_hidden(column, row, first_seen[i], limits);
                    let weight = (all.extract(c) - of_row[i].extract(0usize)).exp();
                    let score_gradient = weight * (found.extract(c) - of_row[i].extract(1usize));
                    found.insert(c, select(hidden, 0.0f32, score_gradient));
                }
                score_gradients[i * SCORES + j] = found;
            }
        }
        accumulate(
            &score_gradients,
            key,
            &keys,
            start,
            &mut left,
            &mut right,
            &mut sums,
            column_blocks,
        );
        start += TILE;
    }
    write(&sums, &scales, output, &queries, first, column_blocks);
}
