//! Attention block by block, with a running maximum and sum (FlashAttention-2, arXiv 2307.08691, algorithm 1).

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::rows::{AttentionShape, KEYS, Keys, LANES, RopeTables, add, scratch_slice};
use super::stretches::{Stretch, Stretches};
use crate::host::exp::exp;
use crate::host::gemm::{Accumulate, Matrix};
use crate::host::product::gemm_at;
use crate::host::simd::vectorized;
use crate::host::uninit::vecs_uninit_with;
use crate::precision::Precision;

/// Outputs, and of every row of scores ln Σ exp(score), from which the backward pass finds the weights again.
///
/// A row is one query head at one position. The rows of the heads that share a key/value head stand together,
/// position by position, so that one product serves all of them, and so that the rows that see anything of a block
/// of keys stand together too.
///
/// # Shapes
///
/// - `query`: `[batch, length, heads, head_dim]`
/// - `key`, `value`: `[batch, keys, kv_heads, head_dim]`
/// - `sinks`: `[heads]`
/// - output: `[batch, length, heads, head_dim]` and `[batch, length, heads]`
pub(super) fn forward(
    [query, key, value]: [&[f32]; 3],
    sinks: Option<&[f32]>,
    tables: RopeTables<'_>,
    stretches: Stretches<'_>,
    shape: AttentionShape,
    precision: Precision,
) -> (Vec<f32>, Vec<f32>) {
    if query.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let keys = Keys::new(key, tables, shape);
    let pass = Pass {
        query,
        keys: &keys,
        value,
        sinks,
        tables,
        shape,
        precision,
    };
    let rows = query.len() / shape.head_dim;
    // SAFETY: the blocks of all sequences cover all rows, and a block writes all of its rows in both.
    #[allow(unsafe_code)]
    let [output, sums] = unsafe {
        vecs_uninit_with([query.len(), rows], |[output, sums]| {
            pass.run(stretches, output, sums);
        })
    };
    (output, sums)
}

struct Pass<'a> {
    query: &'a [f32],
    keys: &'a Keys<'a>,
    value: &'a [f32],
    sinks: Option<&'a [f32]>,
    tables: RopeTables<'a>,
    shape: AttentionShape,
    precision: Precision,
}

/// What a block needs; kept from block to block.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    outputs: Vec<f32>,
    maxima: Vec<f32>,
    sums: Vec<f32>,
}

impl Pass<'_> {
    fn run(
        &self,
        stretches: Stretches<'_>,
        output: &mut [MaybeUninit<f32>],
        sums: &mut [MaybeUninit<f32>],
    ) {
        let heads = self.shape.heads;
        let width = self.shape.width();
        let step = self.shape.positions(self.shape.group());
        let blocks = stretches.of_batch().flat_map(|stretch| {
            let starts = (0..stretch.length).step_by(step);
            starts.map(move |start| (stretch, start..(start + step).min(stretch.length)))
        });
        let (mut output, mut sums) = (output, sums);
        let blocks = blocks.map(|(stretch, positions)| {
            let output = output.split_off_mut(..positions.len() * width);
            let sums = sums.split_off_mut(..positions.len() * heads);
            let rows = output.zip(sums).expect("rows of every position");
            (stretch, positions, rows)
        });
        let blocks: Vec<_> = blocks.collect();
        blocks.into_par_iter().for_each_init(
            Scratch::default,
            |scratch, (stretch, positions, (output, sums))| {
                for kv_head in 0..self.shape.kv_heads {
                    self.block(scratch, stretch, kv_head, positions.clone(), output, sums);
                }
            },
        );
    }

    /// The rows of one key/value head at some positions, of which `output` and `sums` hold all heads.
    fn block(
        &self,
        scratch: &mut Scratch,
        stretch: Stretch<'_>,
        kv_head: usize,
        positions: Range<usize>,
        output: &mut [MaybeUninit<f32>],
        sums: &mut [MaybeUninit<f32>],
    ) {
        let shape = self.shape;
        let AttentionShape {
            heads, head_dim, ..
        } = shape;
        let (group, width, kv_width) = (shape.group(), shape.width(), shape.kv_width());
        let rows = positions.len() * group;
        let queries = scratch_slice(&mut scratch.queries, rows * head_dim);
        let outputs = scratch_slice(&mut scratch.outputs, rows * head_dim);
        let scores = scratch_slice(&mut scratch.scores, rows * KEYS);
        let softmax = &mut Softmax {
            maxima: scratch_slice(&mut scratch.maxima, rows),
            sums: scratch_slice(&mut scratch.sums, rows),
        };
        match self.sinks {
            // As if they had been seen already, with a value of 0.
            Some(sinks) => {
                let of_group = &sinks[kv_head * group..][..group];
                for maxima in softmax.maxima.chunks_exact_mut(group) {
                    maxima.copy_from_slice(of_group);
                }
                softmax.sums.fill(1.0);
            }
            None => {
                softmax.maxima.fill(f32::NEG_INFINITY);
                softmax.sums.fill(0.0);
            }
        }

        let first_row = stretch.token(positions.start, shape);
        let columns = kv_head * group * head_dim..(kv_head + 1) * group * head_dim;
        vectorized(
            #[inline(always)]
            || {
                let packed = queries.chunks_exact_mut(group * head_dim);
                for (packed, row) in packed.zip(first_row..) {
                    packed.copy_from_slice(&self.query[row * width..][columns.clone()]);
                    for head in packed.chunks_exact_mut(head_dim) {
                        self.tables.rotate(head, row, shape.scale);
                    }
                }
            },
        );

        let values = &self.value[stretch.first_key(shape) * kv_width + kv_head * head_dim..];
        for (index, block) in stretch.key_blocks(&positions).enumerate() {
            let seeing = stretch.seeing(&positions, &block);
            let skipped = (seeing.start - positions.start) * group;
            let (rows, count) = (seeing.len() * group, block.len());
            let places = stretch.start + block.start..stretch.start + block.end;
            let fresh = index == 0;
            if fresh {
                // Rows that see nothing of the first block add to these when they first see something.
                outputs[rows * head_dim..].fill(0.0);
            }
            let scores = &mut scores[..rows * KEYS];
            let seen_rows = skipped * head_dim..(skipped + rows) * head_dim;
            let outputs = &mut outputs[seen_rows.clone()];
            gemm_at(
                self.precision,
                Matrix::new(&queries[seen_rows], rows, head_dim),
                self.keys.matrix(stretch.sequence, kv_head, places).t(),
                Accumulate::Replace,
                scores,
                KEYS,
            );
            vectorized(
                #[inline(always)]
                || {
                    let scores = scores.chunks_exact_mut(KEYS);
                    let rows = scores.zip(outputs.chunks_exact_mut(head_dim)).enumerate();
                    for (row, (scores, output)) in rows {
                        let position = seeing.start + row / group;
                        if let Some(bias) = stretch.bias(position, &block) {
                            add(scores, bias);
                        }
                        let seen = stretch.seen(position, &block);
                        let factor = softmax.add(skipped + row, scores, seen, count);
                        if !fresh {
                            output.iter_mut().for_each(|value| *value *= factor);
                        }
                    }
                },
            );
            gemm_at(
                self.precision,
                Matrix::strided(scores, rows, count, KEYS),
                Matrix::strided(&values[block.start * kv_width..], count, head_dim, kv_width),
                if fresh {
                    Accumulate::Replace
                } else {
                    Accumulate::Add
                },
                outputs,
                head_dim,
            );
        }

        vectorized(
            #[inline(always)]
            || {
                for position in 0..positions.len() {
                    let output = &mut output[position * width..][columns.clone()];
                    let places = position * heads + kv_head * group..;
                    for (head, output) in output.chunks_exact_mut(head_dim).enumerate() {
                        let row = position * group + head;
                        let factor = softmax.sums[row].recip();
                        let sums_of_values = &outputs[row * head_dim..(row + 1) * head_dim];
                        for (output, value) in output.iter_mut().zip(sums_of_values) {
                            output.write(value * factor);
                        }
                        sums[places.start + head]
                            .write(softmax.maxima[row] + softmax.sums[row].ln());
                    }
                }
            },
        );
    }
}

/// Of each row, the largest score so far and Σ exp(score − largest).
struct Softmax<'a> {
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Softmax<'_> {
    /// Turns the scores that a row has `seen` into weights relative to the largest so far and the others, up to
    /// `count`, into zeros. Returns what the outputs of the blocks before are to be multiplied by.
    #[inline(always)]
    fn add(&mut self, row: usize, scores: &mut [f32], seen: Range<usize>, count: usize) -> f32 {
        let lanes = seen.end.next_multiple_of(LANES);
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..lanes].fill(f32::NEG_INFINITY);
        scores[lanes.min(count)..count].fill(0.0);
        let (chunks, _) = scores[..lanes].as_chunks_mut::<LANES>();
        let mut maxima = [f32::NEG_INFINITY; LANES];
        for chunk in chunks.iter() {
            for (maximum, &score) in maxima.iter_mut().zip(chunk) {
                *maximum = if score > *maximum { score } else { *maximum };
            }
        }
        let before = self.maxima[row];
        let maximum = maxima.into_iter().fold(before, f32::max);
        for score in chunks.as_flattened_mut() {
            *score = exp(*score - maximum);
        }
        let mut sums = [0.0; LANES];
        for chunk in chunks.iter() {
            for (sum, &weight) in sums.iter_mut().zip(chunk) {
                *sum += weight;
            }
        }
        let factor = exp(before - maximum);
        self.maxima[row] = maximum;
        self.sums[row] = self.sums[row] * factor + sums.into_iter().sum::<f32>();
        factor
    }
}
