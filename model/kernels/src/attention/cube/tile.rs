//! Products of blocks of 64 positions: operands pass through shared memory, sums stay in registers.
//!
//! The 128 units of a cube stand in 16 lines of 8. A unit keeps the scores of four rows in a line, those of its line,
//! with eight columns, and of the same rows a block of columns of what the scores are multiplied by. Both operands of a step lie
//! in shared memory by depth, so that a unit reads four rows or four columns as one vector. Values come from memory
//! in pairs, of which every head has a whole number.

use cubecl::prelude::*;

use super::Limits;

/// Two values side by side in memory.
pub type Float2 = Vector<f32, Const<2>>;
/// Four values.
pub type Float4 = Vector<f32, Const<VECTOR>>;

/// Values of a vector in shared memory, and rows of a unit.
pub const VECTOR: usize = 4;
/// Positions of a block.
pub const TILE: usize = 64;
/// Units of a cube.
pub const UNITS: usize = TILE / VECTOR * SIDE;
/// Units that share a row.
pub const SIDE: usize = 8;
/// Vectors of a row of scores that a unit keeps.
pub const SCORES: usize = TILE / VECTOR / SIDE;
/// Values of a head for each vector of it that a unit keeps.
pub const BLOCK_COLUMNS: usize = VECTOR * SIDE;

/// How deep a step of a product goes.
pub const DEPTH: usize = 16;
/// Vectors from one line of a tile of positions to the next: one more than there are, so that lines meet different
/// banks.
pub const PITCH: usize = TILE / VECTOR + 1;
/// Blocks of columns that pass through shared memory together.
const COLUMN_BLOCKS: usize = 4;

/// Vectors of shared memory for the left operand.
pub const LEFT: usize = DEPTH * PITCH;
/// Vectors of shared memory for the right operand: a tile of positions, or one of whole rows.
pub const RIGHT: usize = DEPTH * COLUMN_BLOCKS * SIDE;

/// Where the values of one head of one sequence lie, in pairs.
#[derive(CubeType, Clone, Copy)]
pub struct Head {
    /// The first pair of the first position.
    pub start: usize,
    /// From a position to the next.
    pub stride: usize,
    /// Positions.
    pub length: usize,
    /// Of a position.
    pub pairs: usize,
}

#[cube]
impl Head {
    /// The head of that number, sequence by sequence, in `[batch, length, heads, pairs]`.
    pub fn new(number: usize, length: usize, heads: usize, pairs: usize) -> Head {
        Head {
            start: (number / heads * length * heads + number % heads) * pairs,
            stride: heads * pairs,
            length,
            pairs,
        }
    }
}

/// The number of the cube in the second and third dimension of a launch by [`launch_of`](super::launch_of).
#[cube]
pub fn number_of_cube() -> usize {
    CUBE_POS_Y as usize + CUBE_POS_Z as usize * CUBE_COUNT_Y as usize
}

/// The first position of the cube's block, where blocks are counted from the last one of a sequence.
#[cube]
pub fn first_from_the_end(length: usize) -> usize {
    (length.div_ceil(TILE) - 1 - CUBE_POS_X as usize) * TILE
}

/// The first key that the query at a position of a sequence sees; behind the last one, what that sees.
#[cube]
pub fn first_key(
    first_keys: &[i32],
    sequence: usize,
    position: usize,
    length: usize,
    window: usize,
    #[comptime] limits: Limits,
) -> usize {
    let mut first = 0usize;
    if comptime!(limits.any()) {
        let position = min(position, length - 1);
        if comptime!(limits.ranges) {
            first = first_keys[sequence * length + position] as usize;
        }
        if comptime!(limits.window) {
            first = max(first, position + 1 - min(window, position + 1));
        }
    }
    first
}

/// Where the first block of keys begins of which the queries from `first` see anything.
#[cube]
pub fn first_block(
    first_keys: &[i32],
    sequence: usize,
    first: usize,
    length: usize,
    window: usize,
    #[comptime] limits: Limits,
) -> usize {
    first_key(first_keys, sequence, first, length, window, limits) / TILE * TILE
}

/// Whether the query at a position does not see a key, where the first one that it sees is `first_seen`.
#[cube]
pub fn is_hidden(
    key: usize,
    position: usize,
    first_seen: usize,
    #[comptime] limits: Limits,
) -> bool {
    let mut hidden = key > position;
    if comptime!(limits.any()) {
        hidden = hidden || key < first_seen;
    }
    hidden
}

/// The i-th row of a unit within a block.
#[cube]
pub fn row_of_unit(#[comptime] i: usize) -> usize {
    UNIT_POS as usize / SIDE * VECTOR + i
}

/// The column of the c-th value of the j-th vector of scores of a unit within a block.
#[cube]
pub fn column_of_unit(#[comptime] j: usize, #[comptime] c: usize) -> usize {
    (j * SIDE + UNIT_POS as usize % SIDE) * VECTOR + c
}

/// `left · rightᵀ` of the positions from `first_left` and `first_right`: vector `[i * SCORES + j]` has row i of a unit.
/// Positions behind the last one count as zeros.
#[cube]
pub fn scores(
    left: &[Float2],
    left_head: &Head,
    first_left: usize,
    right: &[Float2],
    right_head: &Head,
    first_right: usize,
    left_tile: &mut Shared<[Float4]>,
    right_tile: &mut Shared<[Float4]>,
    sums: &mut Array<Float4>,
) {
    let line_of_units = UNIT_POS as usize / SIDE;
    let place = UNIT_POS as usize % SIDE;
    #[unroll]
    for sum in 0..VECTOR * SCORES {
        sums[sum] = Float4::new(0.0f32);
    }
    let mut depth = 0usize;
    while depth < left_head.pairs {
        bring_by_depth(left, left_head, first_left, depth, left_tile);
        bring_by_depth(right, right_head, first_right, depth, right_tile);
        sync_cube();
        #[unroll]
        for line in 0..DEPTH {
            let rows = left_tile[line * PITCH + line_of_units];
            #[unroll]
            for j in 0..SCORES {
                let columns = right_tile[line * PITCH + j * SIDE + place];
                #[unroll]
                for i in 0..VECTOR {
                    sums[i * SCORES + j] += Float4::new(rows.extract(i)) * columns;
                }
            }
        }
        sync_cube();
        depth += DEPTH / 2;
    }
}

/// Adds `weights · source` of the positions from `first`: vector `[i * column_blocks + s]` of the sums has row i of a unit.
#[cube]
pub fn accumulate(
    weights: &Array<Float4>,
    source: &[Float2],
    head: &Head,
    first: usize,
    left_tile: &mut Shared<[Float4]>,
    right_tile: &mut Shared<[Float4]>,
    sums: &mut Array<Float4>,
    #[comptime] column_blocks: usize,
) {
    let line_of_units = UNIT_POS as usize / SIDE;
    let place = UNIT_POS as usize % SIDE;
    // A step takes two neighbouring columns of weights from every unit.
    #[unroll]
    for step in 0..TILE / DEPTH {
        #[unroll]
        for half in 0..2usize {
            let column = comptime!(step * 2 + half);
            let mut rows = Float4::new(0.0f32);
            #[unroll]
            for i in 0..VECTOR {
                let weights = weights[i * SCORES + column / VECTOR];
                rows.insert(i, weights.extract(column % VECTOR));
            }
            left_tile[(half * SIDE + place) * PITCH + line_of_units] = rows;
        }
        let first = first + comptime!(step * 2 / VECTOR * BLOCK_COLUMNS + step * 2 % VECTOR);
        #[unroll]
        for part in 0..column_blocks.div_ceil(COLUMN_BLOCKS) {
            let before = comptime!(part * COLUMN_BLOCKS);
            let count = comptime!(usize::min(COLUMN_BLOCKS, column_blocks - before));
            bring_rows(source, head, first, before * SIDE, right_tile, count);
            sync_cube();
            #[unroll]
            for line in 0..DEPTH {
                let rows = left_tile[line * PITCH + line_of_units];
                #[unroll]
                for column_block in 0..count {
                    let values = right_tile[(line * count + column_block) * SIDE + place];
                    #[unroll]
                    for i in 0..VECTOR {
                        sums[i * column_blocks + before + column_block] +=
                            Float4::new(rows.extract(i)) * values;
                    }
                }
            }
            sync_cube();
        }
    }
}

/// Writes sums that [`accumulate`] made, times a factor for each row of a unit, to the positions from `first`.
#[cube]
pub fn write(
    sums: &Array<Float4>,
    factors: &Array<f32>,
    output: &mut [Float2],
    head: &Head,
    first: usize,
    #[comptime] column_blocks: usize,
) {
    #[unroll]
    for i in 0..VECTOR {
        let position = first + row_of_unit(i);
        if position < head.length {
            #[unroll]
            for column_block in 0..column_blocks {
                let values = sums[i * column_blocks + column_block] * Float4::new(factors[i]);
                let vector = column_block * SIDE + UNIT_POS as usize % SIDE;
                #[unroll]
                for half in 0..2usize {
                    let pair = vector * 2 + half;
                    if pair < head.pairs {
                        let mut both = Float2::new(values.extract(half * 2));
                        both.insert(1usize, values.extract(half * 2 + 1));
                        output[head.start + position * head.stride + pair] = both;
                    }
                }
            }
        }
    }
}

/// A step's values of the positions from `first`, each value's positions side by side; zeros behind the last ones.
#[cube]
fn bring_by_depth(
    source: &[Float2],
    head: &Head,
    first: usize,
    depth: usize,
    tile: &mut Shared<[Float4]>,
) {
    let line = UNIT_POS as usize % (DEPTH / 2);
    let rows = UNIT_POS as usize / (DEPTH / 2);
    let pair = depth + line;
    let mut even = Float4::new(0.0f32);
    let mut odd = Float4::new(0.0f32);
    #[unroll]
    for i in 0..VECTOR {
        let position = first + rows * VECTOR + i;
        if position < head.length && pair < head.pairs {
            let values = source[head.start + position * head.stride + pair];
            even.insert(i, values.extract(0usize));
            odd.insert(i, values.extract(1usize));
        }
    }
    tile[line * 2 * PITCH + rows] = even;
    tile[(line * 2 + 1) * PITCH + rows] = odd;
}

/// The blocks of columns from vector `before` of a step's positions, in the order in which [`accumulate`] lays out its weights;
/// zeros behind the last ones.
#[cube]
fn bring_rows(
    source: &[Float2],
    head: &Head,
    first: usize,
    #[comptime] before: usize,
    tile: &mut Shared<[Float4]>,
    #[comptime] column_blocks: usize,
) {
    #[unroll]
    for load in 0..DEPTH * column_blocks * SIDE / UNITS {
        let slot = UNIT_POS as usize + load * UNITS;
        let line = slot / comptime!(column_blocks * SIDE);
        let position = first + line % SIDE * VECTOR + line / SIDE;
        let pair = (before + slot % comptime!(column_blocks * SIDE)) * 2;
        let mut values = Float4::new(0.0f32);
        if position < head.length {
            #[unroll]
            for half in 0..2usize {
                if pair + half < head.pairs {
                    let both = source[head.start + position * head.stride + pair + half];
                    values.insert(half * 2, both.extract(0usize));
                    values.insert(half * 2 + 1, both.extract(1usize));
                }
            }
        }
        tile[slot] = values;
    }
}
