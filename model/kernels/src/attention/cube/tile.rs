//! Products of blocks of 64 positions: operands pass through shared memory, sums stay in registers.
//!
//! The 128 units of a cube stand in 16 lines of 8. A unit keeps the scores of four rows in a line, those of its line,
//! with eight columns, and of the same rows a strip of what the scores are multiplied by. Both operands of a step lie
//! in shared memory by depth, so that a unit reads four rows or four columns as one vector. Values come from memory
//! in pairs, of which every head has a whole number.

use cubecl::prelude::*;

/// Two values side by side in memory.
pub type Pair = Vector<f32, Const<2>>;
/// Four values.
pub type Quad = Vector<f32, Const<QUAD>>;

/// Values of a vector in shared memory, and rows of a unit.
pub const QUAD: usize = 4;
/// Positions of a block.
pub const TILE: usize = 64;
/// Units of a cube.
pub const UNITS: usize = TILE / QUAD * SIDE;
/// Units that share a row.
pub const SIDE: usize = 8;
/// Vectors of a row of scores that a unit keeps.
pub const SCORES: usize = TILE / QUAD / SIDE;
/// Values of a head for each vector of it that a unit keeps.
pub const STRIP: usize = QUAD * SIDE;

/// How deep a step of a product goes.
pub const DEPTH: usize = 16;
/// Vectors from one line of a tile of positions to the next: one more than there are, so that lines meet different
/// banks.
pub const PITCH: usize = TILE / QUAD + 1;
/// Strips that pass through shared memory together.
const STRIPS: usize = 4;

/// Vectors of shared memory for the left operand.
pub const LEFT: usize = DEPTH * PITCH;
/// Vectors of shared memory for the right operand: a tile of positions, or one of whole rows.
pub const RIGHT: usize = DEPTH * STRIPS * SIDE;

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

/// The i-th row of a unit within a block.
#[cube]
pub fn row_of_unit(#[comptime] i: usize) -> usize {
    UNIT_POS as usize / SIDE * QUAD + i
}

/// The column of the c-th value of the j-th vector of scores of a unit within a block.
#[cube]
pub fn column_of_unit(#[comptime] j: usize, #[comptime] c: usize) -> usize {
    (j * SIDE + UNIT_POS as usize % SIDE) * QUAD + c
}

/// `left · rightᵀ` of the positions from `first_left` and `first_right`: vector `[i * SCORES + j]` has row i of a unit.
/// Positions behind the last one count as zeros.
#[cube]
pub fn scores(
    left: &[Pair],
    left_head: &Head,
    first_left: usize,
    right: &[Pair],
    right_head: &Head,
    first_right: usize,
    left_tile: &mut Shared<[Quad]>,
    right_tile: &mut Shared<[Quad]>,
    sums: &mut Array<Quad>,
) {
    let line_of_units = UNIT_POS as usize / SIDE;
    let place = UNIT_POS as usize % SIDE;
    #[unroll]
    for sum in 0..QUAD * SCORES {
        sums[sum] = Quad::new(0.0f32);
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
                for i in 0..QUAD {
                    sums[i * SCORES + j] += Quad::new(rows.extract(i)) * columns;
                }
            }
        }
        sync_cube();
        depth += DEPTH / 2;
    }
}

/// Adds `weights · source` of the positions from `first`: vector `[i * strips + s]` of the sums has row i of a unit.
#[cube]
pub fn accumulate(
    weights: &Array<Quad>,
    source: &[Pair],
    head: &Head,
    first: usize,
    left_tile: &mut Shared<[Quad]>,
    right_tile: &mut Shared<[Quad]>,
    sums: &mut Array<Quad>,
    #[comptime] strips: usize,
) {
    let line_of_units = UNIT_POS as usize / SIDE;
    let place = UNIT_POS as usize % SIDE;
    // A step takes two neighbouring columns of weights from every unit.
    #[unroll]
    for step in 0..TILE / DEPTH {
        #[unroll]
        for half in 0..2usize {
            let column = comptime!(step * 2 + half);
            let mut rows = Quad::new(0.0f32);
            #[unroll]
            for i in 0..QUAD {
                let weights = weights[i * SCORES + column / QUAD];
                rows.insert(i, weights.extract(column % QUAD));
            }
            left_tile[(half * SIDE + place) * PITCH + line_of_units] = rows;
        }
        let first = first + comptime!(step * 2 / QUAD * STRIP + step * 2 % QUAD);
        #[unroll]
        for part in 0..strips.div_ceil(STRIPS) {
            let before = comptime!(part * STRIPS);
            let count = comptime!(usize::min(STRIPS, strips - before));
            bring_rows(source, head, first, before * SIDE, right_tile, count);
            sync_cube();
            #[unroll]
            for line in 0..DEPTH {
                let rows = left_tile[line * PITCH + line_of_units];
                #[unroll]
                for strip in 0..count {
                    let values = right_tile[(line * count + strip) * SIDE + place];
                    #[unroll]
                    for i in 0..QUAD {
                        sums[i * strips + before + strip] += Quad::new(rows.extract(i)) * values;
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
    sums: &Array<Quad>,
    factors: &Array<f32>,
    output: &mut [Pair],
    head: &Head,
    first: usize,
    #[comptime] strips: usize,
) {
    #[unroll]
    for i in 0..QUAD {
        let position = first + row_of_unit(i);
        if position < head.length {
            #[unroll]
            for strip in 0..strips {
                let values = sums[i * strips + strip] * Quad::new(factors[i]);
                let vector = strip * SIDE + UNIT_POS as usize % SIDE;
                #[unroll]
                for half in 0..2usize {
                    let pair = vector * 2 + half;
                    if pair < head.pairs {
                        let mut both = Pair::new(values.extract(half * 2));
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
pub fn bring_by_depth(
    source: &[Pair],
    head: &Head,
    first: usize,
    depth: usize,
    tile: &mut Shared<[Quad]>,
) {
    let line = UNIT_POS as usize % (DEPTH / 2);
    let rows = UNIT_POS as usize / (DEPTH / 2);
    let pair = depth + line;
    let mut even = Quad::new(0.0f32);
    let mut odd = Quad::new(0.0f32);
    #[unroll]
    for i in 0..QUAD {
        let position = first + rows * QUAD + i;
        if position < head.length && pair < head.pairs {
            let values = source[head.start + position * head.stride + pair];
            even.insert(i, values.extract(0usize));
            odd.insert(i, values.extract(1usize));
        }
    }
    tile[line * 2 * PITCH + rows] = even;
    tile[(line * 2 + 1) * PITCH + rows] = odd;
}

/// The strips from vector `before` of a step's positions, in the order in which [`accumulate`] lays out its weights;
/// zeros behind the last ones.
#[cube]
fn bring_rows(
    source: &[Pair],
    head: &Head,
    first: usize,
    #[comptime] before: usize,
    tile: &mut Shared<[Quad]>,
    #[comptime] strips: usize,
) {
    #[unroll]
    for load in 0..DEPTH * strips * SIDE / UNITS {
        let slot = UNIT_POS as usize + load * UNITS;
        let line = slot / comptime!(strips * SIDE);
        let position = first + line % SIDE * QUAD + line / SIDE;
        let pair = (before + slot % comptime!(strips * SIDE)) * 2;
        let mut values = Quad::new(0.0f32);
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
