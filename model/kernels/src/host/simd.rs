//! Plain loops compiled for the vector instructions of the machine that runs them, and what such loops are
//! made of.
//!
//! The binaries are built for any machine of their architecture, so that a plain loop gets its oldest vector
//! instructions. Sums are taken in an order that follows from their length alone, and no product is fused with a
//! sum, so that every machine computes the same bits; but for what asks for [`Fused`].

use pulp::{Arch, Simd, WithSimd};

use crate::dtype::Number;

/// Runs `work`, compiled once for each level of vector instructions, at the widest level of this machine.
///
/// What is to profit must be inlined into `work`: mark the closure and the functions that it calls
/// `#[inline(always)]`. The closure is `FnMut`, not `FnOnce`: one that could be called again is called once by way of
/// a shim, which no attribute reaches, and a large one then stays a function of its own with the oldest
/// instructions.
#[inline(always)]
pub fn vectorized<R>(mut work: impl FnMut() -> R) -> R {
    vectorized_fused(
        #[inline(always)]
        |_| work(),
    )
}

/// [`vectorized`], of sums of products that are fused where the machine can.
#[inline(always)]
pub fn vectorized_fused<R>(work: impl FnMut(Fused) -> R) -> R {
    struct Work<F>(F);

    impl<R, F: FnMut(Fused) -> R> WithSimd for Work<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)(Fused(!S::IS_SCALAR))
        }
    }

    Arch::new().dispatch(Work(work))
}

/// Whether a product is fused with the sum that it is added to, and rounded once in place of twice. Every machine with
/// vector instructions that are worth having can; elsewhere it would be a call of a function.
#[derive(Debug, Clone, Copy)]
pub struct Fused(bool);

impl Fused {
    /// `a · b + sum`
    #[inline(always)]
    pub fn add(self, a: f32, b: f32, sum: f32) -> f32 {
        match self.0 {
            true => a.mul_add(b, sum),
            false => a * b + sum,
        }
    }
}

/// Prefetches the cache lines `ahead` elements after `values` into the second level of cache; addresses out of bounds are harmless.
/// Rows of a matrix are often a power of two apart, so that a line of each of eight fills a set of the first level.
#[inline(always)]
pub fn prefetch<T>(values: &[T], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    for place in (0..values.len()).step_by(LINE / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let pointer = values.as_ptr().wrapping_add(ahead + place);
        // SAFETY: a hint, which reads nothing and is ignored where it points to no memory; every processor of this
        // architecture has it.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(pointer.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, ahead);
}

/// Bytes that memory delivers at a time.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Partial sums that are kept side by side; two of the widest vectors, since an addition takes its time.
const SUM_LANES: usize = 32;

/// Combines lanes by halves: the same order for each length.
#[inline(always)]
fn fold(mut lanes: [f32; SUM_LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = SUM_LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ term(values[i])`
#[inline(always)]
pub fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; SUM_LANES];
    let (chunks, rest) = values.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += term(value);
    }
    fold(lanes, |a, b| a + b)
}

/// `Σ a[i] b[i]` for each of several rows a, of numbers b that are widened once for all of them.
#[inline(always)]
pub fn dots<T: Number, const ROWS: usize>(
    rows: [&[f32]; ROWS],
    b: &[T],
    fused: Fused,
) -> [f32; ROWS] {
    let mut lanes = [[0.0; SUM_LANES]; ROWS];
    let (b_chunks, b_rest) = b.as_chunks::<SUM_LANES>();
    let chunks = rows.map(|row| row.as_chunks::<SUM_LANES>());
    for (place, b) in b_chunks.iter().enumerate() {
        let b = b.map(Number::widen);
        for (lanes, (chunks, _)) in lanes.iter_mut().zip(chunks) {
            let a = &chunks[place];
            for lane in 0..SUM_LANES {
                lanes[lane] = fused.add(a[lane], b[lane], lanes[lane]);
            }
        }
    }
    for (lanes, (_, rest)) in lanes.iter_mut().zip(chunks) {
        for (lane, (&a, &b)) in lanes.iter_mut().zip(rest.iter().zip(b_rest)) {
            *lane = fused.add(a, b.widen(), *lane);
        }
    }
    lanes.map(|lanes| fold(lanes, |a, b| a + b))
}

/// `Σ a[i] b[i] c[i]`
#[inline(always)]
pub fn sum_of_products(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0; SUM_LANES];
    let (a_chunks, a_rest) = a.as_chunks::<SUM_LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<SUM_LANES>();
    let (c_chunks, c_rest) = c.as_chunks::<SUM_LANES>();
    for ((a, b), c) in a_chunks.iter().zip(b_chunks).zip(c_chunks) {
        for lane in 0..SUM_LANES {
            lanes[lane] += a[lane] * b[lane] * c[lane];
        }
    }
    let rest = a_rest.iter().zip(b_rest).zip(c_rest);
    for (lane, ((a, b), c)) in lanes.iter_mut().zip(rest) {
        *lane += a * b * c;
    }
    fold(lanes, |a, b| a + b)
}

/// The largest value that is a number; −∞ when there is none.
#[inline(always)]
pub fn maximum(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; SUM_LANES];
    let (chunks, rest) = values.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    fold(lanes, larger)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_length(values in prop::collection::vec(-1f32..1.0, 0..150)) {
            let exact: f64 = values.iter().map(|&value| f64::from(value)).sum();
            prop_assert!((f64::from(sum(&values, |value| value)) - exact).abs() < 1e-5);
            let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
            for fused in [Fused(false), Fused(true)] {
                let [found] = dots([&values], &values, fused).map(f64::from);
                prop_assert!((found - squares).abs() < 1e-5);
                let reversed: Vec<f32> = values.iter().rev().copied().collect();
                let both = dots([&reversed, &values], &values, fused);
                let each = [&reversed, &values].map(|row| dots([&row[..]], &values, fused));
                prop_assert_eq!(both.map(|sum| [sum]), each);
            }
            let cubes: f64 = values.iter().map(|&value| f64::from(value).powi(3)).sum();
            let found = sum_of_products(&values, &values, &values);
            prop_assert!((f64::from(found) - cubes).abs() < 1e-5);
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(maximum(&values), largest);
            let square = |value: f32| value * value;
            let widest = vectorized(
                #[inline(always)]
                || sum(&values, square),
            );
            prop_assert_eq!(widest, sum(&values, square));
        }
    }
}
