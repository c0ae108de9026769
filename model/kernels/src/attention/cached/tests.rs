//! Steps over a cache, beside the plain reference.

use burn::tensor::{Device, Tensor};
use proptest::prelude::*;

use super::*;
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, on_threads, values, wave};

type Attention =
    fn(Tensor<2>, Tensor<2>, Tensor<2>, &Rotary, [&mut Tensor<4>; 2], &Segments) -> Tensor<2>;

/// Sequences of a cache, heads, key/value heads, values of a head.
type Sizes = [usize; 4];

fn segment((sequence, past, new): (usize, usize, usize)) -> Segment {
    Segment {
        sequence,
        past,
        new,
    }
}

/// Outputs for new positions, and the cache after them. The inputs of a segment depend on its sequence alone.
fn run(
    attention: Attention,
    [sequences, heads, kv_heads, head_dim]: Sizes,
    list: &[Segment],
    device: &Device,
) -> [Vec<f32>; 3] {
    let longest = list.iter().map(Segment::end).max().unwrap();
    let table = Rotary::new(0, longest, head_dim, 1e4, device);
    let input = |width: usize, phase: f32| {
        let of = |segment: &Segment| {
            wave(
                [segment.new, width],
                phase + segment.sequence as f32,
                device,
            )
        };
        Tensor::cat(list.iter().map(of).collect(), 0)
    };
    let query = input(heads * head_dim, 0.1);
    let [key, value] = [0.4, 0.7].map(|phase| input(kv_heads * head_dim, phase));
    let positions = list.iter().flat_map(|segment| segment.past..segment.end());
    let positions: Vec<i32> = positions.map(|position| position as i32).collect();
    let rotary = table.at(&Tensor::from_ints(positions.as_slice(), device));
    // What is in it depends on its size.
    let capacity = (longest + 2).next_multiple_of(128);
    let cache = [sequences, kv_heads, capacity, head_dim];
    let (mut keys, mut values_) = (wave(cache, 0.2, device), wave(cache, 0.9, device));
    let cache = [&mut keys, &mut values_];
    let segments = Segments::new(list.to_vec(), device);
    let output = attention(query, key, value, &rotary, cache, &segments);
    [values(output), values(keys), values(values_)]
}

on_every_device!(
    a_second_position,
    equals_the_reference,
    long_pasts_wide_heads_and_long_pieces,
    a_segment_does_not_depend_on_the_others,
    any_number_of_threads_gives_the_same_bits,
);

// Its scores are 0 and ln 3, its weights 1/4 and 3/4.
fn a_second_position(device: Device) {
    let row = |row: [f32; 2]| Tensor::<2>::from_floats([row], &device);
    // Those of another sequence stand before.
    let cache = |rows: [[f32; 2]; 3]| Tensor::<4>::from_floats([[[[7.0; 2]; 3]], [rows]], &device);
    let mut keys = cache([[0.0, 0.0], [9.0, 9.0], [9.0, 9.0]]);
    let mut so_far = cache([[4.0, 0.0], [9.0, 9.0], [9.0, 9.0]]);
    let output = cached_attention(
        row([2f32.sqrt(), 0.0]),
        row([3f32.ln(), 0.0]),
        row([0.0, 8.0]),
        &Rotary::new(1, 1, 2, 1e4, &device),
        [&mut keys, &mut so_far],
        &Segments::new(vec![segment((1, 1, 1))], &device),
    );
    assert_close("output", &values(output), &[1.0, 6.0], 5e-7).unwrap();
    assert_eq!(values(so_far)[6..], [4.0, 0.0, 0.0, 8.0, 9.0, 9.0]);
    // ln 3 · (cos 1, sin 1)
    let expected = [0.0, 0.0, 0.593_582_8, 0.924_450_4, 9.0, 9.0];
    assert_close("keys", &values(keys)[6..], &expected, 3e-7).unwrap();
}

fn check(sizes: Sizes, list: &[Segment], device: &Device) -> Result<(), TestCaseError> {
    let (fast, slow) = (
        run(cached_attention, sizes, list, device),
        run(cached_attention_reference, sizes, list, device),
    );
    for (name, (fast, slow)) in ["output", "keys", "values"]
        .iter()
        .zip(fast.iter().zip(&slow))
    {
        assert_close(name, fast, slow, 5e-6)?;
    }
    Ok(())
}

fn equals_the_reference(device: Device) {
    proptest!(ProptestConfig::with_cases(24), |(
        lengths in prop::collection::vec((0usize..40, 1usize..24), 1..5),
        first in 0usize..5,
        (kv_heads, group, half) in (1usize..3, 1usize..4, 1usize..9),
    )| {
        // In another order than in the cache, which has one more.
        let sequences = lengths.len() + 1;
        let list = lengths.iter().enumerate().map(|(number, &(past, new))| {
            segment(((first + 2 * number) % sequences, past, new))
        });
        let mut list: Vec<Segment> = list.collect();
        let mut seen = Vec::new();
        list.retain(|segment| {
            let fresh = !seen.contains(&segment.sequence);
            seen.push(segment.sequence);
            fresh
        });
        check([sequences, kv_heads * group, kv_heads, 2 * half], &list, &device)?;
    });
}

fn long_pasts_wide_heads_and_long_pieces(device: Device) {
    for (past, new, head_dim) in [
        (700, 5, 80),
        (127, 2, 256),
        (4500, 1, 8),
        (0, 300, 16),
        (90, 150, 10),
    ] {
        let list = [segment((1, past, new)), segment((0, past / 3, 1))];
        check([2, 6, 2, head_dim], &list, &device).unwrap();
    }
    // Prompts of one length.
    let list = [2, 0, 1].map(|sequence| segment((sequence, 0, 70)));
    check([3, 6, 2, 16], &list, &device).unwrap();
}

fn a_segment_does_not_depend_on_the_others(device: Device) {
    let sizes = [3, 6, 2, 24];
    let all = [
        segment((2, 40, 3)),
        segment((0, 0, 70)),
        segment((1, 90, 1)),
    ];
    let rows = |attention, list: &[Segment]| run(attention, sizes, list, &device)[0].clone();
    let together = rows(cached_attention, &all);
    // How many spans the positions are cut into on a GPU depends on the longest sequence.
    let tolerance = match kernels(&device) {
        Kernels::Cube => 2e-6,
        Kernels::Slices | Kernels::None => 0.0,
    };
    let mut start = 0;
    for segment in all {
        let end = start + segment.new * 6 * 24;
        let alone = rows(cached_attention, &[segment]);
        assert_close("alone", &together[start..end], &alone, tolerance).unwrap();
        start = end;
    }
}

fn any_number_of_threads_gives_the_same_bits(device: Device) {
    let list = [segment((2, 700, 2)), segment((0, 3, 200))];
    on_threads(|| run(cached_attention, [3, 4, 2, 32], &list, &device).concat());
}

#[test]
#[should_panic(expected = "a step has new positions")]
fn a_segment_is_not_empty() {
    let device = firebox_runtime::testing::devices().remove(0);
    let _ = Segments::new(vec![segment((0, 3, 0))], &device);
}

#[test]
#[should_panic(expected = "a cache [1, 1, 5, 4] and segments")]
fn a_sequence_has_one_segment() {
    let device = firebox_runtime::testing::devices().remove(0);
    let twice = vec![segment((0, 0, 1)), segment((0, 1, 1))];
    let x = || wave([2, 4], 0.0, &device);
    let mut cache = [(); 2].map(|()| wave([1, 1, 5, 4], 0.0, &device));
    let _ = cached_attention(
        x(),
        x(),
        x(),
        &Rotary::new(0, 2, 4, 1e4, &device),
        cache.each_mut(),
        &Segments::new(twice, &device),
    );
}
