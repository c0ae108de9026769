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
        (70, 800, 1100),
        (300, 390, 520),
    ] {
        let (left, right) = (wave(m * k), wave(n * k));
        for (a, b) in [
            (Matrix::new(&left, m, k), Matrix::new(&right, k, n)),
            (Matrix::new(&left, k, m).t(), Matrix::new(&right, n, k).t()),
        ] {
            let mut whole = vec![f32::NAN; m * n];
            gemm(a, b, 1.0, Accumulate::Replace, &mut whole, n);
            on_threads(|| gemm_parallel(a, b));
            let parts = gemm_parallel(a, b);
            assert_eq!(parts.len(), whole.len());
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * k as f32;
            assert!(
                parts.iter().zip(&whole).all(close),
                "[{m}, {k}] × [{k}, {n}]"
            );
        }
    }
}

#[test]
fn parts_occupy_all_threads() {
    for (m, n, threads) in [
        (192, 192, 2),
        (256, 256, 8),
        (4096, 256, 2),
        (720, 768, 3),
        (96, 2048, 16),
    ] {
        let [rows, columns] = part_of(m, n, threads);
        let parts = m.div_ceil(rows) * n.div_ceil(columns);
        let busiest = parts.div_ceil(threads) * rows * columns;
        assert!(
            rows <= TALLEST && busiest * threads * 4 <= m * n * 5,
            "[{m}, {n}] on {threads} threads in parts of [{rows}, {columns}]"
        );
    }
    assert_eq!(part_of(1, 1, 8), [16, 32]);
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
