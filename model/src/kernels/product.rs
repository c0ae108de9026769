//! The f32 matrix product over slices, by the `gemm` crate, which chooses its kernel for the machine at run
//! time (AVX-512, AVX2, NEON, plain).

use std::mem::MaybeUninit;

use gemm::{Parallelism, gemm};

/// A matrix in a slice; value (i, j) stands at `i · row + j · column`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, without gaps.
    ///
    /// # Panics
    ///
    /// When the slice has another length.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
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
    pub fn strided(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
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
}

/// Where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
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
pub fn product(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    into: Into,
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
/// [`product`].
///
/// # Panics
///
/// When the shapes do not fit.
pub fn product_into_columns(
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
        multiply(a, b, scale, Into::Replace, output, stride);
    }
}

/// `output ← scale · a b` into memory without values yet, which saves filling it with zeros first. Else as
/// [`product`].
///
/// `output` is row-major, without gaps; it is returned, now with values.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn product_into_new<'a>(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    output: &'a mut [MaybeUninit<f32>],
) -> &'a mut [f32] {
    let (m, n) = (a.rows, b.columns);
    assert_eq!(output.len(), m * n, "[{m}, {n}]");
    product_into_columns(a, b, scale, output, n);
    // SAFETY: the output has the size of the product, as was asserted, so that all of it was written.
    #[allow(unsafe_code)]
    unsafe {
        output.assume_init_mut()
    }
}

/// # Safety
///
/// `output` must be valid for writes of `a.rows` rows of `b.columns` values, `stride` apart, overlap neither
/// matrix, and hold values where the product is added.
#[allow(unsafe_code)]
unsafe fn multiply(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    into: Into,
    output: *mut f32,
    stride: usize,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "[{m}, {k}] × [{}, {n}]", b.rows);
    // SAFETY: both matrices lie within their slices, as was asserted when they were made; the output is the
    // caller's promise.
    unsafe {
        gemm(
            m,
            n,
            k,
            output,
            1,
            stride as isize,
            into == Into::Add,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            let into = if add { Into::Add } else { Into::Replace };
            product(a, b, 0.5, into, &mut output, stride);
            if !add && gap == 0 {
                let mut new = Vec::with_capacity(m * n);
                let new = product_into_new(a, b, 0.5, &mut new.spare_capacity_mut()[..m * n]);
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
