use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use firebox_runtime::testing::{noise, on_threads};

/// A test of each unit; that of a unit that this machine lacks says so.
macro_rules! of_each_unit {
    ($($test:ident),+ $(,)?) => {
        $(mod $test {
            use crate::host::product::Bf16Unit;

            #[test]
            fn widened() {
                super::$test(Bf16Unit::Widened);
            }

            #[test]
            fn amx() {
                super::where_it_is(Bf16Unit::Amx, super::$test);
            }

            #[test]
            fn avx512() {
                super::where_it_is(Bf16Unit::Avx512, super::$test);
            }
        })+
    };
}

fn where_it_is(unit: Bf16Unit, test: fn(Bf16Unit)) {
    #[cfg(target_arch = "x86_64")]
    if unit.of_panels().is_some() {
        return test(unit);
    }
    let _ = test;
    eprintln!("not tested: this machine has no {unit}");
}

of_each_unit!(
    two_by_two,
    products_of_all_layouts,
    sums_are_as_exact_as_f32_makes_them,
    every_number_is_rounded_to_the_nearest,
    weights_in_16_bits_are_taken_as_they_are,
    what_is_not_finite_stays_in_its_row_and_column,
    small_numbers_are_kept_or_count_as_zero,
    parts_and_threads_give_the_same_bits,
    nothing_to_add_up,
);

/// The distance between neighbours in f32, relative to a number, halved.
const HALF_UNIT: f64 = 1.0 / (1 << 24) as f64;

fn left<'a>(unit: Bf16Unit, matrix: Matrix<'a>) -> Left<'a> {
    Left::by(unit, matrix, Precision::Bf16, On::ThisThread)
}

fn right<'a>(unit: Bf16Unit, matrix: Matrix<'a>) -> Right<'a> {
    Right::by(unit, matrix, Precision::Bf16, On::ThisThread)
}

fn whole(a: &Left<'_>, b: &Right<'_>) -> Vec<f32> {
    let mut output = vec![f32::NAN; a.rows() * b.columns()];
    let into = Accumulate::Replace;
    product((a, 0..a.rows()), b, into, &mut output, b.columns());
    output
}

fn two_by_two(unit: Bf16Unit) {
    let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
    let [a, b] = [&a, &b].map(|values| Matrix::new(values, 2, 2));
    let found = whole(&left(unit, a), &right(unit, b));
    assert_eq!(found, [19.0, 22.0, 43.0, 50.0]);
    let found = whole(&left(unit, a.t()), &right(unit, b.t()));
    assert_eq!(found, [23.0, 31.0, 34.0, 46.0]);
}

fn values(matrix: Matrix<'_>) -> Vec<Vec<f32>> {
    let ([rows, columns], [row, column]) = (matrix.shape(), matrix.strides());
    let value = |i: usize, j: usize| matrix.values()[i * row + j * column];
    let rows = (0..rows).map(|i| (0..columns).map(|j| value(i, j)).collect());
    rows.collect()
}

/// Compares with sums in f64 of the same rounded numbers. Each of the sums' k additions of a product in f32 is off by half a
/// unit at most of what the products' sizes add up to; adding to the output costs one more.
fn check(
    unit: Bf16Unit,
    a: Matrix<'_>,
    b: Matrix<'_>,
    into: Accumulate,
    gap: usize,
) -> Result<(), TestCaseError> {
    let ([m, k], [_, n]) = (a.shape(), b.shape());
    let stride = n + gap;
    let before = noise(m * stride, 0.9, 1.0);
    let mut output = before.clone();
    let ready = (left(unit, a), right(unit, b));
    product((&ready.0, 0..m), &ready.1, into, &mut output, stride);
    let (a, b) = (values(a), values(b));
    let rounded = |value: f32| f64::from(bf16::from_f32(value).to_f32());
    let rows = output
        .chunks(stride.max(1))
        .zip(before.chunks(stride.max(1)));
    for (a, (output, before)) in a.iter().zip(rows) {
        prop_assert_eq!(&output[n..], &before[n..]);
        for (column, (&found, &before)) in output[..n].iter().zip(before).enumerate() {
            let base = match into {
                Accumulate::Replace => 0.0,
                Accumulate::Add => f64::from(before),
            };
            let pairs = a.iter().zip(&b);
            let terms = pairs.map(|(&a, b)| rounded(a) * rounded(b[column]));
            let (sum, size) = terms.fold((0.0, 0.0), |(s, z), t: f64| (s + t, z + t.abs()));
            let (sum, size) = (base + sum, base.abs() + size);
            let allowed = (k + 1) as f64 * HALF_UNIT * size;
            let error = (f64::from(found) - sum).abs();
            prop_assert!(error <= allowed, "off by {error:e}, allowed {allowed:e}");
        }
    }
    Ok(())
}

fn products_of_all_layouts(unit: Bf16Unit) {
    let shape = (0usize..70, 0usize..70, 0usize..80);
    let choices = any::<(bool, bool, bool)>();
    proptest!(|((m, n, k) in shape, (ta, tb, add) in choices, gap in 0usize..3)| {
        let (a, b) = (noise((m + gap) * (k + gap), 0.1, 1.0), noise((k + gap) * (n + gap), 0.5, 1.0));
        let matrix = |values, [rows, columns]: [usize; 2], transposed| match transposed {
            false => Matrix::strided(values, rows, columns, columns + gap),
            true => Matrix::strided(values, columns, rows, rows + gap).t(),
        };
        let into = if add { Accumulate::Add } else { Accumulate::Replace };
        check(unit, matrix(&a, [m, k], ta), matrix(&b, [k, n], tb), into, gap)?;
    });
}

fn sums_are_as_exact_as_f32_makes_them(unit: Bf16Unit) {
    // Beyond every size of block.
    for [m, n, k] in [[33, 1030, 64], [600, 40, 65], [40, 50, 1537]] {
        let (a, b) = (noise(m * k, 0.1, 1.0), noise(k * n, 0.5, 1.0));
        for transposed in [false, true] {
            let (a, b) = match transposed {
                false => (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                true => (Matrix::new(&a, k, m).t(), Matrix::new(&b, n, k).t()),
            };
            for into in [Accumulate::Replace, Accumulate::Add] {
                check(unit, a, b, into, 0).unwrap();
            }
        }
    }
}

/// Times one.
fn every_number_is_rounded_to_the_nearest(unit: Bf16Unit) {
    // Every 997th of f32 that is not below 2^−126, of both signs, and ties between neighbours in bf16.
    let normal = (0x0080_0000..0x7f80_0000u32).step_by(997);
    let ties = (0x0080..0x7f80u32).map(|upper| upper << 16 | 0x8000);
    let bits = normal.chain(ties).flat_map(|bits| [bits, bits | 1 << 31]);
    let numbers: Vec<f32> = bits.map(f32::from_bits).collect();
    let expected = numbers
        .iter()
        .map(|&number| bf16::from_f32(number).to_f32().to_bits());
    let expected: Vec<u32> = expected.collect();
    let bits = |found: Vec<f32>| -> Vec<u32> { found.into_iter().map(f32::to_bits).collect() };
    let (one, count) = (Matrix::new(&[1.0], 1, 1), numbers.len());
    let column = left(unit, Matrix::new(&numbers, count, 1));
    assert!(bits(whole(&column, &right(unit, one))) == expected);
    let row = right(unit, Matrix::new(&numbers, 1, count));
    assert!(bits(whole(&left(unit, one), &row)) == expected);
}

fn weights_in_16_bits_are_taken_as_they_are(unit: Bf16Unit) {
    let (m, k, n) = (35, 70, 45);
    let (a, b) = (noise(m * k, 0.1, 1.0), noise(k * n, 0.5, 1.0));
    fn of<T: Factor>(unit: Bf16Unit, a: &Left<'_>, b: &[f32], [k, n]: [usize; 2]) {
        let held: Vec<T> = b.iter().map(|&value| T::nearest(value)).collect();
        let wide: Vec<f32> = held.iter().map(|value| value.widen()).collect();
        let expected = whole(a, &right(unit, Matrix::new(&wide, k, n)));
        let held = Matrix::new(&held, k, n);
        let held = Right::by(unit, held, Precision::Bf16, On::AllThreads);
        assert_eq!(whole(a, &held), expected);
    }
    let a = left(unit, Matrix::new(&a, m, k));
    of::<bf16>(unit, &a, &b, [k, n]);
    of::<f16>(unit, &a, &b, [k, n]);
}

fn what_is_not_finite_stays_in_its_row_and_column(unit: Bf16Unit) {
    let (m, k, n) = (37, 41, 35);
    let mut a = noise(m * k, 0.1, 1.0);
    let b = vec![1.0; k * n];
    let largest = f32::MAX; // rounds to infinity
    for (row, value) in [
        (3, f32::NAN),
        (5, f32::INFINITY),
        (36, f32::NEG_INFINITY),
        (7, largest),
    ] {
        a[row * k + k - 1] = value;
    }
    let found = whole(
        &left(unit, Matrix::new(&a, m, k)),
        &right(unit, Matrix::new(&b, k, n)),
    );
    for (row, values) in found.chunks(n).enumerate() {
        let expected = |value: &f32| match row {
            3 => value.is_nan(),
            5 | 7 => *value == f32::INFINITY,
            36 => *value == f32::NEG_INFINITY,
            _ => value.is_finite(),
        };
        assert!(values.iter().all(expected), "row {row}: {values:?}");
    }
}

fn small_numbers_are_kept_or_count_as_zero(unit: Bf16Unit) {
    let small = 1e-40f32;
    let (a, b) = ([small, 1.0], [2f32.powi(120), 1.0]);
    let found = whole(
        &left(unit, Matrix::new(&a, 1, 2)),
        &right(unit, Matrix::new(&b, 2, 1)),
    );
    let kept = bf16::from_f32(small).to_f32() * b[0] + 1.0;
    assert!(found[0] == 1.0 || found[0] == kept, "{found:?}");
}

fn parts_and_threads_give_the_same_bits(unit: Bf16Unit) {
    let (m, k, n) = (300, 600, 70);
    let (a, b) = (noise(m * k, 0.1, 1.0), noise(k * n, 0.5, 1.0));
    let (a, b) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
    let ready = || {
        let a = Left::by(unit, a, Precision::Bf16, On::AllThreads);
        (a, Right::by(unit, b, Precision::Bf16, On::AllThreads))
    };
    on_threads(|| {
        let (a, b) = ready();
        product_parallel(&a, &b)
    });
    if unit != Bf16Unit::Widened {
        let (a, b) = ready();
        let all = product_parallel(&a, &b);
        assert_eq!(all, whole(&a, &b));
        for rows in [0..1, 32..m, 288..m, 64..64] {
            let mut values = Vec::with_capacity(rows.len() * n);
            let values = &mut values.spare_capacity_mut()[..rows.len() * n];
            let part = product_uninit((&a, rows.clone()), &b, values);
            assert_eq!(part, &all[rows.start * n..rows.end * n]);
        }
    }
}

fn nothing_to_add_up(unit: Bf16Unit) {
    let (a, b) = (Matrix::new(&[], 3, 0), Matrix::new(&[], 0, 2));
    let (a, b) = (left(unit, a), right(unit, b));
    assert_eq!(whole(&a, &b), [0.0; 6]);
    assert_eq!(product_parallel(&a, &b), [0.0; 6]);
    let mut output = [1.0; 6];
    product((&a, 0..3), &b, Accumulate::Add, &mut output, 2);
    assert_eq!(output, [1.0; 6]);
}
