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
/// themselves, in parts that do not depend on the number of threads, so that sums are always taken in the same
/// order.
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

/// `output ← scale · a b` into memory without values yet, which saves filling it with zeros first. Else as
/// [`gemm`].
///
/// `output` is row-major, without gaps; it is returned, now with values.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gemm_uninit<'a>(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    output: &'a mut [MaybeUninit<f32>],
) -> &'a mut [f32] {
    let (m, n) = (a.rows, b.columns);
    assert_eq!(output.len(), m * n, "[{m}, {n}]");
    gemm_uninit_strided(a, b, scale, output, n);
    // SAFETY: the output has the size of the product, as was asserted, so that all of it was written.
    #[allow(unsafe_code)]
    unsafe {
        output.assume_init_mut()
    }
}

/// A product is cut into about so many parts, or more of [`LARGEST_PART`].
const PARTS: usize = 16;

/// Rows of a part: with fewer, more time goes into packing the other matrix anew for each part; more gain nothing.
const SMALLEST_PART: usize = 64;
const LARGEST_PART: usize = 256;

/// `a b` by all threads, row-major without gaps. The parts, and so the order of sums, depend on the shape alone.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gemm_parallel(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let (m, n) = (a.rows, b.columns);
    let part = m.div_ceil(PARTS).clamp(SMALLEST_PART, LARGEST_PART);
    let fill = |output: &mut [MaybeUninit<f32>]| {
        let parts = output.par_chunks_mut((part * n).max(1)).enumerate();
        parts.with_max_len(1).for_each(|(index, output)| {
            let start = index * part;
            let rows = a.part(start..start + output.len() / n);
            gemm_uninit(rows, b, 1.0, output);
        });
    };
    // SAFETY: the parts cover the output, and each is written.
    #[allow(unsafe_code)]
    unsafe {
        vec_uninit_with(m * n, fill)
    }
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
    if let Some(instructions) = x86::instructions().filter(|_| k > 0) {
        // SAFETY: as below.
        unsafe { x86::multiply(instructions, a, b, scale, into, output, stride) };
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::testing::on_threads;

    #[test]
    fn parts_make_the_whole_on_any_number_of_threads() {
        let wave =
            |length: usize| -> Vec<f32> { (0..length).map(|i| (i as f32 * 0.7).sin()).collect() };
        for (m, n, k) in [
            (0, 3, 2),
            (3, 0, 2),
            (3, 2, 0),
            (1, 1, 1),
            (65, 7, 9),
            (1100, 33, 40),
        ] {
            let (left, right) = (wave(m * k), wave(n * k));
            for (a, b) in [
                (Matrix::new(&left, m, k), Matrix::new(&right, k, n)),
                (Matrix::new(&left, k, m).t(), Matrix::new(&right, n, k).t()),
            ] {
                let mut whole = vec![f32::NAN; m * n];
                gemm(a, b, 1.0, Accumulate::Replace, &mut whole, n);
                let parts = gemm_parallel(a, b);
                assert_eq!(parts.len(), whole.len());
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * k as f32;
                assert!(
                    parts.iter().zip(&whole).all(close),
                    "[{m}, {k}] × [{k}, {n}]"
                );
                on_threads(|| gemm_parallel(a, b));
            }
        }
    }

    proptest! {
        #[test]
        fn products_of_all_layouts(
            (m, n, k) in (0usize..9, 0usize..9, 0usize..9),
            (ta, tb, add) in any::<(bool, bool, bool)>(),
            gap in 0usize..3,
        ) {
            let wave = |length: usize, phase: f32| -> Vec<f32> {
                (0..length).map(|i| (i as f32 * 0.7 + phase).sin()).collect()
            };
            let (left, right) = (wave(m * k, 0.1), wave(k * n, 0.5));
            let a = if ta { Matrix::new(&left, k, m).t() } else { Matrix::new(&left, m, k) };
            let b = if tb { Matrix::new(&right, n, k).t() } else { Matrix::new(&right, k, n) };
            let stride = n + gap;
            let before = wave(m * stride, 0.9);
            let mut output = before.clone();
            let into = if add { Accumulate::Add } else { Accumulate::Replace };
            gemm(a, b, 0.5, into, &mut output, stride);
            if !add && gap == 0 {
                let mut new = Vec::with_capacity(m * n);
                let new = gemm_uninit(a, b, 0.5, &mut new.spare_capacity_mut()[..m * n]);
                prop_assert_eq!(&*new, &output[..]);
            }
            for i in 0..m {
                for j in 0..stride {
                    let place = i * stride + j;
                    if j >= n {
                        prop_assert_eq!(output[place], before[place]);
                        continue;
                    }
                    let at = |matrix: Matrix<'_>, i: usize, j: usize| {
                        f64::from(matrix.values[i * matrix.row + j * matrix.column])
                    };
                    let sum: f64 = (0..k).map(|l| at(a, i, l) * at(b, l, j)).sum();
                    let base = if add { f64::from(before[place]) } else { 0.0 };
                    prop_assert!((f64::from(output[place]) - base - 0.5 * sum).abs() < 1e-5);
                }
            }
        }
    }
}
