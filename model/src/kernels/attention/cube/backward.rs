//! Gradients, with the weights computed again block by block (FlashAttention-2, arXiv 2307.08691, algorithm 2).
//!
//! With weights P = exp(S − log_sum_exp), S the scores and dO the gradient of the output:
//! dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum(dO ∘ O)), dQ = dS K, dK = dSᵀ Q.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tile::{
    Head, LEFT, Pair, QUAD, Quad, RIGHT, SCORES, TILE, accumulate, column_of_unit,
    first_from_the_end, number_of_cube, row_of_unit, scores, write,
};
use super::{Saved, launch_of, strips};
use crate::kernels::attention::AttentionShape;
use crate::kernels::cube::{empty_float, units};

/// The most values of a head of which a unit keeps the gradients of both keys and values in registers.
const BOTH: usize = 128;

/// What both kernels read.
pub struct Pass<'a> {
    saved: &'a Saved,
    /// Of the output.
    gradient: CubeTensor,
    /// rowsum(dO ∘ O), `[batch, length, heads]`.
    shifts: CubeTensor,
}

impl<'a> Pass<'a> {
    /// From the gradient of the output, in row-major order.
    pub fn new(saved: &'a Saved, gradient: CubeTensor) -> Self {
        let shifts = empty_float(&gradient, saved.log_sum_exp.shape());
        let (count, dim) = units(&gradient.client, shifts.shape().num_elements());
        shifts_kernel::launch(
            &gradient.client,
            count,
            dim,
            saved.output.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            shifts.clone().into_buffer_arg(),
            saved.shape.head_dim / 2,
        );
        Self {
            saved,
            gradient,
            shifts,
        }
    }

    /// The gradient of the queries, still turned.
    pub fn query(&self) -> CubeTensor {
        let AttentionShape {
            batch,
            length,
            heads,
            kv_heads,
            head_dim,
        } = self.saved.shape;
        let output = empty_float(&self.gradient, self.saved.query.shape());
        let (count, dim) = launch_of(length, batch * heads);
        let [query, key, value, gradient, log_sum_exp, shifts] = self.inputs();
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
                log_sum_exp.into_buffer_arg(),
                shifts.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                batch,
                length,
                heads,
                kv_heads,
                head_dim / 2,
                self.saved.shape.scale(),
                strips(head_dim),
            );
        }
        output
    }

    /// The gradients of keys, still turned, and of values, where they are wanted.
    pub fn key_and_value(
        &self,
        key: bool,
        value: bool,
    ) -> (Option<CubeTensor>, Option<CubeTensor>) {
        if key && value && self.saved.shape.head_dim > BOTH {
            let ((key, _), (_, value)) = (self.launch(true, false), self.launch(false, true));
            return (Some(key), Some(value));
        }
        if !key && !value {
            return (None, None);
        }
        let (key_gradient, value_gradient) = self.launch(key, value);
        (key.then_some(key_gradient), value.then_some(value_gradient))
    }

    fn launch(&self, key_wanted: bool, value_wanted: bool) -> (CubeTensor, CubeTensor) {
        let AttentionShape {
            batch,
            length,
            heads,
            kv_heads,
            head_dim,
        } = self.saved.shape;
        // Of what isn't wanted nothing is written, but a kernel takes no empty buffer.
        let room = |wanted: bool| match wanted {
            true => empty_float(&self.gradient, self.saved.key.shape()),
            false => empty_float(&self.gradient, [2]),
        };
        let outputs = (room(key_wanted), room(value_wanted));
        let (count, dim) = launch_of(length, batch * kv_heads);
        let [query, key, value, gradient, log_sum_exp, shifts] = self.inputs();
        // SAFETY: positions and values of heads are compared with their number before they are read or written.
        #[allow(unsafe_code)]
        unsafe {
            key_and_value_kernel::launch_unchecked(
                &self.gradient.client,
                count,
                dim,
                query.into_buffer_arg(),
                key.into_buffer_arg(),
                value.into_buffer_arg(),
                gradient.into_buffer_arg(),
                log_sum_exp.into_buffer_arg(),
                shifts.into_buffer_arg(),
                outputs.0.clone().into_buffer_arg(),
                outputs.1.clone().into_buffer_arg(),
                batch,
                length,
                heads,
                kv_heads,
                head_dim / 2,
                strips(head_dim),
                key_wanted,
                value_wanted,
            );
        }
        outputs
    }

    fn inputs(&self) -> [CubeTensor; 6] {
        let saved = self.saved;
        [
            &saved.query,
            &saved.key,
            &saved.value,
            &self.gradient,
            &saved.log_sum_exp,
            &self.shifts,
        ]
        .map(Clone::clone)
    }
}

/// A unit a row.
#[cube(launch)]
fn shifts_kernel(output: &[Pair], gradient: &[Pair], shifts: &mut [f32], pairs: usize) {
    if ABSOLUTE_POS >= shifts.len() {
        terminate!();
    }
    let first = ABSOLUTE_POS * pairs;
    let mut sums = Pair::new(0.0f32);
    for place in first..first + pairs {
        sums += output[place] * gradient[place];
    }
    shifts[ABSOLUTE_POS] = sums.extract(0usize) + sums.extract(1usize);
}

/// A cube a block of queries of one head. The last blocks, which see most keys, come first.
#[cube(launch_unchecked)]
fn query_kernel(
    query: &[Pair],
    key: &[Pair],
    value: &[Pair],
    gradient: &[Pair],
    log_sum_exp: &[f32],
    shifts: &[f32],
    output: &mut [Pair],
    batch: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    pairs: usize,
    scale: f32,
    #[comptime] strips: usize,
) {
    let number = number_of_cube();
    if number >= batch * heads {
        terminate!();
    }
    let queries = Head::new(number, length, heads, pairs);
    let keys = Head::new(number / (heads / kv_heads), length, kv_heads, pairs);
    let first = first_from_the_end(length);

    let mut left = Shared::<[Quad]>::new_slice(LEFT);
    let mut right = Shared::<[Quad]>::new_slice(RIGHT);
    let mut weights = Array::<Quad>::new(QUAD * SCORES);
    let mut slopes = Array::<Quad>::new(QUAD * SCORES);
    let mut sums = Array::<Quad>::new(comptime!(QUAD * strips));
    #[unroll]
    for sum in 0..QUAD * strips {
        sums[sum] = Quad::new(0.0f32);
    }
    let mut row_sums = Array::<f32>::new(QUAD);
    let mut row_shifts = Array::<f32>::new(QUAD);
    let mut scales = Array::<f32>::new(QUAD);
    #[unroll]
    for i in 0..QUAD {
        // Rows behind the last one are computed like that one, and not written.
        let position = min(first + row_of_unit(i), length - 1);
        let row = (number / heads * length + position) * heads + number % heads;
        row_sums[i] = log_sum_exp[row];
        row_shifts[i] = shifts[row];
        scales[i] = scale;
    }

    let mut start = 0usize;
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
            &mut slopes,
        );
        #[unroll]
        for i in 0..QUAD {
            let row = first + row_of_unit(i);
            #[unroll]
            for j in 0..SCORES {
                let all = weights[i * SCORES + j];
                let mut found = slopes[i * SCORES + j];
                #[unroll]
                for c in 0..QUAD {
                    let hidden = start + column_of_unit(j, c) > row;
                    let weight = (all.extract(c) - row_sums[i]).exp();
                    let slope = weight * (found.extract(c) - row_shifts[i]);
                    found.insert(c, select(hidden, 0.0f32, slope));
                }
                slopes[i * SCORES + j] = found;
            }
        }
        accumulate(
            &slopes, key, &keys, start, &mut left, &mut right, &mut sums, strips,
        );
        start += TILE;
    }
    write(&sums, &scales, output, &queries, first, strips);
}

/// A cube a block of keys of one head, over all queries that see them of all heads that share it. Scores have a row
/// for each key here, and a column for each query.
#[cube(launch_unchecked)]
fn key_and_value_kernel(
    query: &[Pair],
    key: &[Pair],
    value: &[Pair],
    gradient: &[Pair],
    log_sum_exp: &[f32],
    shifts: &[f32],
    key_output: &mut [Pair],
    value_output: &mut [Pair],
    batch: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    pairs: usize,
    #[comptime] strips: usize,
    #[comptime] key_wanted: bool,
    #[comptime] value_wanted: bool,
) {
    let number = number_of_cube();
    if number >= batch * kv_heads {
        terminate!();
    }
    let keys = Head::new(number, length, kv_heads, pairs);
    let group = heads / kv_heads;
    let first = CUBE_POS_X as usize * TILE;

    let mut left = Shared::<[Quad]>::new_slice(LEFT);
    let mut right = Shared::<[Quad]>::new_slice(RIGHT);
    let mut weights = Array::<Quad>::new(QUAD * SCORES);
    let mut slopes = Array::<Quad>::new(QUAD * SCORES);
    let mut key_sums = Array::<Quad>::new(comptime!(QUAD * strips));
    let mut value_sums = Array::<Quad>::new(comptime!(QUAD * strips));
    #[unroll]
    for sum in 0..QUAD * strips {
        key_sums[sum] = Quad::new(0.0f32);
        value_sums[sum] = Quad::new(0.0f32);
    }

    for head in number * group..(number + 1) * group {
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
                    &mut slopes,
                );
            }
            #[unroll]
            for j in 0..SCORES {
                #[unroll]
                for c in 0..QUAD {
                    let position = start + column_of_unit(j, c);
                    let row = min(position, length - 1);
                    let row = (head / heads * length + row) * heads + head % heads;
                    let row_sum = log_sum_exp[row];
                    let row_shift = shifts[row];
                    #[unroll]
                    for i in 0..QUAD {
                        let hidden = first + row_of_unit(i) > position || position >= length;
                        let mut all = weights[i * SCORES + j];
                        let weight = (all.extract(c) - row_sum).exp();
                        let weight = select(hidden, 0.0f32, weight);
                        all.insert(c, weight);
                        weights[i * SCORES + j] = all;
                        if comptime!(key_wanted) {
                            let mut found = slopes[i * SCORES + j];
                            found.insert(c, weight * (found.extract(c) - row_shift));
                            slopes[i * SCORES + j] = found;
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
                    strips,
                );
            }
            if comptime!(key_wanted) {
                accumulate(
                    &slopes,
                    query,
                    &queries,
                    start,
                    &mut left,
                    &mut right,
                    &mut key_sums,
                    strips,
                );
            }
            start += TILE;
        }
    }
    let mut ones = Array::<f32>::new(QUAD);
    #[unroll]
    for i in 0..QUAD {
        ones[i] = 1.0f32;
    }
    if comptime!(key_wanted) {
        write(&key_sums, &ones, key_output, &keys, first, strips);
    }
    if comptime!(value_wanted) {
        write(&value_sums, &ones, value_output, &keys, first, strips);
    }
}
