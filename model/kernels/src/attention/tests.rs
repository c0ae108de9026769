mod specification;

use burn::tensor::{Device, TensorData};
use proptest::prelude::*;

use super::*;
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, devices, values};

on_every_device!(
    two_positions,
    three_positions_of_two_documents,
    equals_the_reference,
    in_bf16_the_reference_is_near,
    documents_and_windows_equal_the_reference,
    ranges_around_the_sizes_of_blocks,
    a_document_is_what_it_is_alone,
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
        keys: length,
        heads: kv_heads * group,
        kv_heads,
        head_dim,
        rotary_dim: head_dim,
        window: None,
        scale: (head_dim as f32).sqrt().recip(),
        sinks: false,
    }
}

fn spec(shape: AttentionShape) -> AttentionSpec {
    AttentionSpec {
        window: shape.window,
        scale: shape.scale,
        ..AttentionSpec::new(shape.heads, shape.kv_heads, shape.head_dim)
    }
}

type Attention = fn(AttentionInput<'_>) -> Tensor<2>;

/// Random cases. In CubeCL each other shape of heads is a kernel of its own, which software Vulkan takes seconds to compile.
fn cases(device: &Device) -> ProptestConfig {
    ProptestConfig::with_cases(match kernels(device) {
        Kernels::Cube => 10,
        _ => 40,
    })
}

/// Documents of these lengths one after the other, cut where a sequence ends, of which each query sees its own, and of
/// that the last `window` positions.
fn first_keys(shape: AttentionShape, documents: &[usize], window: usize) -> Vec<usize> {
    let mut left = documents.iter().copied().cycle();
    let (mut rest, mut start) = (0, 0);
    let of_token = |token: usize| {
        let position = token % shape.length;
        if position == 0 || rest == 0 {
            start = position;
        }
        if rest == 0 {
            rest = left.next().unwrap_or(shape.length);
        }
        rest -= 1;
        start.max((position + 1).saturating_sub(window))
    };
    (0..shape.batch * shape.length).map(of_token).collect()
}

const NAMES: [&str; 5] = ["output", "d(query)", "d(key)", "d(value)", "d(sinks)"];

/// What is computed: the sizes, how large queries, keys and values are, and what each query sees.
#[derive(Debug, Clone)]
struct Case {
    shape: AttentionShape,
    size: f32,
    first: Option<Vec<usize>>,
}

impl From<AttentionShape> for Case {
    fn from(shape: AttentionShape) -> Self {
        Self {
            shape,
            size: 1.0,
            first: None,
        }
    }
}

/// The output, and the gradients of a weighted sum of it for the inputs that need a gradient.
fn run(
    attention: Attention,
    case: &Case,
    needs_grad: [bool; 4],
    device: &Device,
) -> [Option<Vec<f32>>; 5] {
    let device = device.clone().autodiff();
    let AttentionShape {
        batch,
        length,
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        ..
    } = case.shape;
    let rotary = (rotary_dim > 0).then(|| Rotary::new(0, length, rotary_dim, 1e4, &device));
    let ranges = case.first.as_ref();
    let ranges = ranges.map(|first| KeyRanges::new(first, length, &device));
    let tokens = batch * length;
    let inputs = [(heads, 0.1), (kv_heads, 0.5), (kv_heads, 0.9)];
    let [query, key, value] = [0, 1, 2].map(|input| {
        let (heads, phase) = inputs[input];
        let tensor = wave(tokens, heads * head_dim, phase, case.size, &device);
        tensor.set_require_grad(needs_grad[input])
    });
    let sinks = wave(1, heads, 0.2, 3.0, &device).squeeze_dim::<1>(0);
    let sinks = sinks.set_require_grad(needs_grad[3]);
    let output = attention(AttentionInput {
        precision: Precision::F32,
        query: query.clone(),
        key: key.clone(),
        value: value.clone(),
        batch,
        rotary: rotary.as_ref(),
        sinks: case.shape.sinks.then(|| sinks.clone()),
        ranges: ranges.as_ref(),
        spec: spec(case.shape),
    });
    let weights = wave(tokens, heads * head_dim, 1.3, 1.0, &device);
    let gradients = (output.clone() * weights).sum().backward();
    let gradient = |input: Tensor<2>| input.grad(&gradients).map(values);
    [
        Some(values(output)),
        gradient(query),
        gradient(key),
        gradient(value),
        sinks.grad(&gradients).map(values),
    ]
}

/// `‖a − b‖ ≤ 1e-5 ‖b‖ + 1e-6 size² √n`. Both add the same products in f32 in orders that differ, some hundred roundings
/// of 6e-8. Where a gradient is a difference of equal numbers (with one position, those of query and key are 0),
/// what remains of it is the rounding of products of a value and a key or query: the second term.
fn assert_same(case: impl Into<Case>, device: &Device) -> Result<(), TestCaseError> {
    let case = case.into();
    let fast = run(attention, &case, [true; 4], device);
    let slow = run(attention_reference, &case, [true; 4], device);
    for (name, (fast, slow)) in NAMES.iter().zip(fast.iter().zip(&slow)) {
        let (Some(fast), Some(slow)) = (fast, slow) else {
            assert!(fast.is_none() && slow.is_none() && !case.shape.sinks);
            continue;
        };
        let what = format!("{device:?}, {case:?}, {name}");
        assert_near(&what, fast, slow, case.size)?;
    }
    Ok(())
}

fn assert_near(
    what: &str,
    found: &[f32],
    expected: &[f32],
    size: f32,
) -> Result<(), TestCaseError> {
    let rounding = 1e-6 * f64::from(size).powi(2);
    prop_assert_eq!(found.len(), expected.len());
    let norm = |terms: &mut dyn Iterator<Item = f32>| {
        terms.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
    };
    let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let allowed =
        1e-5 * norm(&mut expected.iter().copied()) + rounding * (expected.len() as f64).sqrt();
    prop_assert!(
        error <= allowed,
        "{what}: off by {error:.1e}, allowed {allowed:.1e}"
    );
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
    let output = attention(AttentionInput {
        precision: Precision::F32,
        query,
        key,
        value,
        batch: 1,
        rotary: Some(&rotary),
        sinks: None,
        ranges: None,
        spec: AttentionSpec::new(1, 1, 2),
    });
    assert_close("output", &values(output), &[4.0, 0.0, 1.0, 6.0], 5e-7).unwrap();
}

// Equal scores, so each position has the mean of what it sees: itself, then itself, then both of its document.
fn three_positions_of_two_documents(device: Device) {
    let zeros = || Tensor::<2>::zeros([3, 2], &device);
    let value = Tensor::<2>::from_floats([[7.0, 7.0], [4.0, 0.0], [0.0, 8.0]], &device);
    let ranges = KeyRanges::new(&[0, 1, 1], 3, &device);
    let output = attention(AttentionInput {
        precision: Precision::F32,
        query: zeros(),
        key: zeros(),
        value,
        batch: 1,
        rotary: None,
        sinks: None,
        ranges: Some(&ranges),
        spec: AttentionSpec::new(1, 1, 2),
    });
    assert_close(
        "output",
        &values(output),
        &[7.0, 7.0, 4.0, 0.0, 2.0, 4.0],
        5e-7,
    )
    .unwrap();
}

fn in_bf16(input: AttentionInput<'_>) -> Tensor<2> {
    attention(AttentionInput {
        precision: Precision::Bf16,
        ..input
    })
}

/// In bf16: the reference of f32 is as near as one rounding by 2⁻⁸ of each of the factors makes it, of which the way to a
/// gradient has up to six; and what is not f32 shows.
fn in_bf16_the_reference_is_near(device: Device) {
    if !Precision::Bf16.runs_on(&device) {
        return;
    }
    for shape in [
        shape(2, 150, 2, 3, 12),
        shape(1, 260, 1, 8, 64),
        shape(3, 7, 1, 1, 6),
    ] {
        let first = Some(first_keys(shape, &[90, 8], usize::MAX));
        let documents = Case {
            first,
            ..shape.into()
        };
        for case in [shape.into(), documents] {
            let fast = run(in_bf16, &case, [true; 4], &device);
            let slow = run(attention_reference, &case, [true; 4], &device);
            for (name, (fast, slow)) in NAMES.iter().zip(fast.iter().zip(&slow)) {
                let (Some(fast), Some(slow)) = (fast, slow) else {
                    continue; // there are no sinks
                };
                assert_close(name, fast, slow, 6.0 / 256.0).unwrap();
                assert!(
                    assert_close(name, fast, slow, 1e-4).is_err(),
                    "{name} is not rounded"
                );
            }
        }
    }
}

fn equals_the_reference(device: Device) {
    proptest!(cases(&device), |(
        (batch, length) in (1usize..4, prop_oneof![1usize..20, 100usize..150]),
        (kv_heads, group) in (1usize..4, 1usize..5),
        half in 1usize..17,
        size in prop_oneof![Just(1.0f32), Just(4.0)],
    )| {
        let shape = shape(batch, length, kv_heads, group, 2 * half);
        assert_same(Case { size, ..shape.into() }, &device)?;
    });
}

fn documents_and_windows_equal_the_reference(device: Device) {
    proptest!(cases(&device), |(
        (batch, length) in (1usize..4, prop_oneof![1usize..20, 100usize..300]),
        (kv_heads, group) in (1usize..3, 1usize..5),
        half in 1usize..9,
        documents in prop::collection::vec(prop_oneof![1usize..5, 1usize..80, 100usize..300], 1..6),
        window in prop_oneof![Just(usize::MAX), 1usize..10, 1usize..200],
    )| {
        let shape = shape(batch, length, kv_heads, group, 2 * half);
        let first = Some(first_keys(shape, &documents, window));
        assert_same(Case { first, ..shape.into() }, &device)?;
    });
}

fn ranges_around_the_sizes_of_blocks(device: Device) {
    let shape = shape(1, 400, 1, 4, 8);
    for size in [63, 64, 65, 127, 128, 129, 255, 256] {
        for (documents, window) in [(&[size][..], usize::MAX), (&[], size), (&[290, 30], size)] {
            let first = Some(first_keys(shape, documents, window));
            let case = Case {
                first,
                ..shape.into()
            };
            assert_same(case, &device).unwrap();
        }
    }
}

// Whatever stands in front of it and behind it. The CPU kernels compute the same bits.
fn a_document_is_what_it_is_alone(device: Device) {
    let (before, length, behind) = (45, 150, 70);
    let whole = before + length + behind;
    let packed = shape(1, whole, 2, 3, 12);
    let tables = |rotary: Rotary| {
        let positions = (0..before).chain(0..length).chain(0..behind);
        let positions: Vec<i32> = positions.map(|position| position as i32).collect();
        rotary.at(&Tensor::from_data(
            TensorData::new(positions, [whole]),
            &device.clone().autodiff(),
        ))
    };
    let mut first = vec![0; before];
    first.extend(vec![before; length]);
    first.extend(vec![before + length; behind]);
    let autodiff = device.clone().autodiff();
    let ranges = KeyRanges::new(&first, whole, &autodiff);
    let positions = Rotary::new(0, whole, 12, 1e4, &autodiff);
    let inputs = [
        (packed.heads, 0.1),
        (packed.kv_heads, 0.5),
        (packed.kv_heads, 0.9),
    ];
    let inputs = inputs.map(|(heads, phase)| wave(whole, heads * 12, phase, 1.0, &autodiff));
    let weights = wave(whole, packed.width(), 1.3, 1.0, &autodiff);
    let run = |rows: std::ops::Range<usize>, rotary: Rotary, ranges: Option<&KeyRanges>| {
        let cut = |tensor: &Tensor<2>| tensor.clone().slice([rows.clone()]);
        let [query, key, value] = inputs.each_ref().map(|input| cut(input).require_grad());
        let output = attention(AttentionInput {
            precision: Precision::F32,
            query: query.clone(),
            key: key.clone(),
            value: value.clone(),
            batch: 1,
            rotary: Some(&rotary),
            sinks: None,
            ranges,
            spec: spec(packed),
        });
        let gradients = (output.clone() * cut(&weights)).sum().backward();
        let gradient = |input: Tensor<2>| input.grad(&gradients).expect("a gradient");
        [
            output.inner(),
            gradient(query),
            gradient(key),
            gradient(value),
        ]
    };
    let alone = run(before..before + length, positions.range(0, length), None);
    let among = run(0..whole, tables(positions.clone()), Some(&ranges));
    for ((name, alone), among) in NAMES.iter().zip(alone).zip(among) {
        let among = values(among.narrow(0, before, length));
        let alone = values(alone);
        match kernels(&device) {
            Kernels::Slices => assert_eq!(among, alone, "{name}"),
            _ => assert_near(name, &among, &alone, 1.0).unwrap(),
        }
    }
}

fn one_position_and_lengths_around_those_of_blocks(device: Device) {
    for length in [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257] {
        assert_same(shape(1, length, 1, 4, 24), &device).unwrap();
    }
    for (kv_heads, group, head_dim) in [(1, 1, 128), (2, 1, 64), (1, 5, 80), (3, 2, 24)] {
        assert_same(shape(2, 300, kv_heads, group, head_dim), &device).unwrap();
    }
    // More query heads than a block has rows.
    assert_same(shape(1, 5, 1, 150, 8), &device).unwrap();
}

fn heads_that_share_keys_in_parts(device: Device) {
    assert_same(shape(64, 65, 3, 4, 8), &device).unwrap();
}

fn wide_heads(device: Device) {
    let sizes: &[usize] = match kernels(&device) {
        Kernels::Cube => &[98, 256],
        _ => &[98, 128, 160, 256],
    };
    for &head_dim in sizes {
        assert_same(shape(1, 70, 1, 2, head_dim), &device).unwrap();
    }
}

fn nothing_gives_nothing(device: Device) {
    let rotary = Rotary::new(0, 3, 8, 1e4, &device);
    let empty = |heads: usize| wave(0, heads * 8, 0.0, 1.0, &device);
    let output = attention(AttentionInput {
        precision: Precision::F32,
        query: empty(2),
        key: empty(1),
        value: empty(1),
        batch: 0,
        rotary: Some(&rotary),
        sinks: None,
        ranges: None,
        spec: AttentionSpec::new(2, 1, 8),
    });
    assert_eq!(output.dims(), [0, 16]);
}

fn large_scores_do_not_overflow(device: Device) {
    // Scores of some thousands, whose exponentials are infinite by themselves. Which position wins is plain; the
    // gradients of a softmax that is all but certain are rounding, so the output alone is compared.
    let case = Case {
        size: 60.0,
        ..shape(1, 70, 1, 2, 16).into()
    };
    let none = [false, false, true, false];
    let fast = run(attention, &case, none, &device);
    let slow = run(attention_reference, &case, none, &device);
    let (fast, slow) = (fast[0].as_ref().unwrap(), slow[0].as_ref().unwrap());
    for (a, b) in fast.iter().zip(slow) {
        assert!((a - b).abs() < 60.0 * 1e-3, "{a} against {b}");
    }
}

fn each_gradient_by_itself_is_the_same_and_others_are_not_computed(device: Device) {
    let case = Case::from(AttentionShape {
        sinks: true,
        ..shape(2, 40, 2, 3, 10)
    });
    let all = run(attention, &case, [true; 4], &device);
    for input in 0..4 {
        let mut needs_grad = [false; 4];
        needs_grad[input] = true;
        let one = run(attention, &case, needs_grad, &device);
        for other in 0..4 {
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
    let shape = AttentionShape {
        sinks: true,
        ..shape(2, 150, 2, 3, 12)
    };
    let first = Some(first_keys(shape, &[40, 70], 50));
    let case = Case {
        first,
        ..shape.into()
    };
    let [first, second] = [(); 2].map(|()| run(attention, &case, [true; 4], &device));
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
        let ranges = KeyRanges::new(
            &[vec![0; 30], vec![30; 40]].concat().repeat(2),
            70,
            &autodiff,
        );
        let sinks = wave(1, 2, 0.2, 1.0, &autodiff).squeeze_dim::<1>(0);
        let sinks = sinks.require_grad();
        let pass = || {
            let output = attention(AttentionInput {
                precision: Precision::F32,
                query: query.clone(),
                key: key.clone(),
                value: value.clone(),
                batch: 2,
                rotary: Some(&rotary),
                sinks: Some(sinks.clone()),
                ranges: Some(&ranges),
                spec: AttentionSpec {
                    window: Some(20),
                    ..AttentionSpec::new(2, 1, 8)
                },
            });
            drop(output.sum().backward());
        };
        assert!(reads_nothing(&device, pass));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let device = devices().remove(0);
    for shape in [shape(3, 150, 2, 3, 12), shape(1, 260, 1, 8, 32)] {
        let shape = AttentionShape {
            sinks: true,
            ..shape
        };
        let first = Some(first_keys(shape, &[90, 8], usize::MAX));
        let case = Case {
            first,
            ..shape.into()
        };
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.expect("a pool");
            pool.install(|| {
                [attention as Attention, in_bf16]
                    .map(|attention| run(attention, &case, [true; 4], &device))
            })
        };
        let one = on(1);
        for threads in [2, 8] {
            assert_eq!(on(threads), one, "{threads} threads");
        }
    }
}

#[test]
#[should_panic(expected = "2 sequences in queries [5, 16], keys [5, 8] and values [5, 8]")]
fn shapes_that_do_not_fit_are_refused() {
    let device = devices().remove(0);
    let rotary = Rotary::new(0, 3, 8, 1e4, &device);
    let of = |rows: usize, heads: usize| wave(rows, heads * 8, 0.0, 1.0, &device);
    let _ = attention(AttentionInput {
        precision: Precision::F32,
        query: of(5, 2),
        key: of(5, 1),
        value: of(5, 1),
        batch: 2,
        rotary: Some(&rotary),
        sinks: None,
        ranges: None,
        spec: AttentionSpec::new(2, 1, 8),
    });
}

#[test]
fn ranges_begin_at_their_query_or_before_and_do_not_decrease() {
    let device = devices().remove(0);
    for first in [[0, 1, 2, 0, 0, 0], [0, 2, 2, 0, 0, 0], [0, 1, 0, 0, 0, 0]] {
        let made = std::panic::catch_unwind(|| KeyRanges::new(&first, 3, &device));
        assert_eq!(made.is_ok(), first == [0, 1, 2, 0, 0, 0], "{first:?}");
    }
}
