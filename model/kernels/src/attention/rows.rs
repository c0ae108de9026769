//! What the forward and the backward pass share: the shape of the work, and rows of queries and keys laid out for it.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::host::gemm::Matrix;
use crate::host::simd::vectorized;
use crate::host::uninit::vec_uninit_with;

/// Widths of rows of scores are rounded up to whole groups of this many, which loops over them turn into vector
/// instructions without a remainder.
pub(super) const LANES: usize = 16;

/// Keys of a block.
pub(super) const KEYS: usize = 128;

/// Rows of a block: (position, query head) pairs. A block's rows, scores and outputs together stay in the second
/// level of the cache.
const ROWS: usize = 128;

/// What the kernels need to know of an attention, but for its tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Positions of each.
    pub length: usize,
    /// Positions of the keys of each: `length`, or those of what it attends to.
    pub keys: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Values of a head; even where it is causal.
    pub head_dim: usize,
    /// Values of a head that are rotated by their position, its first ones; even, 0 for none.
    pub rotary_dim: usize,
    /// The most positions that a query sees, at least 1; `None` for all.
    pub window: Option<usize>,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether there are sinks.
    pub sinks: bool,
}

impl AttentionShape {
    /// Query heads that share a key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Values of one position's queries.
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of one position's keys.
    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The most positions of a block in which `heads` query heads stand under each other.
    pub(super) fn positions(&self, heads: usize) -> usize {
        (ROWS / heads).max(1)
    }
}

/// Cosines and sines of the rotary positions, each `[rows, half]`: a row per position of a sequence, or a row per token
/// of the batch. Nobody reads them where `half` is 0.
#[derive(Debug, Clone, Copy)]
pub struct RopeTables<'a> {
    /// By position and frequency.
    pub cosines: &'a [f32],
    /// By position and frequency.
    pub sines: &'a [f32],
    /// Pairs of values of a head that are rotated.
    pub half: usize,
}

impl RopeTables<'_> {
    /// Rotates a head of the batch's token `token` by its position and scales it.
    #[inline(always)]
    pub(super) fn rotate(&self, head: &mut [f32], token: usize, scale: f32) {
        self.rotate_by(head, token, scale, 1.0);
    }

    /// The transpose of [`rotate`](Self::rotate), which is what a gradient takes: the same with the angles negated.
    #[inline(always)]
    pub(super) fn rotate_transposed(&self, head: &mut [f32], token: usize, scale: f32) {
        self.rotate_by(head, token, scale, -1.0);
    }

    #[inline(always)]
    fn rotate_by(&self, head: &mut [f32], token: usize, scale: f32, direction: f32) {
        let half = self.half;
        let (rotated, rest) = head.split_at_mut(2 * half);
        for value in rest {
            *value *= scale;
        }
        if half == 0 {
            return;
        }
        let row = token * half % self.cosines.len();
        let place = row..row + half;
        let (first, second) = rotated.split_at_mut(half);
        let tables = self.cosines[place.clone()].iter().zip(&self.sines[place]);
        for ((a, b), (cosine, sine)) in first.iter_mut().zip(second).zip(tables) {
            let sine = direction * sine;
            (*a, *b) = (
                scale * (*a * cosine - *b * sine),
                scale * (*b * cosine + *a * sine),
            );
        }
    }
}

/// All keys, rotated by their positions.
pub(super) struct Keys<'a> {
    values: Cow<'a, [f32]>,
    shape: AttentionShape,
}

impl<'a> Keys<'a> {
    /// Of `key`, `[batch, keys, kv_heads, head_dim]`; head by head where they are rotated, and else as they are.
    pub fn new(key: &'a [f32], tables: RopeTables<'_>, shape: AttentionShape) -> Self {
        let values = match tables.half {
            0 => Cow::Borrowed(key),
            _ => Cow::Owned(rotated_keys(key, tables, shape)),
        };
        Self { values, shape }
    }

    /// Those of a head at some positions of a sequence, `[positions, head_dim]`.
    pub fn matrix(&self, sequence: usize, kv_head: usize, positions: Range<usize>) -> Matrix<'_> {
        let AttentionShape {
            keys,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let count = positions.len();
        let (first, stride) = match &self.values {
            Cow::Borrowed(_) => {
                let position = sequence * keys + positions.start;
                (position * kv_heads + kv_head, kv_heads * head_dim)
            }
            Cow::Owned(_) => {
                let head = sequence * kv_heads + kv_head;
                (head * keys + positions.start, head_dim)
            }
        };
        Matrix::strided(&self.values[first * head_dim..], count, head_dim, stride)
    }
}

/// All keys, rotated by their positions: `[batch, kv_heads, keys, head_dim]`.
fn rotated_keys(key: &[f32], tables: RopeTables<'_>, shape: AttentionShape) -> Vec<f32> {
    let AttentionShape {
        keys,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let fill = |rotated: &mut [MaybeUninit<f32>]| {
        let heads = rotated.par_chunks_mut(keys * head_dim).enumerate();
        heads.for_each(|(index, rotated)| {
            let (sequence, kv_head) = (index / kv_heads, index % kv_heads);
            let start = sequence * keys * kv_heads + kv_head;
            vectorized(
                #[inline(always)]
                || {
                    for (position, rotated) in rotated.chunks_exact_mut(head_dim).enumerate() {
                        let place = (start + position * kv_heads) * head_dim;
                        let rotated = rotated.write_copy_of_slice(&key[place..place + head_dim]);
                        tables.rotate(rotated, sequence * keys + position, 1.0);
                    }
                },
            );
        });
    };
    // SAFETY: every value belongs to a head's position, and each of those is written.
    #[allow(unsafe_code)]
    unsafe {
        vec_uninit_with(key.len(), fill)
    }
}

/// Adds numbers to the first of these values.
#[inline(always)]
pub(super) fn add(values: &mut [f32], numbers: &[f32]) {
    for (value, number) in values.iter_mut().zip(numbers) {
        *value += number;
    }
}

/// The first of `size` values of a buffer that grows where it is too small; what they are is left over from before.
pub(super) fn scratch_slice(buffer: &mut Vec<f32>, size: usize) -> &mut [f32] {
    if buffer.len() < size {
        buffer.resize(size, 0.0);
    }
    &mut buffer[..size]
}
