//! One step of a product: tiles in shared memory, sums in registers.
//!
//! A cube computes a tile of 64 × 64 values; each of its 8 × 8 units keeps 8 × 8 of them in registers, and both
//! operands pass through shared memory 16 deep, in vectors of four. An operand lies *along* the depth of the sum when
//! its rows do, and across it otherwise.

use cubecl::prelude::*;

/// Rows and columns of a tile.
pub const TILE: usize = 64;
/// How deep a step of the sum goes.
pub const DEPTH: usize = 16;
/// Units along each side of a tile.
pub const SIDE: usize = 8;
/// Units of a cube.
pub const UNITS: usize = SIDE * SIDE;
/// Rows and columns of a unit.
pub const UNIT: usize = TILE / SIDE;
/// Values of a vector.
const VECTOR: usize = 4;
/// Vectors of each operand that a unit brings to shared memory in a step.
const LOADS: usize = TILE * DEPTH / VECTOR / UNITS;

/// Four values.
pub type Float4 = Vector<f32, Const<VECTOR>>;

/// Vectors of a tile in shared memory. A tile of an operand whose rows run along the depth has a line of four
/// vectors and one of padding for each of its 64 places, so that the lines meet different banks; one whose rows run
/// across has a line of sixteen for each step of the depth.
pub const fn size(along: bool) -> usize {
    match along {
        true => TILE * pitch(along),
        false => DEPTH * pitch(along),
    }
}

/// Vectors from one line of a tile to the next.
const fn pitch(along: bool) -> usize {
    match along {
        true => DEPTH / VECTOR + 1,
        false => TILE / VECTOR,
    }
}

/// Vectors of a line that hold values.
const fn vectors(along: bool) -> usize {
    match along {
        true => DEPTH / VECTOR,
        false => TILE / VECTOR,
    }
}

/// Brings a tile to shared memory: rows from `rows.0` of a matrix of `width` columns that starts at `offset`, and
/// columns from `column`; zeros from row `rows.1` and behind the last column.
#[cube]
pub fn bring(
    source: &[f32],
    offset: usize,
    width: usize,
    rows: (usize, usize),
    column: usize,
    assignment_of_row: &[i32],
    top_k: usize,
    tile: &mut Shared<[Float4]>,
    #[comptime] along: bool,
    #[comptime] by_token: bool,
) {
    let unit = UNIT_POS as usize;
    let vectors = comptime!(vectors(along));
    let pitch = comptime!(pitch(along));
    #[unroll]
    for load in 0..LOADS {
        let slot = unit + load * UNITS;
        let line = slot / vectors;
        let vector = slot % vectors;
        let row = rows.0 + line;
        let first = column + vector * VECTOR;
        let mut values = Float4::new(0.0f32);
        if row < rows.1 {
            let mut from = row;
            if comptime!(by_token) {
                from = assignment_of_row[row] as usize / top_k;
            }
            let from = offset + from * width + first;
            #[unroll]
            for i in 0..VECTOR {
                if first + i < width {
                    values.insert(i, source[from + i]);
                }
            }
        }
        tile[line * pitch + vector] = values;
    }
}

/// Adds a step of the depth to the sums of a unit.
#[cube]
pub fn multiply(
    left: &Shared<[Float4]>,
    right: &Shared<[Float4]>,
    sums: &mut Array<f32>,
    #[comptime] left_along: bool,
    #[comptime] right_along: bool,
) {
    let unit = UNIT_POS as usize;
    let mut a = Array::<f32>::new(UNIT * VECTOR);
    let mut b = Array::<f32>::new(UNIT * VECTOR);
    for quad in 0..DEPTH / VECTOR {
        fetch(left, unit / SIDE, quad, &mut a, left_along);
        fetch(right, unit % SIDE, quad, &mut b, right_along);
        #[unroll]
        for depth in 0..VECTOR {
            #[unroll]
            for i in 0..UNIT {
                #[unroll]
                for j in 0..UNIT {
                    sums[i * UNIT + j] += a[i * VECTOR + depth] * b[j * VECTOR + depth];
                }
            }
        }
    }
}

/// A unit's eight lines of a tile, four deep: `values[i * 4 + depth]`.
#[cube]
fn fetch(
    tile: &Shared<[Float4]>,
    place: usize,
    quad: usize,
    values: &mut Array<f32>,
    #[comptime] along: bool,
) {
    let pitch = comptime!(pitch(along));
    if comptime!(along) {
        #[unroll]
        for i in 0..UNIT {
            let vector = tile[line_of_unit(place, i, along) * pitch + quad];
            #[unroll]
            for depth in 0..VECTOR {
                values[i * VECTOR + depth] = vector.extract(depth);
            }
        }
    } else {
        #[unroll]
        for depth in 0..VECTOR {
            #[unroll]
            for half in 0..UNIT / VECTOR {
                let vector = tile[(quad * VECTOR + depth) * pitch + half * SIDE + place];
                #[unroll]
                for i in 0..VECTOR {
                    values[(half * VECTOR + i) * VECTOR + depth] = vector.extract(i);
                }
            }
        }
    }
}

/// The i-th of a unit's eight lines of a tile: every eighth one where vectors run along the depth, otherwise two
/// vectors half a tile apart.
#[cube]
pub fn line_of_unit(place: usize, #[comptime] i: usize, #[comptime] along: bool) -> usize {
    if comptime!(along) {
        place + i * SIDE
    } else {
        (i / VECTOR * SIDE + place) * VECTOR + i % VECTOR
    }
}
