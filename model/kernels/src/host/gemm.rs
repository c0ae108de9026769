//! The f32 matrix product over slices: by `private-gemm-x86`, faer's kernels, where there is AVX-512 or AVX2, and
//! by the `gemm` crate elsewhere (NEON, plain).
//!
//! Measured on the shapes of training, two threads on two Zen 5 cores, GFLOP/s of each. What decides is the
//! backward pass, whose transposed weight matrices `gemm` packs value by value:
//!
//! | m, n, k | | private-gemm-x86 | gemm | matrixmultiply |
//! |---|---|---|---|---|
//! | 1024, 1024, 1024 | | 231 | 229 | 201 |
//! | 256, 512, 256 | x W | 246 | 245 | 209 |
//! | 256, 256, 512 | y Wᵀ | 247 | 195 | 188 |
//! | 128, 512, 512 | xᵀ y | 241 | 227 | 208 |
//! | 256, 1024, 512 | x W | 237 | 230 | 188 |
//! | 256, 512, 1024 | y Wᵀ | 217 | 140 | 174 |
//! | 128, 1024, 256 | xᵀ y | 232 | 229 | 186 |

use std::mem::MaybeUninit;
use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::uninit::vec_uninit_with;

/// A matrix in a slice; value (i, j) stands at `i · row + j · column`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T = f32> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Row-major, without gaps.
    ///
    /// # Panics
    ///
    /// When the slice has another length.
    pub fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix [{rows}, {columns}]");
        Self {
            values,
            rows,
            columns,
            row: columns,
            column: 1,
        }
    }

    /// Rows that stand `stride` values apart, of which the first `columns` count.
    ///
    /// # Panics
    ///
    /// When the slice is shorter.
    pub fn strided(values: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        let needed = rows.saturating_sub(1) * stride + columns;
        assert!(
            stride >= columns && (rows == 0 || values.len() >= needed),
            "a matrix [{rows}, {columns}] with rows {stride} apart in {} values",
            values.len()
        );
        Self {
            values,
            rows,
            columns,
            row: stride,
            column: 1,
        }
    }

    /// The rows of a range.
    ///
    /// # Panics
    ///
    /// When there are fewer.
    pub fn part(self, rows: Range<usize>) -> Self {
        assert!(
            rows.end <= self.rows,
            "rows {rows:?} of {} in a matrix",
            self.rows
        );
        Self {
            // Behind the last row there may be nothing.
            values: self.values.get(rows.start * self.row..).unwrap_or_default(),
            rows: rows.len(),
            ..self
        }
    }

    /// The transpose; nothing moves.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row: self.column,
            column: self.row,
            ..self
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// From one row to the next, and from one column to the next, in values.
    pub fn strides(&self) -> [usize; 2] {
        [self.row, self.column]
    }

    /// Where a value stands; beyond the last row or column it may be nowhere.
    pub fn pointer(&self, row: usize, column: usize) -> *const T {
        let place = row * self.row + column * self.column;
        self.values.as_ptr().wrapping_add(place)
    }

    /// The values of a row.
    ///
    /// # Panics
    ///
    /// When there is no such row, or its values do not stand side by side.
    pub fn row(&self, row: usize) -> &'a [T] {
        assert!(
            row < self.rows && self.column == 1,
            "row {row} of {}, values {} apart",
            self.rows,
            self.column
        );
        &self.values[row * self.row..][..self.columns]
    }

    /// The same places of other values.
    pub fn over<'v, V>(&self, values: &'v [V]) -> Matrix<'v, V> {
        assert_eq!(values.len(), self.values.len());
        Matrix {
            values,
            rows: self.rows,
            columns: self.columns,
            row: self.row,
            column: self.column,
        }
    }

    /// The slice that the matrix lies in.
    pub fn values(&self) -> &'a [T] {
        self.values
    }
}

/// Where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// In place of what is there.
    Replace,
    /// Added to what is there.
    Add,
}

/// `output ← scale · a b` or `output ← output + scale · a b`, on this thread alone: kernels share work out by
/// themselves, in parts that do not change the order of any sum, whatever the number of threads.
///
/// `output` is row-major with rows `stride` values apart.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gemm(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    into: Accumulate,
    output: &mut [f32],
    stride: usize,
) {
    let (m, n) = (a.rows, b.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        stride >= n && output.len() >= (m - 1) * stride + n,
        "[{m}, {n}] with rows {stride} apart into {} values",
        output.len()
    );
    // SAFETY: the output holds the rows, as was asserted, and is initialised and borrowed alone.
    #[allow(unsafe_code)]
    unsafe {
        multiply(a, b, scale, into, output.as_mut_ptr(), stride);
    }
}

/// `output ← scale · a b` into memory without values yet, where the rows stand `stride` values apart. Else as
/// [`gemm`].
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gemm_uninit_strided(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    output: &mut [MaybeUninit<f32>],
    stride: usize,
) {
    let (m, n) = (a.rows, b.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        stride >= n && output.len() >= (m - 1) * stride + n,
        "[{m}, {n}] with rows {stride} apart into {} values",
        output.len()
    );
    // SAFETY: the output holds the rows, as was asserted, and is borrowed alone; where a product replaces, nothing
    // is read from it.
    #[allow(unsafe_code)]
    unsafe {
        let output = output.as_mut_ptr().cast();
        multiply(a, b, scale, Accumulate::Replace, output, stride);
    }
}

/// The widest product of the kernels for AVX2 and AVX-512: as many columns of 512 rows of b, which they copy for all rows of a,
/// lie in three quarters of a megabyte of cache.
#[cfg(target_arch = "x86_64")]
const WIDEST: usize = 384;

/// The most rows of a part: more gain nothing.
const TALLEST: usize = 512;

/// `a b` by all threads, row-major without gaps. The bits do not depend on their number.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gemm_parallel(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let (m, n) = (a.rows, b.columns);
    if m == 0 || n == 0 {
        return Vec::new();
    }
    let [rows, columns] = part_of(m, n, threads_of_parts());
    let parts: Vec<(usize, usize)> = (0..m)
        .step_by(rows)
        .flat_map(|row| (0..n).step_by(columns).map(move |column| (row, column)))
        .collect();
    let fill = |output: &mut [MaybeUninit<f32>]| {
        let output = Output(output.as_mut_ptr().cast());
        parts.par_iter().with_max_len(1).for_each(|&(row, column)| {
            let a = a.part(row..m.min(row + rows));
            let b = b.t().part(column..n.min(column + columns)).t();
            // SAFETY: the part lies within the output, whose rows stand `n` values apart, and no two parts share a value.
            #[allow(unsafe_code)]
            unsafe {
                multiply(
                    a,
                    b,
                    1.0,
                    Accumulate::Replace,
                    output.at(row * n + column),
                    n,
                );
            }
        });
    };
    // SAFETY: the parts cover the output, and each is written.
    #[allow(unsafe_code)]
    unsafe {
        vec_uninit_with(m * n, fill)
    }
}

/// How many threads parts are made for. The kernels for AVX2 and AVX-512 take each sum in blocks of 512 along the inner
/// dimension, wherever its part lies; those of others may not, so that parts depend on the shape alone there.
fn threads_of_parts() -> usize {
    #[cfg(target_arch = "x86_64")]
    if x86::instructions().is_some() {
        return rayon::current_num_threads();
    }
    8
}

/// Where the parts of a product go.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: whoever writes through it promises that parts of two threads share no value.
#[allow(unsafe_code)]
unsafe impl Send for Output {}
#[allow(unsafe_code)]
unsafe impl Sync for Output {}

impl Output {
    fn at(self, place: usize) -> *mut f32 {
        self.0.wrapping_add(place)
    }
}

/// Rows and columns of the parts of an [m, n] product that take the threads the least time.
///
/// A part costs a multiplication for each of its values, and reads each of its rows and columns, at about the price of
/// `READ` values; a thread computes as many parts as any, and waits for a quarter of another one in the end.
fn part_of(m: usize, n: usize, threads: usize) -> [usize; 2] {
    /// Of Emerald Rapids, from 30 shapes in parts of 16 to 512 rows and 64 to 2,048 columns.
    const READ: usize = 20;
    let cuts = |length: usize, unit: usize, longest: usize| {
        let fewest = length.div_ceil(longest).max(1);
        let most = length.div_ceil(unit).max(1);
        let cuts = [1, 2, 3, 4, 6, 8, 12, 16].map(|cuts| (fewest * cuts).min(most));
        cuts.map(|cuts| length.div_ceil(cuts).next_multiple_of(unit))
    };
    let mut best = ([1, 1], usize::MAX);
    for rows in cuts(m, 16, TALLEST) {
        for columns in cuts(n, 32, n) {
            let parts = m.div_ceil(rows) * n.div_ceil(columns);
            let time = (4 * parts.div_ceil(threads) + 1) * (rows + READ) * (columns + READ);
            if time < best.1 {
                best = ([rows, columns], time);
            }
        }
    }
    best.0
}

/// # Safety
///
/// `output` must be valid for writes of `a.rows` rows of `b.columns` values, `stride` apart, overlap neither
/// matrix, and hold values where the product is added.
#[allow(unsafe_code)]
pub(super) unsafe fn multiply(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    into: Accumulate,
    output: *mut f32,
    stride: usize,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "[{m}, {k}] × [{}, {n}]", b.rows);
    #[cfg(target_arch = "x86_64")]
    if let Some(instructions) = x86::instructions().filter(|_| k > 0 && n > 0) {
        let width = n.div_ceil(n.div_ceil(WIDEST)).next_multiple_of(32);
        for start in (0..n).step_by(width) {
            let b = b.t().part(start..n.min(start + width)).t();
            let output = output.wrapping_add(start);
            // SAFETY: as below.
            unsafe { x86::multiply(instructions, a, b, scale, into, output, stride) };
        }
        return;
    }
    // SAFETY: both matrices lie within their slices, as was asserted when they were made; the output is the
    // caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            output,
            1,
            stride as isize,
            into == Accumulate::Add,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// The kernels for AVX2 and AVX-512.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::ptr::{from_ref, null};
    use std::sync::LazyLock;

    use private_gemm_x86::{Accum, DType, DstKind, IType, InstrSet};

    use super::{Accumulate, Matrix};

    /// The widest vectors of this machine that there are kernels for.
    pub fn instructions() -> Option<InstrSet> {
        static FOUND: LazyLock<Option<InstrSet>> = LazyLock::new(|| {
            if pulp::x86::V4::try_new().is_some() {
                Some(InstrSet::Avx512)
            } else {
                pulp::x86::V3::try_new().map(|_| InstrSet::Avx256)
            }
        });
        *FOUND
    }

    /// # Safety
    ///
    /// That of [`super::multiply`]; and the inner size must not be 0, for which nothing would be written.
    #[allow(unsafe_code)]
    pub unsafe fn multiply(
        instructions: InstrSet,
        a: Matrix<'_>,
        b: Matrix<'_>,
        scale: f32,
        into: Accumulate,
        output: *mut f32,
        stride: usize,
    ) {
        // SAFETY: both matrices lie within their slices; the machine has the instructions; no rows or columns
        // of the output are picked by index, and there is no diagonal, so that those pointers are not read; the
        // output is the caller's promise.
        unsafe {
            private_gemm_x86::gemm(
                DType::F32,
                IType::U32,
                instructions,
                a.rows,
                b.columns,
                a.columns,
                output.cast(),
                stride as isize,
                1,
                null(),
                null(),
                DstKind::Full,
                match into {
                    Accumulate::Replace => Accum::Replace,
                    Accumulate::Add => Accum::Add,
                },
                a.values.as_ptr().cast(),
                a.row as isize,
                a.column as isize,
                false,
                null(),
                0,
                b.values.as_ptr().cast(),
                b.row as isize,
                b.column as isize,
                false,
                from_ref(&scale).cast(),
                1,
            );
        }
    }
}

#[cfg(test)]
mod tests;
