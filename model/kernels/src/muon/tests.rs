use burn::tensor::{Device, TensorData};
use proptest::prelude::*;

use super::*;
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, noise, on_threads, values};

on_every_device!(
    singular_values_become_ones,
    two_updates_follow_the_formula,
    equals_the_reference,
    a_stack_is_updated_matrix_by_matrix,
    matrices_take_turns,
    a_momentum_that_is_next_to_nothing_moves_nothing,
    a_shared_tensor_is_left_alone_and_a_view_is_understood,
    any_number_of_threads_gives_the_same_bits,
    no_weights,
);

const UPDATE: MuonUpdate = MuonUpdate {
    gradient_scale: 0.5,
    momentum: 0.95,
    learning_rate: 0.01,
    decay: 0.001,
    turns: Turns::ALL,
};

/// One that sets a weight to what its matrix is made, times `0.2 √max(m, n)`, but for the sign.
const WHOLE: MuonUpdate = MuonUpdate {
    gradient_scale: 1.0,
    momentum: 0.0,
    learning_rate: 1.0,
    decay: 1.0,
    turns: Turns::ALL,
};

fn numbers(count: usize, seed: u8) -> Vec<f32> {
    noise(count, f32::from(seed), 1.0)
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn flat(values: &[f32], device: &Device) -> Tensor<1> {
    tensor(values, [values.len()], device)
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

/// The iteration as it is published, `x ← a x + b (x xᵀ) x + c (x xᵀ)² x`.
fn orthogonal(matrix: &[f64], shape: [usize; 2]) -> Vec<f64> {
    let [rows, columns] = shape;
    let norm = |x: &[f64]| x.iter().map(|value| value * value).sum::<f64>().sqrt();
    let square = |x: &[f64]| product(x, &transposed(x, shape), [rows, columns, rows]);
    let scale = norm(&square(matrix)).sqrt();
    let mut x: Vec<f64> = matrix.iter().map(|value| value / scale).collect();
    for [a, b, c] in FACTORS {
        let square = square(&x);
        let second = product(&square, &x, [rows, rows, columns]);
        let third = product(&square, &second, [rows, rows, columns]);
        let terms = x.iter().zip(&second).zip(&third);
        x = terms
            .map(|((x, second), third)| a * x + b * second + c * third)
            .collect();
    }
    x
}

fn singular_values_become_ones(device: Device) {
    // Orthogonal rows of very different lengths: a diagonal beside zeros.
    let lengths = [3.0, 0.05, 1.0, 0.4];
    for shape in [[4, 6], [6, 4]] {
        let mut gradient = vec![0.0; 24];
        for (place, length) in lengths.into_iter().enumerate() {
            gradient[place * shape[1] + place] = length;
        }
        let zeros = || tensor(&[0.0; 24], shape, &device);
        let run = |gradient: &[f32]| {
            let momentum = flat(&[0.0; 24], &device);
            let (weights, _) = muon(zeros(), flat(gradient, &device), momentum, &WHOLE);
            let size = 0.2 * 6f32.sqrt();
            let values = values(weights).into_iter().map(|value| -value / size);
            values.collect::<Vec<f32>>()
        };
        for (place, value) in run(&gradient).into_iter().enumerate() {
            let is_diagonal = place / shape[1] == place % shape[1];
            let expected = if is_diagonal { 0.73..1.27 } else { -1e-6..1e-6 };
            assert!(expected.contains(&value), "{shape:?} at {place}: {value}");
        }
        assert!(run(&[0.0; 24]).iter().all(|&value| value == 0.0));
    }
}

fn two_updates_follow_the_formula(device: Device) {
    for shape in [[5, 9], [9, 5], [7, 7]] {
        let elements = shape[0] * shape[1];
        let start = numbers(elements, 1);
        let mut weights = tensor(&start, shape, &device);
        let mut momentum = Tensor::zeros([elements], &device);
        let mut expected: Vec<f64> = start.iter().copied().map(f64::from).collect();
        let mut buffer = vec![0.0f64; elements];
        for seed in [2, 3] {
            let gradient = numbers(elements, seed);
            (weights, momentum) = muon(weights, flat(&gradient, &device), momentum, &UPDATE);
            let scaled: Vec<f64> = gradient.iter().map(|&g| 0.5 * f64::from(g)).collect();
            let pairs = buffer.iter_mut().zip(&scaled);
            pairs.for_each(|(b, g)| *b = 0.95 * *b + 0.05 * g);
            let pairs = buffer.iter().zip(&scaled);
            let ahead: Vec<f64> = pairs.map(|(b, g)| 0.95 * b + 0.05 * g).collect();
            let size = 0.01 * 0.2 * (shape[0].max(shape[1]) as f64).sqrt();
            let changes = orthogonal(&ahead, shape);
            let pairs = expected.iter_mut().zip(changes);
            pairs.for_each(|(w, change)| *w = 0.999 * *w - size * change);
        }
        let rounded =
            |numbers: &[f64]| -> Vec<f32> { numbers.iter().map(|&number| number as f32).collect() };
        assert_close("weights", &values(weights), &rounded(&expected), 1e-5).unwrap();
        assert_close("momentum", &values(momentum), &rounded(&buffer), 1e-5).unwrap();
    }
}

type Step = fn(Tensor<3>, Tensor<1>, Tensor<1>, &MuonUpdate) -> (Tensor<3>, Tensor<1>);

fn run(step: Step, shape: [usize; 3], update: &MuonUpdate, device: &Device) -> [Vec<f32>; 2] {
    let elements = shape.iter().product();
    let (weights, momentum) = step(
        tensor(&numbers(elements, 4), shape, device),
        flat(&numbers(elements, 5), device),
        flat(&numbers(elements, 6), device),
        update,
    );
    [values(weights), values(momentum)]
}

// With q the product of the polynomials, an error ε of the square moves what becomes of a singular value σ by σ q′(σ²) ε: by 890 ε at
// most, for σ a fortieth of the largest one. ε is a few roundings, 3e-7.
fn equals_the_reference(device: Device) {
    proptest!(ProptestConfig::with_cases(12), |(shape in [1usize..4, 1usize..150, 1usize..150])| {
        let fast = run(muon, shape, &WHOLE, &device);
        let slow = run(muon_reference, shape, &WHOLE, &device);
        assert_close("weights", &fast[0], &slow[0], 3e-4)?;
        assert_close("momentum", &fast[1], &slow[1], 2e-7)?;
    });
}

fn a_stack_is_updated_matrix_by_matrix(device: Device) {
    let [weights, _] = run(muon, [3, 4, 6], &UPDATE, &device);
    for index in 0..3 {
        let part = |seed| numbers(72, seed)[index * 24..][..24].to_vec();
        let own = tensor(&part(4), [4, 6], &device);
        let (gradient, momentum) = (flat(&part(5), &device), flat(&part(6), &device));
        let (own, _) = muon(own, gradient, momentum, &UPDATE);
        assert_close("stack", &weights[index * 24..][..24], &values(own), 1e-6).unwrap();
    }
}

fn matrices_take_turns(device: Device) {
    const SHAPE: [usize; 3] = [5, 4, 6];
    let part = |seed, index: usize| numbers(120, seed)[index * 24..][..24].to_vec();
    let steps: [Step; 2] = [muon, muon_reference];
    for (every, offset) in [(2, 0), (2, 1), (3, 7)] {
        let update = MuonUpdate {
            turns: Turns { every, offset },
            ..UPDATE
        };
        for step in steps {
            let [weights, momentum] = run(step, SHAPE, &update, &device);
            for index in 0..5 {
                // As far as in all updates of its turn.
                let alone = MuonUpdate {
                    learning_rate: UPDATE.learning_rate * every as f64,
                    decay: UPDATE.decay * every as f64,
                    ..UPDATE
                };
                let before = part(4, index);
                let own = tensor(&before, [4, 6], &device);
                let given = [5, 6].map(|seed| flat(&part(seed, index), &device));
                let [gradient, kept] = given;
                let (moved, kept) = muon(own, gradient, kept, &alone);
                let expected = match (offset + index) % every {
                    0 => values(moved),
                    _ => before,
                };
                let of_stack = |values: &[f32]| values[index * 24..][..24].to_vec();
                assert_close("weights", &of_stack(&weights), &expected, 1e-6).unwrap();
                assert_close("momentum", &of_stack(&momentum), &values(kept), 1e-6).unwrap();
            }
        }
    }
    // None of them has its turn.
    let update = MuonUpdate {
        turns: Turns {
            every: 9,
            offset: 1,
        },
        ..UPDATE
    };
    for step in steps {
        let [weights, _] = run(step, SHAPE, &update, &device);
        assert_eq!(weights, numbers(120, 4));
    }
}

fn a_momentum_that_is_next_to_nothing_moves_nothing(device: Device) {
    let small: Vec<f32> = numbers(24, 7).iter().map(|value| value * 1e-12).collect();
    let weights = tensor(&[0.0; 24], [4, 6], &device);
    let (weights, _) = muon(
        weights,
        flat(&small, &device),
        flat(&[0.0; 24], &device),
        &WHOLE,
    );
    assert!(values(weights).iter().all(|value| value.abs() < 1e-3));
}

fn a_shared_tensor_is_left_alone_and_a_view_is_understood(device: Device) {
    let of = |shape, seed| -> Tensor<2> { tensor(&numbers(24, seed), shape, &device) };
    let weights = of([6, 4], 8);
    let before = values(weights.clone());
    let rest = || [9, 10].map(|seed| flat(&numbers(24, seed), &device));
    let both = |weights: Tensor<2>, [gradient, momentum]: [Tensor<1>; 2]| {
        let fast = muon(weights.clone(), gradient.clone(), momentum.clone(), &UPDATE);
        let slow = muon_reference(weights, gradient, momentum, &UPDATE);
        assert_close("weights", &values(fast.0), &values(slow.0), 1e-6).unwrap();
        assert_close("momentum", &values(fast.1), &values(slow.1), 1e-6).unwrap();
    };
    both(weights.clone(), rest());
    assert_eq!(values(weights.clone()), before);
    let view = weights.slice([1..4, 1..3]).swap_dims(0, 1);
    both(view, rest().map(|flat| flat.narrow(0, 3, 6)));
}

fn any_number_of_threads_gives_the_same_bits(device: Device) {
    on_threads(|| run(muon, [3, 150, 200], &UPDATE, &device).concat());
}

fn no_weights(device: Device) {
    for shape in [[0, 3, 4], [2, 0, 4], [2, 3, 0]] {
        assert!(run(muon, shape, &UPDATE, &device).concat().is_empty());
    }
}
