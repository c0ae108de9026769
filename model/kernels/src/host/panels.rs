//! Matrices in bf16, in the order in which the tiles of [`amx`](super::amx) read them.

mod rounding;

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::amx::{Amx, BLOCK, DEPTH, LINES, Line, Tiles};
use super::gemm::{Accumulate, Matrix};
pub use rounding::Load;
use rounding::fill;

/// Values of the inner dimension that are worked on at a time: a panel of one matrix stays in a core's first level of cache
/// while those of the other pass.
const INNER: usize = 512;

/// Columns of the output that are worked on at a time: so many panels of the right matrix stay in a core's second level of
/// cache while those of the left pass.
const COLUMNS: usize = 512;

/// Panels that are filled by one task.
const GROUP: usize = 8;

/// Which factor a matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// a of a · b.
    Left,
    /// b of a · b.
    Right,
}

/// A matrix in bf16, rounded to the nearest number, of two equally near the even one; NaN and infinity stay what they are,
/// and numbers below 2⁻¹²⁶ become zero.
///
/// Panels of [`BLOCK`] rows of a left matrix, or columns of a right one, [`INNER`] of the inner dimension at a time: block by
/// block, within it panel by panel. What is missing at the ends is zero.
#[derive(Debug, Clone)]
pub struct Panels {
    lines: Vec<Line>,
    /// Rows of a left matrix, columns of a right one.
    width: usize,
    /// Of the inner dimension.
    depth: usize,
}

impl Panels {
    /// Rounds a matrix; on all threads if `parallel`.
    ///
    /// # Panics
    ///
    /// When values stand side by side in neither direction.
    pub fn new<T: Load>(amx: Amx, matrix: Matrix<'_, T>, side: Side, parallel: bool) -> Self {
        let source = match side {
            Side::Left => matrix,
            Side::Right => matrix.t(),
        };
        let [width, depth] = source.shape();
        let panels = width.div_ceil(BLOCK);
        let length = panels * depth.div_ceil(DEPTH) * LINES;
        let mut lines = Vec::with_capacity(length);
        let mut rest = &mut lines.spare_capacity_mut()[..length];
        let mut tasks = Vec::new();
        for inner in blocks(depth) {
            let size = inner.len().div_ceil(DEPTH) * LINES;
            for first in (0..panels).step_by(GROUP) {
                let count = GROUP.min(panels - first);
                let part = rest.split_off_mut(..count * size);
                let part = part.expect("lines for every panel");
                tasks.push((first * BLOCK, inner.clone(), part));
            }
        }
        assert!(rest.is_empty(), "every line belongs to a panel");
        let fill = |(first, inner, lines): (usize, Range<usize>, &mut [MaybeUninit<Line>])| {
            // SAFETY: the machine has the instructions, as the token says.
            #[allow(unsafe_code)]
            unsafe {
                fill(amx, source, side, first, inner, lines);
            }
        };
        match parallel {
            true => tasks.into_par_iter().with_max_len(1).for_each(fill),
            false => tasks.into_iter().for_each(fill),
        }
        // SAFETY: the tasks have all lines among them, and each fills its own.
        #[allow(unsafe_code)]
        unsafe {
            lines.set_len(length);
        }
        Self {
            lines,
            width,
            depth,
        }
    }

    /// Rows of a left matrix, columns of a right one.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A panel's lines of a block of the inner dimension.
    #[inline(always)]
    fn panel(&self, inner: &Range<usize>, panel: usize) -> &[Line] {
        let panels = self.width.div_ceil(BLOCK);
        let size = inner.len().div_ceil(DEPTH) * LINES;
        let start = inner.start / DEPTH * LINES * panels + panel * size;
        &self.lines[start..start + size]
    }
}

/// The blocks of the inner dimension.
fn blocks(depth: usize) -> impl Iterator<Item = Range<usize>> {
    (0..depth)
        .step_by(INNER)
        .map(move |start| start..(start + INNER).min(depth))
}

/// `output ← scale · left[rows] right`, or added to it. Each sum is taken in the order of the inner dimension, whatever the
/// other sizes.
///
/// # Safety
///
/// `output` must be valid for writes of the rows, `stride` values apart, each of `right.width()` values, and hold values
/// where the product is added.
///
/// # Panics
///
/// When the inner dimensions differ, or the rows do not begin with a panel or are not there.
#[allow(unsafe_code)]
pub unsafe fn multiply(
    amx: Amx,
    (left, rows): (&Panels, Range<usize>),
    right: &Panels,
    scale: f32,
    into: Accumulate,
    output: *mut f32,
    stride: usize,
) {
    assert_eq!(left.depth, right.depth, "the inner dimension");
    assert!(rows.start.is_multiple_of(BLOCK) && rows.end <= left.width);
    let columns = right.width;
    let target = |row: usize, column: usize| Target {
        // Within the output, as the block's first value is.
        first: output.wrapping_add(row * stride + column),
        stride,
        rows: BLOCK.min(rows.len() - row),
        columns: BLOCK.min(columns - column),
    };
    let panel_of_row = |row: usize| (rows.start + row) / BLOCK;
    amx.with_tiles(|tiles| {
        if scale != 1.0 || left.depth == 0 {
            for row in (0..rows.len()).step_by(BLOCK) {
                for column in (0..columns).step_by(BLOCK) {
                    let mut sums = Sums::ZERO;
                    for inner in blocks(left.depth) {
                        let left = left.panel(&inner, panel_of_row(row));
                        let right = right.panel(&inner, column / BLOCK);
                        sums.add(tiles, left, right);
                    }
                    // SAFETY: the caller's promise.
                    unsafe { target(row, column).take(&sums, scale, into) };
                }
            }
            return;
        }
        for first in (0..columns).step_by(COLUMNS) {
            let columns = first..(first + COLUMNS).min(columns);
            for inner in blocks(left.depth) {
                let into = match inner.start {
                    0 => into,
                    _ => Accumulate::Add,
                };
                for row in (0..rows.len()).step_by(BLOCK) {
                    let left = left.panel(&inner, panel_of_row(row));
                    for column in columns.clone().step_by(BLOCK) {
                        let right = right.panel(&inner, column / BLOCK);
                        // SAFETY: the caller's promise; later blocks of the inner dimension add to what the first wrote.
                        unsafe { target(row, column).multiply(tiles, left, right, into) };
                    }
                }
            }
        }
    });
}

/// Where a block of an output lies.
struct Target {
    first: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
}

impl Target {
    /// # Safety
    ///
    /// The values must be there to be written, and to be read where the product is added.
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn multiply(&self, tiles: &Tiles, left: &[Line], right: &[Line], into: Accumulate) {
        if self.rows == BLOCK && self.columns == BLOCK {
            let add = into == Accumulate::Add;
            // SAFETY: the caller's promise.
            unsafe { tiles.multiply(left, right, add, self.first, self.stride) };
            return;
        }
        let mut sums = Sums::ZERO;
        // SAFETY: the caller's promise.
        unsafe {
            if into == Accumulate::Add {
                self.give(&mut sums);
            }
            sums.add(tiles, left, right);
            self.take(&sums, 1.0, Accumulate::Replace);
        }
    }

    /// Copies the values into sums.
    ///
    /// # Safety
    ///
    /// The values must be there.
    #[allow(unsafe_code)]
    unsafe fn give(&self, sums: &mut Sums) {
        for (row, sums) in sums.0.iter_mut().enumerate().take(self.rows) {
            for (column, sum) in sums.iter_mut().enumerate().take(self.columns) {
                // SAFETY: the caller's promise.
                *sum = unsafe { self.first.add(row * self.stride + column).read() };
            }
        }
    }

    /// Makes the values those of sums, scaled, or adds these to them.
    ///
    /// # Safety
    ///
    /// The values must be there to be written, and to be read where the sums are added.
    #[allow(unsafe_code)]
    unsafe fn take(&self, sums: &Sums, scale: f32, into: Accumulate) {
        for (row, sums) in sums.0.iter().enumerate().take(self.rows) {
            for (column, sum) in sums.iter().enumerate().take(self.columns) {
                // SAFETY: the caller's promise.
                unsafe {
                    let value = self.first.add(row * self.stride + column);
                    match into {
                        Accumulate::Replace => value.write(scale * sum),
                        Accumulate::Add => value.write(value.read() + scale * sum),
                    }
                }
            }
        }
    }
}

/// A block of sums outside of an output.
#[repr(C, align(64))]
struct Sums([[f32; BLOCK]; BLOCK]);

impl Sums {
    const ZERO: Self = Self([[0.0; BLOCK]; BLOCK]);

    #[inline(always)]
    fn add(&mut self, tiles: &Tiles, left: &[Line], right: &[Line]) {
        let first = self.0.as_flattened_mut().as_mut_ptr();
        // SAFETY: a whole block of values is there, with rows of its own width.
        #[allow(unsafe_code)]
        unsafe {
            tiles.multiply(left, right, true, first, BLOCK);
        }
    }
}
