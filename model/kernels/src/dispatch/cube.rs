//! The dispatch plan in CubeCL kernels: a stable counting sort without atomics, so that every run gives the same
//! plan.

// Kernels know ranges, but not the adaptors of iterators.
#![allow(clippy::needless_range_loop)]

use burn::backend::Cube;
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use cubecl::prelude::*;

use super::{DispatchBackend, Tables};
use crate::cube::{UNITS, contiguous, empty_float, empty_int, sum_of_group, units, zeros};

/// Assignments that one unit counts. Counting reads every assignment once for each expert, in parallel.
const BLOCK_ASSIGNMENTS: usize = 256;

impl DispatchBackend for Cube {
    fn choose(scores: FloatTensor<Self>, bias: FloatTensor<Self>, top_k: usize) -> Tables<Self> {
        let [tokens, experts] = scores.shape().dims();
        let assignments = tokens * top_k;
        let like = scores.clone();
        if assignments == 0 {
            return Tables::Device {
                chosen: zeros(&like, [tokens, top_k], DType::I32),
                assignment_of_row: zeros(&like, [0], DType::I32),
                row_of_assignment: zeros(&like, [0], DType::I32),
                offsets: zeros(&like, [experts + 1], DType::I32),
            };
        }
        let client = like.client.clone();
        let chosen = empty_int(&like, [tokens, top_k]);
        let (count, dim) = units(&client, tokens);
        choose_kernel::launch(
            &client,
            count,
            dim,
            contiguous(scores).into_buffer_arg(),
            contiguous(bias).into_buffer_arg(),
            chosen.clone().into_buffer_arg(),
            experts,
            top_k,
        );

        let blocks = assignments.div_ceil(BLOCK_ASSIGNMENTS);
        let starts = empty_int(&like, [experts, blocks]);
        let (count, dim) = units(&client, experts * blocks);
        count_kernel::launch(
            &client,
            count.clone(),
            dim,
            chosen.clone().into_buffer_arg(),
            starts.clone().into_buffer_arg(),
            blocks,
            BLOCK_ASSIGNMENTS,
        );
        let totals = empty_int(&like, [experts]);
        let (expert_count, expert_dim) = units(&client, experts);
        scan_kernel::launch(
            &client,
            expert_count,
            expert_dim,
            starts.clone().into_buffer_arg(),
            totals.clone().into_buffer_arg(),
            blocks,
        );
        let [assignment_of_row, row_of_assignment] =
            [(); 2].map(|()| empty_int(&like, [assignments]));
        let offsets = empty_int(&like, [experts + 1]);
        place_kernel::launch(
            &client,
            count,
            dim,
            chosen.clone().into_buffer_arg(),
            starts.into_buffer_arg(),
            totals.into_buffer_arg(),
            assignment_of_row.clone().into_buffer_arg(),
            row_of_assignment.clone().into_buffer_arg(),
            offsets.clone().into_buffer_arg(),
            blocks,
            BLOCK_ASSIGNMENTS,
        );
        Tables::Device {
            chosen,
            assignment_of_row,
            row_of_assignment,
            offsets,
        }
    }

    fn load(valid: FloatTensor<Self>, tables: Tables<Self>) -> FloatTensor<Self> {
        let Tables::Device {
            chosen,
            assignment_of_row,
            offsets,
            ..
        } = tables
        else {
            unreachable!("a CubeCL backend makes no other");
        };
        let [_, top_k] = chosen.shape().dims();
        let experts = offsets.shape()[0] - 1;
        let load = empty_float(&valid, [experts]);
        load_kernel::launch(
            &valid.client.clone(),
            CubeCount::new_1d(experts as u32),
            CubeDim::new_1d(UNITS as u32),
            contiguous(valid).into_buffer_arg(),
            assignment_of_row.into_buffer_arg(),
            offsets.into_buffer_arg(),
            load.clone().into_buffer_arg(),
            top_k,
        );
        load
    }
}

/// Whole numbers in the order of `f32::total_cmp`.
#[cube]
fn order_key(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    if bits >= 0x8000_0000u32 {
        bits ^ 0xffff_ffffu32
    } else {
        bits | 0x8000_0000u32
    }
}

/// A unit a token. Its choices come one after the other, each the first that stands behind the one before, so
/// that no list of what was chosen is needed.
#[cube(launch)]
fn choose_kernel(scores: &[f32], bias: &[f32], chosen: &mut [i32], experts: usize, top_k: usize) {
    let token = ABSOLUTE_POS;
    if token * top_k >= chosen.len() {
        terminate!();
    }
    let mut last_key = 0u32;
    let mut last = 0usize;
    for place in 0..top_k {
        let mut best_key = 0u32;
        let mut best = experts;
        for expert in 0..experts {
            let key = order_key(scores[token * experts + expert] + bias[expert]);
            let behind = place == 0 || key < last_key || (key == last_key && expert > last);
            if behind && (best == experts || key > best_key) {
                best_key = key;
                best = expert;
            }
        }
        chosen[token * top_k + place] = best as i32;
        last_key = best_key;
        last = best;
    }
}

/// Counts the assignments of a block to an expert, `[experts, blocks]`; a unit each.
#[cube(launch)]
fn count_kernel(chosen: &[i32], counts: &mut [i32], blocks: usize, #[comptime] block: usize) {
    if ABSOLUTE_POS >= counts.len() {
        terminate!();
    }
    let expert = (ABSOLUTE_POS / blocks) as i32;
    let start = (ABSOLUTE_POS % blocks) * block;
    let end = usize::min(start + block, chosen.len());
    let mut count = 0i32;
    for assignment in start..end {
        if chosen[assignment] == expert {
            count += 1;
        }
    }
    counts[ABSOLUTE_POS] = count;
}

/// Turns an expert's counts into where each block starts among its rows; a unit an expert.
#[cube(launch)]
fn scan_kernel(counts: &mut [i32], totals: &mut [i32], blocks: usize) {
    let expert = ABSOLUTE_POS;
    if expert >= totals.len() {
        terminate!();
    }
    let mut sum = 0i32;
    for block in 0..blocks {
        let count = counts[expert * blocks + block];
        counts[expert * blocks + block] = sum;
        sum += count;
    }
    totals[expert] = sum;
}

/// Places the assignments of a block to an expert, in their order; a unit each.
#[cube(launch)]
fn place_kernel(
    chosen: &[i32],
    starts: &[i32],
    totals: &[i32],
    assignment_of_row: &mut [i32],
    row_of_assignment: &mut [i32],
    offsets: &mut [i32],
    blocks: usize,
    #[comptime] block: usize,
) {
    if ABSOLUTE_POS >= starts.len() {
        terminate!();
    }
    let expert = ABSOLUTE_POS / blocks;
    let mut offset = 0i32;
    for before in 0..expert {
        offset += totals[before];
    }
    if ABSOLUTE_POS.is_multiple_of(blocks) {
        offsets[expert] = offset;
        if expert + 1 == totals.len() {
            offsets[expert + 1] = offset + totals[expert];
        }
    }
    let start = (ABSOLUTE_POS % blocks) * block;
    let end = usize::min(start + block, chosen.len());
    let mut row = offset + starts[ABSOLUTE_POS];
    for assignment in start..end {
        if chosen[assignment] == expert as i32 {
            assignment_of_row[row as usize] = assignment as i32;
            row_of_assignment[assignment] = row;
            row += 1;
        }
    }
}

/// Adds up `valid` over the rows of an expert; a cube an expert. Whole numbers, so that no order of summing
/// matters up to 2²⁴.
#[cube(launch)]
fn load_kernel(
    valid: &[f32],
    assignment_of_row: &[i32],
    offsets: &[i32],
    load: &mut [f32],
    top_k: usize,
) {
    let expert = CUBE_POS;
    let unit = UNIT_POS as usize;
    let end = offsets[expert + 1] as usize;
    let mut row = offsets[expert] as usize + unit;
    let mut sum = 0.0f32;
    while row < end {
        sum += valid[assignment_of_row[row] as usize / top_k];
        row += UNITS;
    }
    let sum = sum_of_group(sum, UNITS);
    if unit == 0 {
        load[expert] = sum;
    }
}
