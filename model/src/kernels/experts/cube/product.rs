//! Products of rows sorted by expert with the experts' matrices, in tiles.
//!
//! A cube computes a tile of 64 × 64 values; each of its 8 × 8 units keeps 8 × 8 of them in registers, and both
//! operands pass through shared memory 16 deep, in vectors of four. How many tiles of rows an expert has is known on
//! the device alone: `rows / 64 + experts` of them are launched, which is enough for every load, each cube finds its
//! expert from the offsets, and those that are left over stop at once.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Plan;
use crate::kernels::cube::empty_float;

/// Rows and columns of a tile.
const TILE: usize = 64;
/// How deep a step of the sum goes.
const DEPTH: usize = 16;
/// Units along each side of a tile.
const SIDE: usize = 8;
/// Units of a cube.
const UNITS: usize = SIDE * SIDE;
/// Rows and columns of a unit.
const UNIT: usize = TILE / SIDE;
/// Values of a vector.
const QUAD: usize = 4;
/// Vectors of each operand that a unit brings to shared memory in a step.
const LOADS: usize = TILE * DEPTH / QUAD / UNITS;

type Quad = Vector<f32, Const<QUAD>>;

/// An operand with a line for each row.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// Rows sorted by expert, `[rows, width]`.
    Rows(&'a CubeTensor),
    /// Tokens, `[tokens, width]`, of which each row takes its own.
    Tokens(&'a CubeTensor),
}

impl Operand<'_> {
    fn tensor(self) -> CubeTensor {
        let (Self::Rows(tensor) | Self::Tokens(tensor)) = self;
        tensor.clone()
    }

    fn width(self) -> usize {
        self.tensor().shape()[1]
    }

    fn is_by_token(self) -> bool {
        matches!(self, Self::Tokens(_))
    }
}

/// `left · W` with the matrix of each row's expert, `[rows, d_out]`.
///
/// # Shapes
///
/// - `stack`: `[experts, d_in, d_out]`
pub fn rows_by_stack(plan: &Plan, left: Operand, stack: &CubeTensor) -> CubeTensor {
    let output = empty_float(stack, [plan.rows(), stack.shape()[2]]);
    rows_product(plan, left, stack, &output, false, false);
    output
}

/// `left · Wᵀ` with the matrix of each row's expert, `[rows, d_out]`; added to `sum`, where there is one.
///
/// # Shapes
///
/// - `stack`: `[experts, d_out, d_in]`
pub fn rows_by_transposed(
    plan: &Plan,
    left: Operand,
    stack: &CubeTensor,
    sum: Option<CubeTensor>,
) -> CubeTensor {
    let add = sum.is_some();
    let output = sum.unwrap_or_else(|| empty_float(stack, [plan.rows(), stack.shape()[1]]));
    rows_product(plan, left, stack, &output, true, add);
    output
}

fn rows_product(
    plan: &Plan,
    left: Operand,
    stack: &CubeTensor,
    output: &CubeTensor,
    transposed: bool,
    add: bool,
) {
    let d_out = output.shape()[1];
    let tiles = [d_out.div_ceil(TILE), plan.rows() / TILE + plan.experts];
    // SAFETY: every index is compared with the sizes of its tensor before it is used.
    #[allow(unsafe_code)]
    unsafe {
        rows_kernel::launch_unchecked(
            &stack.client,
            CubeCount::new_2d(tiles[0] as u32, tiles[1] as u32),
            CubeDim::new_1d(UNITS as u32),
            left.tensor().into_buffer_arg(),
            stack.clone().into_buffer_arg(),
            plan.assignment_of_row.clone().into_buffer_arg(),
            plan.offsets.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            left.width(),
            d_out,
            plan.per_token,
            plan.experts,
            left.is_by_token(),
            transposed,
            add,
        );
    }
}

/// `leftᵀ · right` over the rows of each expert, `[experts, left, right]`; zeros for an expert without rows.
pub fn stack_gradient(plan: &Plan, left: Operand, right: Operand) -> CubeTensor {
    let shape = [plan.experts, left.width(), right.width()];
    let output = empty_float(&left.tensor(), shape);
    let [experts, tiles_left, tiles_right] =
        [shape[0], shape[1].div_ceil(TILE), shape[2].div_ceil(TILE)].map(|count| count as u32);
    // SAFETY: every index is compared with the sizes of its tensor before it is used.
    #[allow(unsafe_code)]
    unsafe {
        stack_kernel::launch_unchecked(
            &output.client,
            CubeCount::new_3d(tiles_right, tiles_left, experts),
            CubeDim::new_1d(UNITS as u32),
            left.tensor().into_buffer_arg(),
            right.tensor().into_buffer_arg(),
            plan.assignment_of_row.clone().into_buffer_arg(),
            plan.offsets.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            left.width(),
            right.width(),
            plan.per_token,
            left.is_by_token(),
            right.is_by_token(),
        );
    }
    output
}

/// A cube a tile of rows and columns.
#[cube(launch_unchecked)]
fn rows_kernel(
    left: &[f32],
    stack: &[f32],
    assignment_of_row: &[i32],
    offsets: &[i32],
    output: &mut [f32],
    d_in: usize,
    d_out: usize,
    per_token: usize,
    experts: usize,
    #[comptime] by_token: bool,
    #[comptime] transposed: bool,
    #[comptime] add: bool,
) {
    // The expert that this tile belongs to, and its first row.
    let mut expert = 0usize;
    let mut first = CUBE_POS_Y as usize;
    let mut tiles = tiles_of(offsets, 0usize);
    while expert < experts && first >= tiles {
        first -= tiles;
        expert += 1;
        tiles = 0usize;
        if expert < experts {
            tiles = tiles_of(offsets, expert);
        }
    }
    if expert == experts {
        terminate!();
    }
    let row = offsets[expert] as usize + first * TILE;
    let end = offsets[expert + 1] as usize;
    let column = CUBE_POS_X as usize * TILE;
    let unit = UNIT_POS as usize;
    let matrix = expert * d_in * d_out;

    let mut left_tile = Shared::<[Quad]>::new_slice(comptime!(size(true)));
    let mut right_tile = Shared::<[Quad]>::new_slice(comptime!(size(transposed)));
    let mut sums = Array::<f32>::new(UNIT * UNIT);
    #[unroll]
    for place in 0..UNIT * UNIT {
        sums[place] = 0.0f32;
    }

    let mut start = 0usize;
    while start < d_in {
        let rows = (row, end);
        bring(
            left,
            0usize,
            d_in,
            rows,
            start,
            assignment_of_row,
            per_token,
            &mut left_tile,
            true,
            by_token,
        );
        if comptime!(transposed) {
            let columns = (column, d_out);
            bring(
                stack,
                matrix,
                d_in,
                columns,
                start,
                assignment_of_row,
                per_token,
                &mut right_tile,
                true,
                false,
            );
        } else {
            let depth = (start, d_in);
            bring(
                stack,
                matrix,
                d_out,
                depth,
                column,
                assignment_of_row,
                per_token,
                &mut right_tile,
                false,
                false,
            );
        }
        sync_cube();
        multiply(&left_tile, &right_tile, &mut sums, true, transposed);
        sync_cube();
        start += DEPTH;
    }

    #[unroll]
    for i in 0..UNIT {
        let line = row + line_of_unit(unit / SIDE, i, true);
        #[unroll]
        for j in 0..UNIT {
            let across = column + line_of_unit(unit % SIDE, j, transposed);
            if line < end && across < d_out {
                let place = line * d_out + across;
                if comptime!(add) {
                    output[place] += sums[i * UNIT + j];
                } else {
                    output[place] = sums[i * UNIT + j];
                }
            }
        }
    }
}

/// A cube a tile of one expert's matrix; the depth is the expert's rows.
#[cube(launch_unchecked)]
fn stack_kernel(
    left: &[f32],
    right: &[f32],
    assignment_of_row: &[i32],
    offsets: &[i32],
    output: &mut [f32],
    d_left: usize,
    d_right: usize,
    per_token: usize,
    #[comptime] left_by_token: bool,
    #[comptime] right_by_token: bool,
) {
    let expert = CUBE_POS_Z as usize;
    let mut start = offsets[expert] as usize;
    let end = offsets[expert + 1] as usize;
    let line = CUBE_POS_Y as usize * TILE;
    let column = CUBE_POS_X as usize * TILE;
    let unit = UNIT_POS as usize;

    let mut left_tile = Shared::<[Quad]>::new_slice(comptime!(size(false)));
    let mut right_tile = Shared::<[Quad]>::new_slice(comptime!(size(false)));
    let mut sums = Array::<f32>::new(UNIT * UNIT);
    #[unroll]
    for place in 0..UNIT * UNIT {
        sums[place] = 0.0f32;
    }

    while start < end {
        let rows = (start, end);
        bring(
            left,
            0usize,
            d_left,
            rows,
            line,
            assignment_of_row,
            per_token,
            &mut left_tile,
            false,
            left_by_token,
        );
        let rows = (start, end);
        bring(
            right,
            0usize,
            d_right,
            rows,
            column,
            assignment_of_row,
            per_token,
            &mut right_tile,
            false,
            right_by_token,
        );
        sync_cube();
        multiply(&left_tile, &right_tile, &mut sums, false, false);
        sync_cube();
        start += DEPTH;
    }

    let matrix = expert * d_left * d_right;
    #[unroll]
    for i in 0..UNIT {
        let down = line + line_of_unit(unit / SIDE, i, false);
        #[unroll]
        for j in 0..UNIT {
            let across = column + line_of_unit(unit % SIDE, j, false);
            if down < d_left && across < d_right {
                output[matrix + down * d_right + across] = sums[i * UNIT + j];
            }
        }
    }
}

/// Vectors of a tile in shared memory. A tile of an operand whose rows run along the depth has a line of four
/// vectors and one of padding for each of its 64 places, so that the lines meet different banks; one whose rows run
/// across has a line of sixteen for each step of the depth.
const fn size(along: bool) -> usize {
    match along {
        true => TILE * pitch(along),
        false => DEPTH * pitch(along),
    }
}

/// Vectors from one line of a tile to the next.
const fn pitch(along: bool) -> usize {
    match along {
        true => DEPTH / QUAD + 1,
        false => TILE / QUAD,
    }
}

/// Vectors of a line that hold values.
const fn vectors(along: bool) -> usize {
    match along {
        true => DEPTH / QUAD,
        false => TILE / QUAD,
    }
}

/// Brings a tile to shared memory: rows from `rows.0` of a matrix of `width` columns that starts at `offset`, and
/// columns from `column`; zeros from row `rows.1` and behind the last column.
#[cube]
fn bring(
    source: &[f32],
    offset: usize,
    width: usize,
    rows: (usize, usize),
    column: usize,
    assignment_of_row: &[i32],
    per_token: usize,
    tile: &mut Shared<[Quad]>,
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
        let first = column + vector * QUAD;
        let mut values = Quad::new(0.0f32);
        if row < rows.1 {
            let mut from = row;
            if comptime!(by_token) {
                from = assignment_of_row[row] as usize / per_token;
            }
            let from = offset + from * width + first;
            #[unroll]
            for i in 0..QUAD {
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
fn multiply(
    left: &Shared<[Quad]>,
    right: &Shared<[Quad]>,
    sums: &mut Array<f32>,
    #[comptime] left_along: bool,
    #[comptime] right_along: bool,
) {
    let unit = UNIT_POS as usize;
    let mut a = Array::<f32>::new(UNIT * QUAD);
    let mut b = Array::<f32>::new(UNIT * QUAD);
    for quad in 0..DEPTH / QUAD {
        fetch(left, unit / SIDE, quad, &mut a, left_along);
        fetch(right, unit % SIDE, quad, &mut b, right_along);
        #[unroll]
        for depth in 0..QUAD {
            #[unroll]
            for i in 0..UNIT {
                #[unroll]
                for j in 0..UNIT {
                    sums[i * UNIT + j] += a[i * QUAD + depth] * b[j * QUAD + depth];
                }
            }
        }
    }
}

/// A unit's eight lines of a tile, four deep: `values[i * 4 + depth]`.
#[cube]
fn fetch(
    tile: &Shared<[Quad]>,
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
            for depth in 0..QUAD {
                values[i * QUAD + depth] = vector.extract(depth);
            }
        }
    } else {
        #[unroll]
        for depth in 0..QUAD {
            #[unroll]
            for half in 0..UNIT / QUAD {
                let vector = tile[(quad * QUAD + depth) * pitch + half * SIDE + place];
                #[unroll]
                for i in 0..QUAD {
                    values[(half * QUAD + i) * QUAD + depth] = vector.extract(i);
                }
            }
        }
    }
}

/// The i-th of a unit's eight lines of a tile: every eighth one where vectors run along the depth, otherwise two
/// vectors half a tile apart.
#[cube]
fn line_of_unit(place: usize, #[comptime] i: usize, #[comptime] along: bool) -> usize {
    if comptime!(along) {
        place + i * SIDE
    } else {
        (i / QUAD * SIDE + place) * QUAD + i % QUAD
    }
}

/// Tiles that an expert's rows fill.
#[cube]
fn tiles_of(offsets: &[i32], expert: usize) -> usize {
    ((offsets[expert + 1] - offsets[expert]) as usize).div_ceil(TILE)
}
