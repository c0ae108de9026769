//! Blocks of products: what a unit multiplies at a time.

use crate::host::gemm::Accumulate;

/// Rows of a tile, and columns of the tiles that it is multiplied with.
pub const TILE: usize = 16;

/// Values in bf16 of a row of a tile: those of the inner dimension that lie side by side.
pub const DEPTH: usize = 32;

/// Rows and columns of a block: two tiles each way, so that every tile that is loaded is used twice.
pub const BLOCK: usize = 2 * TILE;

/// A row of a tile: values in bf16, by their bits.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u16; DEPTH]);

/// Rows of tiles that a [`BLOCK`] by [`DEPTH`] takes: two tiles, one after the other.
pub const LINES: usize = 2 * TILE;

/// A unit that multiplies blocks.
pub trait Multiplier {
    /// `target ← left · right`, or added to it. Each sum is taken in the order of the inner dimension, whatever the
    /// target's size; numbers below 2⁻¹²⁶ count as zero.
    ///
    /// `left` and `right` have [`LINES`] for each [`DEPTH`] of the inner dimension: of the left matrix two tiles of 16 rows,
    /// of the right one two tiles of 16 columns, each line of which holds two rows, value by value in turn.
    ///
    /// # Safety
    ///
    /// The target's values must be there to be written, and to be read where the product is added.
    ///
    /// # Panics
    ///
    /// When the operands have no lines, or not equally many.
    #[allow(unsafe_code)]
    unsafe fn multiply(&self, left: &[Line], right: &[Line], into: Accumulate, target: &Target);
}

/// Number of [`DEPTH`]s that two operands have.
///
/// # Panics
///
/// When they have none, or not equally many.
#[inline(always)]
pub fn depths(left: &[Line], right: &[Line]) -> usize {
    let depths = left.len() / LINES;
    assert!(
        left.len() == right.len() && left.len() == depths * LINES && depths > 0,
        "{} lines by {}",
        left.len(),
        right.len()
    );
    depths
}

/// Where a block of an output lies.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its first value.
    pub first: *mut f32,
    /// From one row to the next, in values.
    pub stride: usize,
    /// From 1 to [`BLOCK`].
    pub rows: usize,
    /// From 1 to [`BLOCK`].
    pub columns: usize,
}
