//! Rows of the experts' work: cut into blocks, gathered from tokens, and combined into tokens again.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::dispatch::{ELSEWHERE, HostPlan};
use crate::host::uninit::vec_uninit_with;
use crate::precision::Precision;

/// The most rows that are worked on at a time. Measured with d_model 256 and 512 and experts of 512 and 1024:
/// below, the backward pass packs transposed weight matrices too often (128 rows: 10 % slower); above, little is
/// gained (512 rows: 3–5 %), and too few blocks are left to occupy all cores evenly.
const BLOCK_ROWS: usize = 256;

/// The same in bf16, where each block rounds the weights anew.
const BLOCK_ROWS_OF_BF16: usize = 512;

/// The most rows of a block at a precision.
pub fn block_rows(precision: Precision) -> usize {
    match precision {
        Precision::F32 => BLOCK_ROWS,
        Precision::Bf16 => BLOCK_ROWS_OF_BF16,
    }
}

/// Tokens whose rows are combined by one task.
const TOKENS: usize = 64;

/// Some rows of one expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Whose.
    pub expert: usize,
    /// Which of all rows.
    pub rows: Range<usize>,
}

/// All rows, in their order, in blocks of at most `largest`. The cut depends on the plan alone, never on the
/// number of threads.
pub fn blocks(plan: &HostPlan, largest: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    for expert in 0..plan.experts {
        let (start, end) = (plan.offsets[expert], plan.offsets[expert + 1]);
        blocks.extend(even_parts(end - start, largest).map(|part| Block {
            expert,
            rows: start + part.start..start + part.end,
        }));
    }
    blocks
}

/// `0..length` in the fewest parts of at most `largest`, of sizes that differ by 1 at most.
pub fn even_parts(length: usize, largest: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let parts = length.div_ceil(largest);
    (0..parts).map(move |part| part * length / parts..(part + 1) * length / parts)
}

/// A buffer cut into pieces of these lengths, which fill it.
pub fn pieces<T>(mut buffer: &mut [T], lengths: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let pieces = lengths
        .map(|length| {
            buffer
                .split_off_mut(..length)
                .expect("as long as its parts")
        })
        .collect();
    assert!(buffer.is_empty(), "as long as its parts");
    pieces
}

/// Copies the rows of `tokens` one after the other.
///
/// # Shapes
///
/// - `source`: `[any, width]`
/// - `rows`: `[tokens, width]`
pub fn gather<'a>(
    source: &[f32],
    tokens: &[u32],
    width: usize,
    rows: &'a mut [MaybeUninit<f32>],
) -> &'a mut [f32] {
    assert_eq!(rows.len(), tokens.len() * width);
    for (row, &token) in rows.chunks_exact_mut(width).zip(tokens) {
        row.write_copy_of_slice(&source[token as usize * width..][..width]);
    }
    // SAFETY: there is a token for each row, as was asserted, so that each row was written.
    #[allow(unsafe_code)]
    unsafe {
        rows.assume_init_mut()
    }
}

/// Adds a bias to each row, `[rows, width]`.
pub fn add_to_rows(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            *value += bias;
        }
    }
}

/// Rows that [`sum_by_expert`] adds up one after the other.
const SUMMED_ROWS: usize = 256;

/// Columns that a task of [`sum_by_expert`] adds up.
const SUMMED_COLUMNS: usize = 256;

/// The sum of each expert's rows, `[experts, width]`, each row times its factor, or 1 when absent: blocks of rows each by
/// itself, then their sums.
///
/// # Shapes
///
/// - `rows`: `[rows, width]`
/// - `factors`: `[rows]`
pub fn sum_by_expert(
    plan: &HostPlan,
    rows: &[f32],
    factors: Option<&[f32]>,
    width: usize,
) -> Vec<f32> {
    let mut sums = vec![0.0; plan.experts * width];
    let by_expert = sums.par_chunks_exact_mut(width).enumerate();
    by_expert.for_each(|(expert, sums)| {
        let of_expert = plan.offsets[expert]..plan.offsets[expert + 1];
        let by_column = sums.par_chunks_mut(SUMMED_COLUMNS).enumerate();
        by_column.for_each(|(part, sums)| {
            let columns = part * SUMMED_COLUMNS..part * SUMMED_COLUMNS + sums.len();
            for block in of_expert.clone().step_by(SUMMED_ROWS) {
                let mut of_block = [0.0f32; SUMMED_COLUMNS];
                for row in block..(block + SUMMED_ROWS).min(of_expert.end) {
                    let factor = factors.map_or(1.0, |factors| factors[row]);
                    let values = &rows[row * width..][columns.clone()];
                    let pairs = of_block.iter_mut().zip(values);
                    pairs.for_each(|(sum, value)| *sum += factor * value);
                }
                let pairs = sums.iter_mut().zip(of_block);
                pairs.for_each(|(sum, of_block)| *sum += of_block);
            }
        });
    });
    sums
}

/// `output[t] = Σ_s Σ_j factors[t, j] · rows[s, row of (t, j)]`, always added in this order: s outside, then j. What has no
/// row adds nothing.
///
/// # Shapes
///
/// - `rows`: `[slices, rows, width]`, each row a sum of its slices
/// - `factors`: `[tokens, top_k]`; 1 when absent
/// - output: `[tokens, width]`
pub fn combine(
    plan: &HostPlan,
    rows: &[f32],
    slices: usize,
    factors: Option<&[f32]>,
    width: usize,
) -> Vec<f32> {
    let (of_slice, top_k) = (plan.token_of_row.len(), plan.top_k);
    let length = plan.row_of_assignment.len() / top_k * width;
    assert_eq!(rows.len(), slices * of_slice * width);
    let fill = |output: &mut [MaybeUninit<f32>]| {
        output
            .par_chunks_mut(TOKENS * width)
            .enumerate()
            .for_each(|(chunk, outputs)| {
                for (within, output) in outputs.chunks_exact_mut(width).enumerate() {
                    let first = (chunk * TOKENS + within) * top_k;
                    let mut terms = (0..slices).flat_map(|slice| {
                        (first..first + top_k).filter_map(move |assignment| {
                            let row = plan.row_of_assignment[assignment];
                            if row == ELSEWHERE {
                                return None;
                            }
                            let row = slice * of_slice + row as usize;
                            let factor = factors.map_or(1.0, |factors| factors[assignment]);
                            Some((&rows[row * width..][..width], factor))
                        })
                    });
                    match terms.next() {
                        Some((row, factor)) => {
                            for (output, value) in output.iter_mut().zip(row) {
                                output.write(factor * value);
                            }
                        }
                        None => output.fill(MaybeUninit::new(0.0)),
                    }
                    // SAFETY: a row has the length of the output, so that each value was written above.
                    #[allow(unsafe_code)]
                    let output = unsafe { output.assume_init_mut() };
                    for (row, factor) in terms {
                        for (output, value) in output.iter_mut().zip(row) {
                            *output += factor * value;
                        }
                    }
                }
            });
    };
    // SAFETY: the chunks cover the output, whose length is a multiple of `d_model`, and each token is written.
    #[allow(unsafe_code)]
    unsafe {
        vec_uninit_with(length, fill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_rows_of_each_expert_evenly() {
        let plan = HostPlan::new(&[2, 0, 2, 2, 2, 2], 4, 1);
        let block = |expert, rows| Block { expert, rows };
        assert_eq!(
            blocks(&plan, 4),
            [block(0, 0..1), block(2, 1..3), block(2, 3..6)]
        );
        assert_eq!(blocks(&HostPlan::new(&[], 3, 2), 4), []);
    }

    #[test]
    #[should_panic(expected = "as long as its parts")]
    fn pieces_fill_the_buffer() {
        pieces(&mut [0; 5], [2, 2].into_iter());
    }
}
