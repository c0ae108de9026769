//! Steps over a cache, beside the plain reference.

use burn::tensor::{Device, Tensor};
use proptest::prelude::*;

use super::*;
use crate::attention::Segment;
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, devices, on_threads, values, wave};

type Attention = fn(CachedInput<'_>, [&mut Tensor<4>; 2]) -> Tensor<2>;

/// What is computed, and where it lies.
#[derive(Debug, Clone)]
struct Case {
    spec: AttentionSpec,
    rotary_dim: usize,
    sinks: bool,
    block_positions: usize,
    /// Past and new positions of each segment.
    lengths: Vec<(usize, usize)>,
    /// Where a segment's first block lies, and how far it is from one block to the next.
    scatter: (usize, usize),
}

impl Case {
    /// Blocks as large as a sequence, so that it lies side by side.
    fn side_by_side(
        [heads, kv_heads, head_dim]: [usize; 3],
        lengths: impl IntoIterator<Item = (usize, usize)>,
    ) -> Self {
        let lengths: Vec<_> = lengths.into_iter().collect();
        let longest = lengths.iter().map(|(past, new)| past + new).max();
        Self {
            spec: AttentionSpec::new(heads, kv_heads, head_dim),
            rotary_dim: head_dim,
            sinks: false,
            block_positions: longest.unwrap() + 2,
            lengths,
            scatter: (1, 1),
        }
    }

    /// The segments, whose blocks are dealt out among each other, and the number of blocks.
    fn segments(&self) -> (Vec<Segment>, usize) {
        let of = |(past, new): (usize, usize)| (past + new).div_ceil(self.block_positions);
        let needed: usize = self.lengths.iter().map(|&lengths| of(lengths)).sum();
        // A number of blocks that the step has no factor in common with, so that all are met.
        let (first, step) = self.scatter;
        let blocks = (needed + 1..).find(|blocks| gcd(*blocks, step) == 1);
        let blocks = blocks.expect("such a number");
        let mut next = (0..blocks).map(|index| (first + index * step) % blocks);
        let segments = self.lengths.iter().map(|&(past, new)| Segment {
            past,
            new,
            blocks: next.by_ref().take(of((past, new))).collect(),
        });
        (segments.collect(), blocks)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

/// Outputs for new positions, and the keys and values of each segment after them. The inputs of a segment depend on its
/// lengths alone.
fn run(attention: Attention, case: &Case, device: &Device) -> [Vec<f32>; 3] {
    let AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        ..
    } = case.spec;
    let (list, blocks) = case.segments();
    let input = |width: usize, phase: f32| {
        let of =
            |segment: &Segment| wave([segment.new, width], phase + segment.past as f32, device);
        Tensor::cat(list.iter().map(of).collect(), 0)
    };
    let query = input(heads * head_dim, 0.1);
    let [key, value] = [0.4, 0.7].map(|phase| input(kv_heads * head_dim, phase));
    let positions = list.iter().flat_map(|segment| segment.past..segment.end());
    let positions: Vec<i32> = positions.map(|position| position as i32).collect();
    let longest = list.iter().map(Segment::end).max().unwrap();
    let rotary = (case.rotary_dim > 0).then(|| {
        Rotary::new(0, longest, case.rotary_dim, 1e4, device)
            .at(&Tensor::from_ints(positions.as_slice(), device))
    });
    let segments = Segments::new(&list, case.block_positions, device);
    let places = blocks * case.block_positions;
    let by_place = [kv_heads, places, head_dim];
    let cache = |phase: f32| {
        let mut cache = wave([kv_heads, places, head_dim], phase + 20.0, device);
        for segment in segments.list().iter() {
            let past = wave([kv_heads, segment.end(), head_dim], phase, device);
            let mut start = 0;
            for place in segment.places(0..segment.end()) {
                let part = past.clone().narrow(1, start, place.len());
                start += place.len();
                cache = cache.slice_assign([0..kv_heads, place, 0..head_dim], part);
            }
        }
        cache.reshape([kv_heads, blocks, case.block_positions, head_dim])
    };
    let mut cache = [cache(0.2), cache(0.9)];
    let input = CachedInput {
        query,
        key,
        value,
        rotary: rotary.as_ref(),
        sinks: case.sinks.then(|| wave([heads], 0.6, device) * 3.0),
        segments: &segments,
        spec: case.spec,
    };
    let output = attention(input, cache.each_mut());
    let [keys, values_] = cache.map(|cache| {
        let cache = cache.reshape(by_place);
        let of = |segment: &PlacedSegment| {
            let parts = segment.places(0..segment.end());
            let parts = parts.map(|place| cache.clone().slice([0..kv_heads, place]));
            values(Tensor::cat(parts.collect(), 1))
        };
        segments.list().iter().flat_map(of).collect()
    });
    [values(output), keys, values_]
}

on_every_device!(
    a_second_position,
    a_window_of_two,
    a_sink_takes_a_part_of_the_weight,
    equals_the_reference,
    long_pasts_wide_heads_and_long_pieces,
    nothing_in_front_of_a_window_is_read,
    a_segment_does_not_depend_on_the_others,
    the_place_of_blocks_changes_nothing,
    any_number_of_threads_gives_the_same_bits,
);

fn segment(past: usize, new: usize, blocks: &[usize]) -> Segment {
    Segment {
        past,
        new,
        blocks: blocks.to_vec(),
    }
}

// Its scores are 0 and ln 3, its weights 1/4 and 3/4.
fn a_second_position(device: Device) {
    let row = |row: [f32; 2]| Tensor::<2>::from_floats([row], &device);
    // Those of another sequence stand before.
    let cache = |rows: [[f32; 2]; 3]| Tensor::<4>::from_floats([[[[7.0; 2]; 3], rows]], &device);
    let mut keys = cache([[0.0, 0.0], [9.0, 9.0], [9.0, 9.0]]);
    let mut so_far = cache([[4.0, 0.0], [9.0, 9.0], [9.0, 9.0]]);
    let output = cached_attention(
        CachedInput {
            query: row([2f32.sqrt(), 0.0]),
            key: row([3f32.ln(), 0.0]),
            value: row([0.0, 8.0]),
            rotary: Some(&Rotary::new(1, 1, 2, 1e4, &device)),
            sinks: None,
            segments: &Segments::new(&[segment(1, 1, &[1])], 3, &device),
            spec: AttentionSpec::new(1, 1, 2),
        },
        [&mut keys, &mut so_far],
    );
    assert_close("output", &values(output), &[1.0, 6.0], 5e-7).unwrap();
    assert_eq!(values(so_far)[6..], [4.0, 0.0, 0.0, 8.0, 9.0, 9.0]);
    // ln 3 · (cos 1, sin 1)
    let expected = [0.0, 0.0, 0.593_582_8, 0.924_450_4, 9.0, 9.0];
    assert_close("keys", &values(keys)[6..], &expected, 3e-7).unwrap();
}

// Equal scores, so that each position has the mean of itself and the one before.
fn a_window_of_two(device: Device) {
    let rows = |rows: [[f32; 2]; 2]| Tensor::<2>::from_floats(rows, &device);
    let zeros = || rows([[0.0; 2]; 2]);
    let mut keys = Tensor::<4>::zeros([1, 3, 2, 2], &device);
    // The first two positions lie in the last block, the next two in the first.
    let places = [[[0.0; 2]; 2], [[7.0; 2]; 2], [[8.0, 8.0], [2.0, 4.0]]];
    let mut so_far = Tensor::<4>::from_floats([places], &device);
    let output = cached_attention(
        CachedInput {
            query: zeros(),
            key: zeros(),
            value: rows([[4.0, 0.0], [0.0, 8.0]]),
            rotary: None,
            sinks: None,
            segments: &Segments::new(&[segment(2, 2, &[2, 0])], 2, &device),
            spec: AttentionSpec {
                window: Some(2),
                ..AttentionSpec::new(1, 1, 2)
            },
        },
        [&mut keys, &mut so_far],
    );
    assert_close("output", &values(output), &[3.0, 2.0, 2.0, 4.0], 5e-7).unwrap();
}

fn check(case: &Case, device: &Device) -> Result<(), TestCaseError> {
    let (fast, slow) = (
        run(cached_attention, case, device),
        run(cached_attention_reference, case, device),
    );
    for (name, (fast, slow)) in ["output", "keys", "values"]
        .iter()
        .zip(fast.iter().zip(&slow))
    {
        assert_close(&format!("{name} of {case:?}"), fast, slow, 5e-6)?;
    }
    Ok(())
}

fn equals_the_reference(device: Device) {
    proptest!(ProptestConfig::with_cases(32), |(
        lengths in prop::collection::vec((0usize..40, 1usize..24), 1..5),
        scatter in (0usize..7, 1usize..7),
        block_positions in prop_oneof![1usize..5, 5usize..70],
        (kv_heads, group, half) in (1usize..3, 1usize..4, 1usize..9),
        (rotated, sinks) in (0usize..10, any::<bool>()),
        window in prop_oneof![Just(None), (1usize..50).prop_map(Some)],
        scale in prop_oneof![Just(None), (0.1f32..1.5).prop_map(Some)],
    )| {
        let usual = AttentionSpec::new(kv_heads * group, kv_heads, 2 * half);
        let scale = scale.unwrap_or(usual.scale);
        let case = Case {
            spec: AttentionSpec { window, scale, ..usual },
            rotary_dim: 2 * rotated.min(half),
            sinks,
            block_positions,
            lengths,
            scatter,
        };
        check(&case, &device)?;
    });
}

fn long_pasts_wide_heads_and_long_pieces(device: Device) {
    for (past, new, head_dim, window) in [
        (700, 5, 80, None),
        (127, 2, 256, None),
        (4500, 1, 8, None),
        (4500, 3, 8, Some(1000)),
        (0, 300, 16, None),
        (0, 300, 16, Some(90)),
        (90, 150, 10, None),
        (600, 150, 10, Some(300)),
    ] {
        let mut case = Case::side_by_side([6, 2, head_dim], [(past, new), (past / 3, 1)]);
        case.spec.window = window;
        check(&case, &device).unwrap();
        (case.block_positions, case.scatter) = (16, (5, 7));
        case.sinks = true;
        check(&case, &device).unwrap();
    }
    // Prompts of one length.
    for window in [None, Some(20)] {
        let mut case = Case::side_by_side([6, 2, 16], [(0, 70); 3]);
        case.spec.window = window;
        check(&case, &device).unwrap();
        case.sinks = true;
        check(&case, &device).unwrap();
    }
}

// Its scores are 0 and ln 3, that of the sink is ln 4: the weights are 1/8 and 3/8.
fn a_sink_takes_a_part_of_the_weight(device: Device) {
    let rows = |rows: [f32; 2]| Tensor::<2>::from_floats([rows], &device);
    let mut keys = Tensor::<4>::zeros([1, 1, 2, 2], &device);
    let mut so_far = Tensor::<4>::from_floats([[[[4.0, 0.0], [9.0, 9.0]]]], &device);
    let output = cached_attention(
        CachedInput {
            query: rows([1.0, 0.0]),
            key: rows([3f32.ln(), 0.0]),
            value: rows([0.0, 8.0]),
            rotary: None,
            sinks: Some(Tensor::from_floats([4f32.ln()], &device)),
            segments: &Segments::new(&[segment(1, 1, &[0])], 2, &device),
            spec: AttentionSpec {
                scale: 1.0,
                ..AttentionSpec::new(1, 1, 2)
            },
        },
        [&mut keys, &mut so_far],
    );
    assert_close("output", &values(output), &[0.5, 3.0], 5e-7).unwrap();
}

// What is there is not a number.
fn nothing_in_front_of_a_window_is_read(device: Device) {
    let nothing = || Tensor::<4>::full([1, 40, 16, 4], f32::NAN, &device);
    let zeros = || Tensor::<4>::zeros([1, 40, 16, 4], &device);
    let place = [0..1, 24..40, 0..16, 0..4];
    let cache = || nothing().slice_assign(place.clone(), zeros().slice(place.clone()));
    let (mut keys, mut so_far) = (cache(), cache());
    let row = || Tensor::<2>::ones([1, 4], &device);
    let output = cached_attention(
        CachedInput {
            query: row(),
            key: row() * 0.0,
            value: row(),
            rotary: None,
            sinks: None,
            // The first key that is seen is at position 384, where a block of keys begins.
            segments: &Segments::new(
                &[segment(603, 1, &(0..40).collect::<Vec<_>>())],
                16,
                &device,
            ),
            spec: AttentionSpec {
                window: Some(220),
                ..AttentionSpec::new(1, 1, 4)
            },
        },
        [&mut keys, &mut so_far],
    );
    assert_close("output", &values(output), &[1.0 / 220.0; 4], 1e-6).unwrap();
}

fn a_segment_does_not_depend_on_the_others(device: Device) {
    let all = [(40, 3), (0, 70), (90, 1)];
    let rows = |lengths: &[(usize, usize)]| {
        let mut case = Case::side_by_side([6, 2, 24], lengths.iter().copied());
        (case.block_positions, case.scatter) = (16, (3, 5));
        run(cached_attention, &case, &device)[0].clone()
    };
    let together = rows(&all);
    let mut start = 0;
    for lengths in all {
        let end = start + lengths.1 * 6 * 24;
        assert_close(
            "alone",
            &together[start..end],
            &rows(&[lengths]),
            tolerance(&device),
        )
        .unwrap();
        start = end;
    }
}

/// How many spans the positions are cut into on a GPU depends on the longest sequence.
fn tolerance(device: &Device) -> f64 {
    match kernels(device) {
        Kernels::Cube => 2e-6,
        Kernels::Slices | Kernels::None => 0.0,
    }
}

fn the_place_of_blocks_changes_nothing(device: Device) {
    for window in [None, Some(300)] {
        let mut case = Case::side_by_side([4, 2, 32], [(700, 2), (3, 200)]);
        case.spec.window = window;
        let expected = run(cached_attention, &case, &device).concat();
        for (block_positions, scatter) in [(16, (3, 5)), (16, (0, 1)), (100, (2, 3)), (1, (9, 2))] {
            (case.block_positions, case.scatter) = (block_positions, scatter);
            let found = run(cached_attention, &case, &device).concat();
            assert_close("blocks", &found, &expected, tolerance(&device)).unwrap();
        }
    }
}

fn any_number_of_threads_gives_the_same_bits(device: Device) {
    let mut case = Case::side_by_side([4, 2, 32], [(700, 2), (3, 200)]);
    on_threads(|| run(cached_attention, &case, &device).concat());
    (case.block_positions, case.scatter) = (16, (3, 5));
    on_threads(|| run(cached_attention, &case, &device).concat());
}

#[test]
#[should_panic(expected = "a cache [1, 1, 5, 4] and segments")]
fn a_cache_has_the_blocks_of_a_segment() {
    let device = devices().remove(0);
    let x = || wave([1, 4], 0.0, &device);
    let mut cache = [(); 2].map(|()| wave([1, 1, 5, 4], 0.0, &device));
    let _ = cached_attention(
        CachedInput {
            query: x(),
            key: x(),
            value: x(),
            rotary: None,
            sinks: None,
            segments: &Segments::new(&[segment(5, 1, &[0, 1])], 5, &device),
            spec: AttentionSpec::new(1, 1, 4),
        },
        cache.each_mut(),
    );
}
