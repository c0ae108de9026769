//! Gradients of attention, with the weights computed again block by block (FlashAttention-2, arXiv 2307.08691,
//! algorithm 2).

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::biased::HIDDEN;
use super::rows::{AttentionShape, KEYS, Keys, LANES, RopeTables, add, scratch_slice};
use super::stretches::{Stretch, Stretches};
use crate::host::exp::exp;
use crate::host::gemm::{Accumulate, Matrix};
use crate::host::product::gemm_at;
use crate::host::simd::vectorized;
use crate::host::uninit::vec_uninit_with;
use crate::precision::Precision;

/// Independent parts that the work is cut into, where there are heads enough.
const PARTS: usize = 8;

/// What the forward pass saw and made; shapes as there.
pub(super) struct Saved<'a> {
    pub query: &'a [f32],
    pub key: &'a [f32],
    pub value: &'a [f32],
    pub sinks: Option<&'a [f32]>,
    pub output: &'a [f32],
    pub log_sum_exp: &'a [f32],
    pub tables: RopeTables<'a>,
    pub stretches: Stretches<'a>,
    pub shape: AttentionShape,
    pub precision: Precision,
}

/// The gradients of those of query, key, value and sinks that need one.
///
/// A part of the work is some of the query heads that share a key/value head, in one sequence. It reads and writes
/// what belongs to its queries once, in blocks, while their keys, values and their gradients stay in the cache; the
/// gradients of keys and values are then summed over the parts, in order.
///
/// With weights P = exp(S − log_sum_exp), S the scores and dO the gradient of the output:
/// dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum(dO ∘ O)), dQ = dS K, dK = dSᵀ Q. A sink is a score of which the value is 0.
pub(super) fn backward(
    saved: &Saved<'_>,
    gradient: &[f32],
    needs_grad: [bool; 4],
) -> [Option<Vec<f32>>; 4] {
    let sinks = saved.sinks.filter(|_| needs_grad[3]);
    if gradient.is_empty() {
        let [query, key, value, _] = needs_grad.map(|needs_grad| needs_grad.then(Vec::new));
        return [query, key, value, sinks.map(|sinks| vec![0.0; sinks.len()])];
    }
    let shape = saved.shape;
    let heads = heads_of_a_part(shape);
    let keys = Keys::new(saved.key, saved.tables, shape);
    let pass = Pass {
        saved,
        gradient,
        keys: &keys,
        sinks,
        heads,
        needs_grad,
    };
    let [query_needs_grad, key_needs_grad, value_needs_grad, _] = needs_grad;
    let mut parts = Vec::new();
    // SAFETY: the column blocks of all parts cover all of it, and a part writes all of its own.
    #[allow(unsafe_code)]
    let query = query_needs_grad.then(|| unsafe {
        vec_uninit_with(gradient.len(), |query| {
            let column_blocks = column_blocks(query, shape, heads * shape.head_dim);
            parts = column_blocks
                .into_par_iter()
                .enumerate()
                .map(|(index, column_block)| pass.part(index, Some(column_block)))
                .collect();
        })
    });
    if !query_needs_grad {
        let count = shape.batch * (shape.heads / heads);
        parts = (0..count)
            .into_par_iter()
            .map(|index| pass.part(index, None))
            .collect();
    }
    let parts: Vec<Part> = parts;
    let key = key_needs_grad.then(|| {
        sum_of_parts(
            &parts,
            shape,
            heads,
            |part| &part.key,
            |head, token| {
                saved.tables.rotate_transposed(head, token, 1.0);
            },
        )
    });
    let value =
        value_needs_grad.then(|| sum_of_parts(&parts, shape, heads, |part| &part.value, |_, _| ()));
    let sinks = sinks.map(|_| {
        let mut sums = vec![0.0; shape.heads];
        for part in parts.chunks_exact(shape.heads / heads) {
            let of_sequence = part.iter().flat_map(|part| &part.sinks);
            for (sum, term) in sums.iter_mut().zip(of_sequence) {
                *sum += term;
            }
        }
        sums.into_iter().map(|sum| sum as f32).collect()
    });
    [query, key, value, sinks]
}

/// As many of a group's query heads as leave [`PARTS`] parts; it must not depend on the number of threads.
fn heads_of_a_part(shape: AttentionShape) -> usize {
    let group = shape.group();
    let mut divisors = (1..=group)
        .rev()
        .filter(|heads| group.is_multiple_of(*heads));
    let enough = |heads: &usize| shape.batch * (shape.heads / heads) >= PARTS;
    divisors.find(enough).unwrap_or(1)
}

/// Every sequence's `[length, width]` cut into columns of `column_block` values, row by row.
fn column_blocks(
    values: &mut [MaybeUninit<f32>],
    shape: AttentionShape,
    column_block: usize,
) -> Vec<Vec<&mut [MaybeUninit<f32>]>> {
    let width = shape.width();
    let sequences = values.chunks_exact_mut(shape.length * width);
    let column_blocks = sequences.flat_map(|sequence| {
        let mut column_blocks: Vec<Vec<_>> = (0..width / column_block)
            .map(|_| Vec::with_capacity(shape.length))
            .collect();
        for row in sequence.chunks_exact_mut(width) {
            for (column_block, values) in column_blocks
                .iter_mut()
                .zip(row.chunks_exact_mut(column_block))
            {
                column_block.push(values);
            }
        }
        column_blocks
    });
    column_blocks.collect()
}

/// Gradients that a part contributes.
struct Part {
    /// Still rotated, `[keys, head_dim]`
    key: Vec<f32>,
    /// `[keys, head_dim]`
    value: Vec<f32>,
    /// Of its query heads. Sums over all positions, in more than f32, since most of them cancel out.
    sinks: Vec<f64>,
}

/// The gradient of keys or values: that of each head summed over the parts that share it, then finished.
fn sum_of_parts(
    parts: &[Part],
    shape: AttentionShape,
    heads: usize,
    of: impl Fn(&Part) -> &[f32] + Sync,
    finish: impl Fn(&mut [f32], usize) + Sync,
) -> Vec<f32> {
    let AttentionShape {
        keys,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let sharing = shape.group() / heads;
    let fill = |sum: &mut [MaybeUninit<f32>]| {
        let rows = sum.par_chunks_mut(shape.kv_width()).enumerate();
        rows.with_min_len(16).for_each(|(row, sum)| {
            let (sequence, position) = (row / keys, row % keys);
            vectorized(
                #[inline(always)]
                || {
                    for (kv_head, sum) in sum.chunks_exact_mut(head_dim).enumerate() {
                        let first = (sequence * kv_heads + kv_head) * sharing;
                        let place = position * head_dim..(position + 1) * head_dim;
                        let sum = sum.write_copy_of_slice(&of(&parts[first])[place.clone()]);
                        for part in &parts[first + 1..first + sharing] {
                            for (sum, value) in sum.iter_mut().zip(&of(part)[place.clone()]) {
                                *sum += value;
                            }
                        }
                        finish(sum, row);
                    }
                },
            );
        });
    };
    // SAFETY: every value belongs to a head of a row, and each of those is written.
    #[allow(unsafe_code)]
    unsafe {
        vec_uninit_with(shape.batch * keys * shape.kv_width(), fill)
    }
}

struct Pass<'a> {
    saved: &'a Saved<'a>,
    gradient: &'a [f32],
    keys: &'a Keys<'a>,
    /// Where their gradient is needed.
    sinks: Option<&'a [f32]>,
    heads: usize,
    needs_grad: [bool; 4],
}

impl Pass<'_> {
    /// The part of that number: sequence by sequence, query heads in order. `column_block` takes the gradient of its
    /// queries.
    fn part(&self, index: usize, mut column_block: Option<Vec<&mut [MaybeUninit<f32>]>>) -> Part {
        let shape = self.saved.shape;
        let AttentionShape { keys, head_dim, .. } = shape;
        let heads = self.heads;
        let (sequence, first_head) = (
            index / (shape.heads / heads),
            index % (shape.heads / heads) * heads,
        );
        let kv_head = first_head / shape.group();
        let [_, key_needs_grad, value_needs_grad, _] = self.needs_grad;
        let sized = |needs_grad: bool| vec![0.0; if needs_grad { keys * head_dim } else { 0 }];
        let mut part = Part {
            key: sized(key_needs_grad),
            value: sized(value_needs_grad),
            sinks: vec![0.0; heads],
        };

        let mut scratch = Scratch::default();
        let step = shape.positions(heads);
        for stretch in self.saved.stretches.of_sequence(sequence) {
            for start in (0..stretch.length).step_by(step) {
                let positions = start..(start + step).min(stretch.length);
                self.pack(&mut scratch.rows, stretch, first_head, positions.clone());
                if let Some(sinks) = self.sinks {
                    let sinks = &sinks[first_head..first_head + heads];
                    scratch.rows.add_gradient_of(sinks, &mut part.sinks);
                }
                let query = self.block(&mut scratch, &mut part, stretch, kv_head, &positions);
                let Some(column_block) = &mut column_block else {
                    continue;
                };
                vectorized(
                    #[inline(always)]
                    || {
                        let rows = query.chunks_exact_mut(heads * head_dim);
                        for (position, row) in positions.clone().zip(rows) {
                            for head in row.chunks_exact_mut(head_dim) {
                                let token = stretch.token(position, shape);
                                let tables = self.saved.tables;
                                tables.rotate_transposed(head, token, shape.scale);
                            }
                            column_block[stretch.start + position].write_copy_of_slice(row);
                        }
                    },
                );
            }
        }
        part
    }

    /// Adds what the packed rows of these positions give to keys and values. Returns the gradient of their queries, still
    /// rotated and not scaled, where it is needed.
    fn block<'s>(
        &self,
        scratch: &'s mut Scratch,
        part: &mut Part,
        stretch: Stretch<'_>,
        kv_head: usize,
        positions: &Range<usize>,
    ) -> &'s mut [f32] {
        let (shape, precision) = (self.saved.shape, self.saved.precision);
        let (heads, head_dim, kv_width) = (self.heads, shape.head_dim, shape.kv_width());
        let [query_needs_grad, key_needs_grad, value_needs_grad, _] = self.needs_grad;
        let values = &self.saved.value[stretch.first_key(shape) * kv_width + kv_head * head_dim..];
        let Scratch {
            rows: packed,
            weights,
            d_scores,
            query,
        } = scratch;
        let query = scratch_slice(query, positions.len() * heads * head_dim);
        for (index, block) in stretch.key_blocks(positions).enumerate() {
            let seeing = stretch.seeing(positions, &block);
            let skipped = (seeing.start - positions.start) * heads;
            let (rows, count) = (seeing.len() * heads, block.len());
            let places = stretch.start + block.start..stretch.start + block.end;
            let weights = scratch_slice(weights, rows * KEYS);
            let d_scores = scratch_slice(d_scores, rows * KEYS);
            let seen_rows = skipped * head_dim..(skipped + rows) * head_dim;
            let queries = Matrix::new(&packed.queries[seen_rows.clone()], rows, head_dim);
            let gradients = Matrix::new(&packed.gradients[seen_rows.clone()], rows, head_dim);
            let keys = self.keys.matrix(stretch.sequence, kv_head, places.clone());
            let values =
                Matrix::strided(&values[block.start * kv_width..], count, head_dim, kv_width);

            gemm_at(
                precision,
                queries,
                keys.t(),
                Accumulate::Replace,
                weights,
                KEYS,
            );
            let into = Accumulate::Replace;
            gemm_at(precision, gradients, values.t(), into, d_scores, KEYS);
            vectorized(
                #[inline(always)]
                || {
                    let all = weights.chunks_exact_mut(KEYS);
                    let all = all.zip(d_scores.chunks_exact_mut(KEYS)).enumerate();
                    for (row, (weights, d_scores)) in all {
                        let position = seeing.start + row / heads;
                        let row = skipped + row;
                        let mut log_sum_exp = packed.log_sum_exp[row];
                        if let Some(bias) = stretch.bias(position, &block) {
                            add(weights, bias);
                            if log_sum_exp < HIDDEN / 2.0 {
                                // Every key is hidden, so that all have the same weight. Next to −1e30 the logarithm of their
                                // number is lost to rounding.
                                weights[..count].fill(0.0);
                                log_sum_exp = (shape.keys as f32).ln();
                            }
                        }
                        let seen = stretch.seen(position, &block);
                        finish_row(
                            [weights, d_scores],
                            [log_sum_exp, packed.deltas[row]],
                            seen,
                            count,
                        );
                    }
                },
            );
            let weights = Matrix::strided(weights, rows, count, KEYS);
            let d_scores = Matrix::strided(d_scores, rows, count, KEYS);
            let place = places.start * head_dim..places.end * head_dim;
            let into = Accumulate::Add;
            if value_needs_grad {
                let value = &mut part.value[place.clone()];
                gemm_at(precision, weights.t(), gradients, into, value, head_dim);
            }
            if key_needs_grad {
                let key = &mut part.key[place];
                gemm_at(precision, d_scores.t(), queries, into, key, head_dim);
            }
            if query_needs_grad {
                let into = match index {
                    0 => Accumulate::Replace,
                    _ => Accumulate::Add,
                };
                if index == 0 {
                    // Rows that see nothing of the first block add to these when they first see something.
                    query[rows * head_dim..].fill(0.0);
                }
                let query = &mut query[seen_rows];
                gemm_at(precision, d_scores, keys, into, query, head_dim);
            }
        }
        query
    }

    /// Lays out the rows of a block: position by position, head by head.
    fn pack(
        &self,
        block: &mut Rows,
        stretch: Stretch<'_>,
        first_head: usize,
        positions: Range<usize>,
    ) {
        let Saved {
            query,
            output,
            log_sum_exp,
            tables,
            shape,
            ..
        } = *self.saved;
        let (heads, head_dim, width) = (self.heads, shape.head_dim, shape.width());
        block.clear();
        vectorized(
            #[inline(always)]
            || {
                for position in positions.clone() {
                    let row = stretch.token(position, shape);
                    let start = row * width + first_head * head_dim;
                    let columns = start..start + heads * head_dim;
                    let before = block.queries.len();
                    block.queries.extend_from_slice(&query[columns.clone()]);
                    for head in block.queries[before..].chunks_exact_mut(head_dim) {
                        tables.rotate(head, row, shape.scale);
                    }
                    let gradient = &self.gradient[columns.clone()];
                    block.gradients.extend_from_slice(gradient);
                    let outputs = output[columns].chunks_exact(head_dim);
                    let deltas = gradient.chunks_exact(head_dim).zip(outputs);
                    block.deltas.extend(deltas.map(|(a, b)| dot(a, b)));
                    let place = row * shape.heads + first_head;
                    block
                        .log_sum_exp
                        .extend_from_slice(&log_sum_exp[place..place + heads]);
                }
            },
        );
    }
}

/// What a block needs; kept from block to block.
#[derive(Default)]
struct Scratch {
    rows: Rows,
    weights: Vec<f32>,
    d_scores: Vec<f32>,
    /// The gradient of queries, `[rows, head_dim]`
    query: Vec<f32>,
}

/// The rows of a block.
#[derive(Default)]
struct Rows {
    /// Turned and scaled, `[rows, head_dim]`
    queries: Vec<f32>,
    /// Of the output, `[rows, head_dim]`
    gradients: Vec<f32>,
    /// ln Σ exp(score), `[rows]`
    log_sum_exp: Vec<f32>,
    /// Gradient · output, `[rows]`
    deltas: Vec<f32>,
}

impl Rows {
    fn clear(&mut self) {
        for values in [
            &mut self.queries,
            &mut self.gradients,
            &mut self.log_sum_exp,
            &mut self.deltas,
        ] {
            values.clear();
        }
    }

    /// Adds that of the sinks of the rows' heads: dS of a score without a value.
    fn add_gradient_of(&self, sinks: &[f32], sums: &mut [f64]) {
        let rows = self.log_sum_exp.chunks_exact(sinks.len());
        let rows = rows.zip(self.deltas.chunks_exact(sinks.len()));
        for (log_sum_exp, deltas) in rows {
            let rows = log_sum_exp.iter().zip(deltas);
            for ((sum, sink), (log_sum_exp, delta)) in sums.iter_mut().zip(sinks).zip(rows) {
                *sum -= f64::from(exp(sink - log_sum_exp) * delta);
            }
        }
    }
}

/// Scores become weights, and gradients of weights gradients of scores, where they are `seen`; the others, up to `count`,
/// become zeros.
#[inline(always)]
fn finish_row(
    [weights, d_scores]: [&mut [f32]; 2],
    [log_sum_exp, delta]: [f32; 2],
    seen: Range<usize>,
    count: usize,
) {
    // Whole lanes from the first on: what is not seen is overwritten below.
    let lanes = seen.end.next_multiple_of(LANES);
    for (weight, d_score) in weights[..lanes].iter_mut().zip(&mut d_scores[..lanes]) {
        *weight = exp(*weight - log_sum_exp);
        *d_score = *weight * (*d_score - delta);
    }
    for hidden in [0..seen.start, seen.end..lanes.max(count)] {
        weights[hidden.clone()].fill(0.0);
        d_scores[hidden].fill(0.0);
    }
}

/// Σ a b, in a fixed order that vectors can follow.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.into_iter().sum::<f32>() + rest
}
