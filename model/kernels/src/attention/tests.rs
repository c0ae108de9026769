use burn::tensor::{Device, TensorData};
use proptest::prelude::*;

use super::*;
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, devices, values};

on_every_device!(
    two_positions,
    equals_the_reference,
    one_position_and_lengths_around_those_of_blocks,
    heads_that_share_keys_in_parts,
    wide_heads,
    nothing_gives_nothing,
    large_scores_do_not_overflow,
    each_gradient_by_itself_is_the_same_and_others_are_not_computed,
    two_runs_give_the_same_bits,
);

/// Values that differ everywhere, of both signs, up to `size`.
fn wave(rows: usize, columns: usize, phase: f32, size: f32, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..rows * columns)
        .map(|i| size * (i as f32 * 0.7 + phase).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

fn shape(
    batch: usize,
    length: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
) -> AttentionShape {
    AttentionShape {
        batch,
        length,
        heads: kv_heads * group,
        kv_heads,
        head_dim,
    }
}

type Attention = fn(Tensor<2>, Tensor<2>, Tensor<2>, usize, &Rotary) -> Tensor<2>;

const NAMES: [&str; 4] = ["output", "d(query)", "d(key)", "d(value)"];

/// The output, and the gradients of a weighted sum of it for the inputs that need a gradient.
fn run(
    attention: Attention,
    shape: AttentionShape,
    size: f32,
    needs_grad: [bool; 3],
    device: &Device,
) -> [Option<Vec<f32>>; 4] {
    let device = device.clone().autodiff();
    let AttentionShape {
        batch,
        length,
        heads,
        kv_heads,
        head_dim,
    } = shape;
    let rotary = Rotary::new(0, length, head_dim, 1e4, &device);
    let tokens = batch * length;
    let inputs = [(heads, 0.1), (kv_heads, 0.5), (kv_heads, 0.9)];
    let [query, key, value] = [0, 1, 2].map(|input| {
        let (heads, phase) = inputs[input];
        let tensor = wave(tokens, heads * head_dim, phase, size, &device);
        tensor.set_require_grad(needs_grad[input])
    });
    let output = attention(query.clone(), key.clone(), value.clone(), batch, &rotary);
    let weights = wave(tokens, heads * head_dim, 1.3, 1.0, &device);
    let gradients = (output.clone() * weights).sum().backward();
    let values = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect::<Vec<f32>>();
    let gradient = |input: Tensor<2>| input.grad(&gradients).map(values);
    [
        Some(values(output)),
        gradient(query),
        gradient(key),
        gradient(value),
    ]
}

/// `‖a − b‖ ≤ 1e-5 ‖b‖ + 1e-6 size² √n`. Both add the same products in f32 in orders that differ, some hundred roundings
/// of 6e-8. Where a gradient is a difference of equal numbers (with one position, those of query and key are 0),
/// what remains of it is the rounding of products of a value and a key or query: the second term.
fn assert_same(shape: AttentionShape, size: f32, device: &Device) -> Result<(), TestCaseError> {
    let rounding = 1e-6 * f64::from(size).powi(2);
    let fast = run(causal_attention, shape, size, [true; 3], device);
    let slow = run(causal_attention_reference, shape, size, [true; 3], device);
    for (name, (fast, slow)) in NAMES.iter().zip(fast.iter().zip(&slow)) {
        let (fast, slow) = (fast.as_ref().unwrap(), slow.as_ref().unwrap());
        prop_assert_eq!(fast.len(), slow.len());
        let norm = |terms: &mut dyn Iterator<Item = f32>| {
            terms.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
        };
        let error = norm(&mut fast.iter().zip(slow).map(|(a, b)| a - b));
        let allowed =
            1e-5 * norm(&mut slow.iter().copied()) + rounding * (slow.len() as f64).sqrt();
        prop_assert!(
            error <= allowed,
            "{device:?}, {shape:?}, {name}: off by {error:.1e}, allowed {allowed:.1e}"
        );
    }
    Ok(())
}

// The second position's scores are 0 and ln 3, its weights 1/4 and 3/4. Rotary positions leave a query and a key of the
// same position as they are to each other.
fn two_positions(device: Device) {
    let matrix = |rows: [[f32; 2]; 2]| Tensor::<2>::from_floats(rows, &device);
    let query = matrix([[5.0, 7.0], [2f32.sqrt(), 0.0]]);
    let key = matrix([[0.0, 0.0], [3f32.ln(), 0.0]]);
    let value = matrix([[4.0, 0.0], [0.0, 8.0]]);
    let rotary = Rotary::new(0, 2, 2, 1e4, &device);
    let output = causal_attention(query, key, value, 1, &rotary);
    assert_close("output", &values(output), &[4.0, 0.0, 1.0, 6.0], 5e-7).unwrap();
}

fn equals_the_reference(device: Device) {
    proptest!(ProptestConfig::with_cases(40), |(
        (batch, length) in (1usize..4, prop_oneof![1usize..20, 100usize..150]),
        (kv_heads, group) in (1usize..4, 1usize..5),
        half in 1usize..17,
        size in prop_oneof![Just(1.0f32), Just(4.0)],
    )| {
        assert_same(shape(batch, length, kv_heads, group, 2 * half), size, &device)?;
    });
}

fn one_position_and_lengths_around_those_of_blocks(device: Device) {
    for length in [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257] {
        assert_same(shape(1, length, 1, 4, 24), 1.0, &device).unwrap();
    }
    for (kv_heads, group, head_dim) in [(1, 1, 128), (2, 1, 64), (1, 5, 80), (3, 2, 24)] {
        assert_same(shape(2, 300, kv_heads, group, head_dim), 1.0, &device).unwrap();
    }
    // More query heads than a block has rows.
    assert_same(shape(1, 5, 1, 150, 8), 1.0, &device).unwrap();
}

fn heads_that_share_keys_in_parts(device: Device) {
    assert_same(shape(64, 65, 3, 4, 8), 1.0, &device).unwrap();
}

fn wide_heads(device: Device) {
    for head_dim in [98, 128, 160, 256] {
        assert_same(shape(1, 70, 1, 2, head_dim), 1.0, &device).unwrap();
    }
}

fn nothing_gives_nothing(device: Device) {
    let rotary = Rotary::new(0, 3, 8, 1e4, &device);
    let empty = |heads: usize| wave(0, heads * 8, 0.0, 1.0, &device);
    let output = causal_attention(empty(2), empty(1), empty(1), 0, &rotary);
    assert_eq!(output.dims(), [0, 16]);
}

fn large_scores_do_not_overflow(device: Device) {
    // Scores of some thousands, whose exponentials are infinite by themselves. Which position wins is plain; the
    // gradients of a softmax that is all but certain are rounding, so the output alone is compared.
    let shape = shape(1, 70, 1, 2, 16);
    let none = [false, false, true];
    let fast = run(causal_attention, shape, 60.0, none, &device);
    let slow = run(causal_attention_reference, shape, 60.0, none, &device);
    let (fast, slow) = (fast[0].as_ref().unwrap(), slow[0].as_ref().unwrap());
    for (a, b) in fast.iter().zip(slow) {
        assert!((a - b).abs() < 60.0 * 1e-3, "{a} against {b}");
    }
}

fn each_gradient_by_itself_is_the_same_and_others_are_not_computed(device: Device) {
    let shape = shape(2, 40, 2, 3, 10);
    let all = run(causal_attention, shape, 1.0, [true; 3], &device);
    for input in 0..3 {
        let mut needs_grad = [false; 3];
        needs_grad[input] = true;
        let one = run(causal_attention, shape, 1.0, needs_grad, &device);
        for other in 0..3 {
            let expected = if needs_grad[other] {
                &all[other + 1]
            } else {
                &None
            };
            assert_eq!(&one[other + 1], expected, "{}", NAMES[other + 1]);
        }
    }
}

fn two_runs_give_the_same_bits(device: Device) {
    let shape = shape(2, 150, 2, 3, 12);
    let [first, second] = [(); 2].map(|()| run(causal_attention, shape, 1.0, [true; 3], &device));
    assert_eq!(first, second);
}

/// On a CPU there is nothing to read back.
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm", feature = "cpu"))]
mod on_a_gpu {
    use super::*;
    use firebox_runtime::on_every_gpu;
    use firebox_runtime::testing::reads_nothing;

    on_every_gpu!(nothing_waits_for_the_device);

    fn nothing_waits_for_the_device(device: Device) {
        let autodiff = device.clone().autodiff();
        let rotary = Rotary::new(0, 70, 8, 1e4, &autodiff);
        let [query, key, value] =
            [2, 1, 1].map(|heads| wave(140, heads * 8, 0.3, 1.0, &autodiff).require_grad());
        let pass = || {
            let output = causal_attention(query.clone(), key.clone(), value.clone(), 2, &rotary);
            drop(output.sum().backward());
        };
        assert!(reads_nothing(&device, pass));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let device = devices().remove(0);
    for shape in [shape(3, 150, 2, 3, 12), shape(1, 260, 1, 8, 32)] {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.expect("a pool");
            pool.install(|| run(causal_attention, shape, 1.0, [true; 3], &device))
        };
        let one = on(1);
        for threads in [2, 8] {
            assert_eq!(on(threads), one, "{threads} threads");
        }
    }
}

#[test]
#[should_panic(expected = "2 sequences and 3 rotary rows against queries [5, 16]")]
fn shapes_that_do_not_fit_are_refused() {
    let device = devices().remove(0);
    let rotary = Rotary::new(0, 3, 8, 1e4, &device);
    let of = |rows: usize, heads: usize| wave(rows, heads * 8, 0.0, 1.0, &device);
    let _ = causal_attention(of(5, 2), of(5, 1), of(5, 1), 2, &rotary);
}
