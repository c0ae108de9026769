//! The gradients of keys and values.
//!
//! A cube adds up what several query heads give to a block of keys and values. Where that would leave too few cubes for
//! a device, the query heads are divided into parts, which are added up by themselves at the end.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::backward::Pass;
use super::tile::{
    DEPTH, Float2, Float4, Head, LEFT, RIGHT, SCORES, TILE, VECTOR, accumulate, column_of_unit,
    first_key, is_hidden, number_of_cube, row_of_unit, scores, write,
};
use super::{CUBES, Limits, column_blocks, launch_of};
use crate::attention::AttentionShape;
use crate::cube::{ROUNDS, empty_float, units};

/// The most values of a head of which a unit keeps the gradients of both keys and values in registers.
const BOTH: usize = 128;

/// The gradients of keys, still rotated, and of values, each `[batch · length, kv_heads · head_dim]`, where they are
/// wanted.
pub fn gradients(
    pass: &Pass<'_>,
    key: bool,
    value: bool,
) -> (Option<CubeTensor>, Option<CubeTensor>) {
    if key && value && pass.saved.shape.head_dim > BOTH {
        return (
            gradients(pass, true, false).0,
            gradients(pass, false, true).1,
        );
    }
    if !key && !value {
        return (None, None);
    }
    let [key_gradient, value_gradient] = launch(pass, key, value);
    (
        key.then(|| sum_of_parts(key_gradient, pass)),
        value.then(|| sum_of_parts(value_gradient, pass)),
    )
}

/// The least number of parts that leaves enough cubes, and not too many rounds to any of them. It depends on the shape
/// alone, not on the device, so that sums are taken in the same order everywhere.
fn parts(shape: AttentionShape) -> usize {
    let blocks = shape.length.div_ceil(TILE);
    let cubes = blocks * shape.batch * shape.kv_heads;
    let group = shape.group();
    // Of one block of queries: its own, and those of the depth of both products.
    let rounds = blocks * (1 + 2 * shape.head_dim.div_ceil(DEPTH));
    let mut divisors = (1..group).filter(|parts| group.is_multiple_of(*parts));
    let fits = |parts: &usize| parts * cubes >= CUBES && group / parts * rounds < ROUNDS;
    divisors.find(fits).unwrap_or(group)
}

/// What each part of the query heads gives to keys and values, `[parts · batch · length, kv_heads · head_dim]`.
fn launch(pass: &Pass<'_>, key_wanted: bool, value_wanted: bool) -> [CubeTensor; 2] {
    let shape = pass.saved.shape;
    let AttentionShape {
        batch,
        length,
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let parts = parts(shape);
    let outputs = [key_wanted, value_wanted].map(|wanted| match wanted {
        true => empty_float(&pass.gradient, [parts * batch * length, shape.kv_width()]),
        // Nothing is written, but a kernel takes no empty buffer.
        false => empty_float(&pass.gradient, [1, 2]),
    });
    let [key_output, value_output] = outputs.clone();
    let (count, dim) = launch_of(length.div_ceil(TILE), parts * batch * kv_heads);
    let [query, key, value, gradient, rows] = pass.inputs();
    // SAFETY: positions and values of heads are compared with their number before they are read or written.
    #[allow(unsafe_code)]
    unsafe {
        key_and_value_kernel::launch_unchecked(
            &pass.gradient.client,
            count,
            dim,
            query.into_buffer_arg(),
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            gradient.into_buffer_arg(),
            rows.into_buffer_arg(),
            pass.saved.ranges.first.clone().into_buffer_arg(),
            key_output.into_buffer_arg(),
            value_output.into_buffer_arg(),
            batch,
            length,
            heads,
            kv_heads,
            head_dim / 2,
            parts,
            pass.saved.ranges.window,
            column_blocks(head_dim),
            key_wanted,
            value_wanted,
            pass.saved.ranges.limits,
        );
    }
    outputs
}

/// `[parts · rows, width]` → `[rows, width]`
fn sum_of_parts(terms: CubeTensor, pass: &Pass<'_>) -> CubeTensor {
    let shape = pass.saved.key.shape();
    let parts = terms.shape()[0] / shape[0];
    if parts == 1 {
        return terms;
    }
    let output = empty_float(&terms, shape);
    let (count, dim) = units(&terms.client, output.shape().num_elements());
    sum_kernel::launch(
        &output.client,
        count,
        dim,
        terms.into_buffer_arg(),
        output.clone().into_buffer_arg(),
        parts,
    );
    output
}

/// A unit a value.
#[cube(launch)]
fn sum_kernel(terms: &[f32], output: &mut [f32], parts: usize) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let mut sum = 0.0f32;
    for part in 0..parts {
        sum += terms[part * output.len() + ABSOLUTE_POS];
    }
    output[ABSOLUTE_POS] = sum;
}

/// A cube a block of keys of one head, over the queries that see them of one part of the query heads that share it.
/// Scores have a row for each key here, and a column for each query.
#[cube(launch_unchecked)]
fn key_and_value_kernel(
    query: &[Float2],
    key: &[Float2],
    value: &[Float2],
    gradient: &[Float2],
    rows: &[Float2],
    first_keys: &[i32],
    key_output: &mut [Float2],
    value_output: &mut [Float2],
    batch: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    pairs: usize,
    parts: usize,
    window: usize,
    #[comptime] column_blocks: usize,
    #[comptime] key_wanted: bool,
    #[comptime] value_wanted: bool,
    #[comptime] limits: Limits,
) {
    let number = number_of_cube();
    if number >= parts * batch * kv_heads {
        terminate!();
    }
    let kv_head = number % (batch * kv_heads);
    let keys = Head::new(kv_head, length, kv_heads, pairs);
    let sums = Head::new(number, length, kv_heads, pairs);
    // The query heads of this part.
    let count = heads / kv_heads / parts;
    let first_head = (kv_head * parts + number / (batch * kv_heads)) * count;
    let first = CUBE_POS_X as usize * TILE;
    let sequence = kv_head / kv_heads;

    let mut left = Shared::<[Float4]>::new_slice(LEFT);
    let mut right = Shared::<[Float4]>::new_slice(RIGHT);
    let mut weights = Array::<Float4>::new(VECTOR * SCORES);
    let mut score_gradients = Array::<Float4>::new(VECTOR * SCORES);
    let mut key_sums = Array::<Float4>::new(comptime!(VECTOR * column_blocks));
    let mut value_sums = Array::<Float4>::new(comptime!(VECTOR * column_blocks));
    #[unroll]
    for sum in 0..VECTOR * column_blocks {
        key_sums[sum] = Float4::new(0.0f32);
        value_sums[sum] = Float4::new(0.0f32);
    }

    for head in first_head..first_head + count {
        let queries = Head::new(head, length, heads, pairs);
        let mut start = first;
        while start < length {
            scores(
                key,
                &keys,
                first,
                query,
                &queries,
                start,
                &mut left,
                &mut right,
                &mut weights,
            );
            if comptime!(key_wanted) {
                scores(
                    value,
                    &keys,
                    first,
                    gradient,
                    &queries,
                    start,
                    &mut left,
                    &mut right,
                    &mut score_gradients,
                );
            }
            #[unroll]
            for j in 0..SCORES {
                #[unroll]
                for c in 0..VECTOR {
                    let position = start + column_of_unit(j, c);
                    let seen = min(position, length - 1);
                    let row = rows[(head / heads * length + seen) * heads + head % heads];
                    let log_sum_exp = row.extract(0usize);
                    let shift = row.extract(1usize);
                    let first_seen =
                        first_key(first_keys, sequence, position, length, window, limits);
                    #[unroll]
                    for i in 0..VECTOR {
                        let key = first + row_of_unit(i);
                        let hidden =
                            is_hidden(key, position, first_seen, limits) || position >= length;
                        let mut all = weights[i * SCORES + j];
                        let weight = (all.extract(c) - log_sum_exp).exp();
                        let weight = select(hidden, 0.0f32, weight);
                        all.insert(c, weight);
                        weights[i * SCORES + j] = all;
                        if comptime!(key_wanted) {
                            let mut found = score_gradients[i * SCORES + j];
                            found.insert(c, weight * (found.extract(c) - shift));
                            score_gradients[i * SCORES + j] = found;
                        }
                    }
                }
            }
            if comptime!(value_wanted) {
                accumulate(
                    &weights,
                    gradient,
                    &queries,
                    start,
                    &mut left,
                    &mut right,
                    &mut value_sums,
                    column_blocks,
                );
            }
            if comptime!(key_wanted) {
                accumulate(
                    &score_gradients,
                    query,
                    &queries,
                    start,
                    &mut left,
                    &mut right,
                    &mut key_sums,
                    column_blocks,
                );
            }
            start += TILE;
            if comptime!(limits.any()) {
                // Where a block's first query does not see the last of these keys, no later one sees any.
                if first_key(first_keys, sequence, start, length, window, limits) >= first + TILE {
                    start = length;
                }
            }
        }
    }
    let mut ones = Array::<f32>::new(VECTOR);
    #[unroll]
    for i in 0..VECTOR {
        ones[i] = 1.0f32;
    }
    if comptime!(key_wanted) {
        write(&key_sums, &ones, key_output, &sums, first, column_blocks);
    }
    if comptime!(value_wanted) {
        write(
            &value_sums,
            &ones,
            value_output,
            &sums,
            first,
            column_blocks,
        );
    }
}
