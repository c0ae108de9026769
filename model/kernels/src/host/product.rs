//! Products of matrices at a [`Precision`]: each factor is made ready once, for any number of products.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512Bf16;
use super::gemm::{self, Accumulate, Matrix};
#[cfg(target_arch = "x86_64")]
use super::panels::{self, Load, Panels, Side, Unit};
use super::simd::vectorized;
use super::uninit::vec_uninit_with;
use super::widen::widened;
use crate::dtype::StorageFloat;
use crate::precision::Precision;

/// What multiplies numbers in bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bf16Unit {
    /// The processor's tiles (Intel AMX).
    Amx,
    /// The processor's vectors (`vdpbf16ps` of AVX-512), which multiply two numbers in bf16 where they multiply one in f32.
    Avx512,
    /// The f32 product, of numbers that were rounded to bf16.
    Widened,
}

impl Bf16Unit {
    /// The one that products in bf16 take on this machine.
    pub fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        if Amx::get().is_some() {
            return Self::Amx;
        } else if Avx512Bf16::get().is_some_and(Avx512Bf16::is_fast) {
            return Self::Avx512;
        }
        Self::Widened
    }

    /// What multiplies panels, where this machine has it.
    #[cfg(target_arch = "x86_64")]
    fn of_panels(self) -> Option<Unit> {
        match self {
            Self::Amx => Amx::get().map(Unit::Amx),
            Self::Avx512 => Avx512Bf16::get().map(Unit::Avx512),
            Self::Widened => None,
        }
    }
}

impl fmt::Display for Bf16Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Amx => "AMX",
            Self::Avx512 => "AVX-512 BF16",
            Self::Widened => "widened to f32",
        })
    }
}

/// On which threads a factor is made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// On the thread that asks.
    ThisThread,
    /// On all.
    AllThreads,
}

/// A type that factors are made of.
#[cfg(target_arch = "x86_64")]
pub trait Factor: Load {}
#[cfg(target_arch = "x86_64")]
impl<T: Load> Factor for T {}

/// A type that factors are made of.
#[cfg(not(target_arch = "x86_64"))]
pub trait Factor: StorageFloat {}
#[cfg(not(target_arch = "x86_64"))]
impl<T: StorageFloat> Factor for T {}

/// a of a · b, ready for products.
#[derive(Debug)]
pub struct Left<'a>(Ready<'a>);

/// b of a · b, ready for products.
#[derive(Debug)]
pub struct Right<'a>(Ready<'a>);

#[derive(Debug)]
enum Ready<'a> {
    AsItIs(Matrix<'a>),
    Copied(Copied),
    #[cfg(target_arch = "x86_64")]
    Panels(Unit, Panels),
}

impl<'a> Left<'a> {
    /// At a precision.
    pub fn new<T: Factor>(matrix: Matrix<'a, T>, precision: Precision, on: On) -> Self {
        Self::by(Bf16Unit::of_this_machine(), matrix, precision, on)
    }

    fn by<T: Factor>(unit: Bf16Unit, matrix: Matrix<'a, T>, precision: Precision, on: On) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let (Precision::Bf16, Some(unit)) = (precision, unit.of_panels()) {
            let panels = Panels::new(unit, matrix, Side::Left, on == On::AllThreads);
            return Self(Ready::Panels(unit, panels));
        }
        let _ = unit;
        Self(Ready::plain(matrix, precision, on))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        match &self.0 {
            Ready::AsItIs(matrix) => matrix.shape()[0],
            Ready::Copied(copied) => copied.matrix().shape()[0],
            #[cfg(target_arch = "x86_64")]
            Ready::Panels(_, panels) => panels.width(),
        }
    }
}

impl<'a> Right<'a> {
    /// At a precision.
    pub fn new<T: Factor>(matrix: Matrix<'a, T>, precision: Precision, on: On) -> Self {
        Self::by(Bf16Unit::of_this_machine(), matrix, precision, on)
    }

    fn by<T: Factor>(unit: Bf16Unit, matrix: Matrix<'a, T>, precision: Precision, on: On) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let (Precision::Bf16, Some(unit)) = (precision, unit.of_panels()) {
            let panels = Panels::new(unit, matrix, Side::Right, on == On::AllThreads);
            return Self(Ready::Panels(unit, panels));
        }
        let _ = unit;
        Self(Ready::plain(matrix, precision, on))
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        match &self.0 {
            Ready::AsItIs(matrix) => matrix.shape()[1],
            Ready::Copied(copied) => copied.matrix().shape()[1],
            #[cfg(target_arch = "x86_64")]
            Ready::Panels(_, panels) => panels.width(),
        }
    }
}

impl<'a> Ready<'a> {
    /// For the f32 product.
    fn plain<T: StorageFloat>(matrix: Matrix<'a, T>, precision: Precision, on: On) -> Self {
        match (precision, T::as_f32(matrix.values())) {
            (Precision::F32, Some(values)) => Self::AsItIs(matrix.over(values)),
            (Precision::F32, None) => Self::Copied(Copied::new::<T, false>(matrix, on)),
            (Precision::Bf16, _) => Self::Copied(Copied::new::<T, true>(matrix, on)),
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        match self {
            Self::AsItIs(matrix) => *matrix,
            Self::Copied(copied) => copied.matrix(),
            #[cfg(target_arch = "x86_64")]
            Self::Panels(..) => unreachable!("both factors of a product are made ready alike"),
        }
    }
}

/// A copy of a matrix in f32, row-major or column-major as the original is, without gaps.
#[derive(Debug)]
struct Copied {
    values: Vec<f32>,
    /// Of the rows in memory.
    shape: [usize; 2],
    /// Whether those are the columns.
    transposed: bool,
}

/// The fewest values that a task copies; of fewer, threads cost more than they save.
const VALUES_PER_TASK: usize = 1 << 14;

impl Copied {
    /// Each value as [`widened`] has it.
    fn new<T: StorageFloat, const ROUND: bool>(matrix: Matrix<'_, T>, on: On) -> Self {
        let transposed = matrix.strides()[1] != 1;
        let source = if transposed { matrix.t() } else { matrix };
        let shape @ [rows, columns] = source.shape();
        let copy = |first: usize, places: &mut [MaybeUninit<f32>]| {
            for (row, places) in places.chunks_exact_mut(columns).enumerate() {
                let row = source.row(first + row);
                vectorized(
                    #[inline(always)]
                    || {
                        for (place, value) in places.iter_mut().zip(row) {
                            place.write(widened::<T, ROUND>(*value));
                        }
                    },
                );
            }
        };
        let fill = |places: &mut [MaybeUninit<f32>]| match on {
            _ if columns == 0 => {}
            On::ThisThread => copy(0, places),
            On::AllThreads => {
                let rows = VALUES_PER_TASK.div_ceil(columns);
                let tasks = places.par_chunks_mut(rows * columns).enumerate();
                tasks.for_each(|(task, places)| copy(task * rows, places));
            }
        };
        // SAFETY: every row is copied, on one thread or by the task that has it.
        #[allow(unsafe_code)]
        let values = unsafe { vec_uninit_with(rows * columns, fill) };
        Self {
            values,
            shape,
            transposed,
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        let [rows, columns] = self.shape;
        let matrix = Matrix::new(&self.values, rows, columns);
        match self.transposed {
            false => matrix,
            true => matrix.t(),
        }
    }
}

/// `output ← a[rows] b`, or added to it, on this thread alone; else as [`gemm`](gemm::gemm). Parts of the rows give
/// the bits of the whole.
///
/// # Panics
///
/// When the shapes do not fit, the factors are not of the same precision, or rows do not begin at a multiple of 32.
pub fn product(
    (a, rows): (&Left<'_>, Range<usize>),
    b: &Right<'_>,
    into: Accumulate,
    output: &mut [f32],
    stride: usize,
) {
    check(&rows, b, output.len(), stride);
    // SAFETY: the output holds the rows, as was checked, and is initialised and borrowed alone.
    #[allow(unsafe_code)]
    unsafe {
        multiply((a, rows), b, into, output.as_mut_ptr(), stride);
    }
}

/// [`gemm`](gemm::gemm) at a precision: [`product`] of factors that serve for one.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gemm_at(
    precision: Precision,
    a: Matrix<'_>,
    b: Matrix<'_>,
    into: Accumulate,
    output: &mut [f32],
    stride: usize,
) {
    let a = Left::new(a, precision, On::ThisThread);
    let b = Right::new(b, precision, On::ThisThread);
    product((&a, 0..a.rows()), &b, into, output, stride);
}

/// [`product`] in memory without values yet, row-major without gaps; it is returned, now with values.
///
/// # Panics
///
/// When the shapes do not fit, the factors are not of the same precision, or rows do not begin at a multiple of 32.
pub fn product_uninit<'o>(
    (a, rows): (&Left<'_>, Range<usize>),
    b: &Right<'_>,
    output: &'o mut [MaybeUninit<f32>],
) -> &'o mut [f32] {
    let columns = b.columns();
    assert_eq!(output.len(), rows.len() * columns, "[{rows:?}, {columns}]");
    // SAFETY: the output has the size of the product, as was asserted, is borrowed alone, and all of it is written.
    #[allow(unsafe_code)]
    unsafe {
        let first = output.as_mut_ptr().cast();
        multiply((a, rows), b, Accumulate::Replace, first, columns);
        output.assume_init_mut()
    }
}

/// Rows of a task of [`product_parallel`], a multiple of 32: with fewer, b passes through the cache more often.
const SMALLEST_PART: usize = 64;
const LARGEST_PART: usize = 512;

/// `a b` by all threads, row-major without gaps. The bits do not depend on their number.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn product_parallel(a: &Left<'_>, b: &Right<'_>) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if let Ready::Panels(..) = a.0 {
        let (rows, columns) = (a.rows(), b.columns());
        // Each sum is taken in the order of the inner dimension, so that the parts may depend on the threads.
        let part = rows.div_ceil(4 * rayon::current_num_threads());
        let part = part.next_multiple_of(SMALLEST_PART).min(LARGEST_PART);
        let fill = |output: &mut [MaybeUninit<f32>]| {
            let parts = output.par_chunks_mut((part * columns).max(1)).enumerate();
            parts.with_max_len(1).for_each(|(index, output)| {
                let start = index * part;
                let rows = start..start + output.len() / columns;
                product_uninit((a, rows), b, output);
            });
        };
        // SAFETY: the parts cover the output, and each is written.
        #[allow(unsafe_code)]
        return unsafe { vec_uninit_with(rows * columns, fill) };
    }
    gemm::gemm_parallel(a.0.matrix(), b.0.matrix())
}

fn check(rows: &Range<usize>, b: &Right<'_>, length: usize, stride: usize) {
    let columns = b.columns();
    let needed = rows.len().saturating_sub(1) * stride + columns;
    assert!(
        stride >= columns && (rows.is_empty() || length >= needed),
        "[{rows:?}, {columns}] with rows {stride} apart into {length} values"
    );
}

/// # Safety
///
/// `output` must be valid for writes of the rows, `stride` values apart, and hold values where the product is added.
#[allow(unsafe_code)]
unsafe fn multiply(
    (a, rows): (&Left<'_>, Range<usize>),
    b: &Right<'_>,
    into: Accumulate,
    output: *mut f32,
    stride: usize,
) {
    if rows.is_empty() || b.columns() == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let (Ready::Panels(unit, left), Ready::Panels(_, right)) = (&a.0, &b.0) {
        // SAFETY: the caller's promise.
        unsafe { panels::multiply(*unit, (left, rows), right, into, output, stride) };
        return;
    }
    let part = a.0.matrix().part(rows);
    // SAFETY: the caller's promise.
    unsafe { gemm::multiply(part, b.0.matrix(), 1.0, into, output, stride) };
}

#[cfg(test)]
mod tests;
