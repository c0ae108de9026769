//! Muon: momentum, of which every matrix is made orthogonal.

use burn::tensor::Tensor;
use firebox_kernels::{Precision, linear, linear_transposed, sum_of_squares};

/// The numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonUpdate {
    /// What the gradient is multiplied by first (that of clipping).
    pub gradient_scale: f64,
    /// How much of the momentum stays (μ).
    pub momentum: f64,
    /// η
    pub learning_rate: f64,
    /// What a weight loses for its size alone, as a fraction of it (η λ).
    pub decay: f64,
    /// That of the products of the iteration.
    pub precision: Precision,
}

/// The root of the mean square of an update's values at a learning rate of 1, which is about that of AdamW, so that both have the
/// same learning rate and weight decay (Moonlight, arXiv 2502.16982, section 2.2).
const SIZE: f64 = 0.2;

/// a, b and c of an iteration (Keller Jordan, kellerjordan.github.io/posts/muon): five of
/// them take singular values from 0.01 to 1 to between 0.7 and 1.2.
const FACTORS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Number of iterations.
const ITERATIONS: usize = 5;

/// One update of Muon with Nesterov momentum (Keller Jordan, kellerjordan.github.io/posts/muon), with the size and the weight
/// decay of Moonlight (arXiv 2502.16982, eq. 4), of each of the matrices with m rows and n columns that the weights are:
///
/// `b ← μ b + (1 − μ) g`, `w ← (1 − η λ) w − η · 0.2 · √max(m, n) · orthogonal(μ b + (1 − μ) g)`
///
/// The size of an update does not depend on that of the momentum: a matrix without gradients, such as that of an expert without
/// tokens, moves on in the direction of its last ones until its momentum is zero.
///
/// # Shapes
///
/// - `weights`: `[m, n]`, or a stack of matrices, `[experts, m, n]`
/// - `gradient`, `momentum` (b): flattened
/// - output: the weights and the momentum after the update
///
/// # Panics
///
/// When the weights are no matrices.
pub fn muon<const D: usize>(
    weights: Tensor<D>,
    gradient: Tensor<1>,
    momentum: Tensor<1>,
    update: &MuonUpdate,
) -> (Tensor<D>, Tensor<1>) {
    let shape = weights.dims();
    let (stacked, &[rows, columns]) = shape.split_last_chunk().expect("matrices");
    let count = stacked.iter().product::<usize>();
    let gradient = gradient.mul_scalar((1.0 - update.momentum) * update.gradient_scale);
    let momentum = momentum.mul_scalar(update.momentum) + gradient.clone();
    let direction = momentum.clone().mul_scalar(update.momentum) + gradient;
    let matrices = direction.reshape([count, rows, columns]);
    let size = update.learning_rate * SIZE * (rows.max(columns) as f64).sqrt();
    let changes = (0..count).map(|index| {
        let matrix = matrices.clone().narrow(0, index, 1).squeeze_dim::<2>(0);
        let change = orthogonal(matrix, update.precision).mul_scalar(size);
        change.unsqueeze::<3>()
    });
    let changes = Tensor::cat(changes.collect(), 0).reshape(shape);
    let weights = weights.mul_scalar(1.0 - update.decay) - changes;
    (weights, momentum)
}

/// A matrix with about the same singular vectors and with singular values of about 1, by Newton and Schulz's iteration,
/// `x ← (a 1 + b x xᵀ + c (x xᵀ)²) x`; of zeros, zeros.
///
/// # Shapes
///
/// - `matrix`, output: `[m, n]`
pub fn orthogonal(matrix: Tensor<2>, precision: Precision) -> Tensor<2> {
    let [rows, columns] = matrix.dims();
    if rows > columns {
        return orthogonal(matrix.transpose(), precision).transpose();
    }
    let [a, b, c] = FACTORS;
    let norm = sum_of_squares(matrix.clone()).sqrt().add_scalar(1e-7);
    let mut x = matrix / norm.unsqueeze::<2>();
    let one = Tensor::<2>::eye(rows, &x.device());
    let [one_a, one_b] = [a, b].map(|factor| one.clone().mul_scalar(factor));
    for _ in 0..ITERATIONS {
        // As few passes over values as there are: products are what the time should go to.
        let square = linear_transposed(x.clone(), x.clone(), precision);
        let upper = square.clone().mul_scalar(c) + one_b.clone();
        let polynomial = linear(upper, square, precision) + one_a.clone();
        x = linear(polynomial, x, precision);
    }
    x
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    use super::*;

    on_every_device!(
        singular_values_become_ones,
        two_updates_follow_the_formula,
        a_stack_is_updated_matrix_by_matrix,
    );

    /// Numbers without a pattern, in rows.
    fn numbers(shape: [usize; 2], seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..shape[0] * shape[1]).map(|_| next()).collect()
    }

    fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
    }

    /// `a · b`, of row-major matrices in f64.
    fn product(a: &[f64], b: &[f64], [rows, inner, columns]: [usize; 3]) -> Vec<f64> {
        let value = |place: usize| {
            let (row, column) = (place / columns, place % columns);
            (0..inner)
                .map(|i| a[row * inner + i] * b[i * columns + column])
                .sum()
        };
        (0..rows * columns).map(value).collect()
    }

    fn transposed(a: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
        (0..rows * columns)
            .map(|place| a[place % rows * columns + place / rows])
            .collect()
    }

    /// The iteration as it is published, with rows that need not be the shorter side.
    fn reference(matrix: &[f64], shape: [usize; 2]) -> Vec<f64> {
        let [rows, columns] = shape;
        let norm = matrix.iter().map(|value| value * value).sum::<f64>().sqrt() + 1e-7;
        let mut x: Vec<f64> = matrix.iter().map(|value| value / norm).collect();
        for _ in 0..5 {
            let square = product(&x, &transposed(&x, shape), [rows, columns, rows]);
            let fourth = product(&square, &square, [rows; 3]);
            let second = product(&square, &x, [rows, rows, columns]);
            let third = product(&fourth, &x, [rows, rows, columns]);
            let terms = x.iter().zip(&second).zip(&third);
            x = terms
                .map(|((x, second), third)| 3.4445 * x - 4.7750 * second + 2.0315 * third)
                .collect();
        }
        x
    }

    fn singular_values_become_ones(device: Device) {
        // Orthogonal rows of very different lengths: a diagonal beside zeros.
        let mut values_of = vec![0.0; 4 * 6];
        for (row, length) in [3.0, 0.3, 1.0, 0.1].into_iter().enumerate() {
            values_of[row * 6 + row] = length;
        }
        for (shape, is_wide) in [([4, 6], true), ([6, 4], false)] {
            let wide = tensor(&values_of, [4, 6], &device);
            let matrix = if is_wide { wide } else { wide.transpose() };
            let found = values(orthogonal(matrix, Precision::F32));
            for (place, value) in found.iter().enumerate() {
                let is_diagonal = place / shape[1] == place % shape[1];
                let expected = if is_diagonal { 0.68..1.22 } else { -1e-6..1e-6 };
                assert!(expected.contains(value), "{shape:?} at {place}: {value}");
            }
        }
        let zeros = orthogonal(Tensor::zeros([3, 5], &device), Precision::F32);
        assert!(values(zeros).iter().all(|&value| value == 0.0));
    }

    const UPDATE: MuonUpdate = MuonUpdate {
        gradient_scale: 0.5,
        momentum: 0.95,
        learning_rate: 0.01,
        decay: 0.001,
        precision: Precision::F32,
    };

    fn two_updates_follow_the_formula(device: Device) {
        for shape in [[5, 9], [9, 5], [7, 7]] {
            let elements = shape[0] * shape[1];
            let start = numbers(shape, 1);
            let mut weights = tensor(&start, shape, &device);
            let mut momentum = Tensor::zeros([elements], &device);
            let mut expected: Vec<f64> = start.iter().copied().map(f64::from).collect();
            let mut buffer = vec![0.0f64; elements];
            for seed in [2, 3] {
                let gradient = numbers(shape, seed);
                (weights, momentum) = muon(
                    weights,
                    tensor(&gradient, [elements], &device),
                    momentum,
                    &UPDATE,
                );
                let scaled: Vec<f64> = gradient.iter().map(|&g| 0.5 * f64::from(g)).collect();
                let pairs = buffer.iter_mut().zip(&scaled);
                pairs.for_each(|(b, g)| *b = 0.95 * *b + 0.05 * g);
                let pairs = buffer.iter().zip(&scaled);
                let ahead: Vec<f64> = pairs.map(|(b, g)| 0.95 * b + 0.05 * g).collect();
                let size = 0.01 * 0.2 * (shape[0].max(shape[1]) as f64).sqrt();
                let changes = reference(&ahead, shape);
                let pairs = expected.iter_mut().zip(changes);
                pairs.for_each(|(w, change)| *w = 0.999 * *w - size * change);
            }
            let rounded = |numbers: &[f64]| -> Vec<f32> {
                numbers.iter().map(|&number| number as f32).collect()
            };
            assert_close("weights", &values(weights), &rounded(&expected), 1e-5).unwrap();
            assert_close("momentum", &values(momentum), &rounded(&buffer), 1e-5).unwrap();
        }
    }

    fn a_stack_is_updated_matrix_by_matrix(device: Device) {
        let (weights, gradient) = (numbers([12, 6], 4), numbers([12, 6], 5));
        let stack = |values: &[f32]| tensor(values, [3, 4, 6], &device);
        let flat = |values: &[f32]| tensor(values, [values.len()], &device);
        let zeros = |count: usize| Tensor::zeros([count], &device);
        let (found, _) = muon(stack(&weights), flat(&gradient), zeros(72), &UPDATE);
        let one = |index: usize| {
            let part = |values: &[f32]| values[index * 24..][..24].to_vec();
            let own = tensor(&part(&weights), [4, 6], &device);
            values(muon(own, flat(&part(&gradient)), zeros(24), &UPDATE).0)
        };
        let expected = (0..3).flat_map(one).collect::<Vec<f32>>();
        assert_close("stack", &values(found), &expected, 1e-6).unwrap();
    }
}
