//! Windows, partial rotary positions, sinks and scales.

use super::*;

on_every_device!(
    every_specification_equals_the_reference,
    a_window_is_a_range,
    a_sink_takes_a_part_of_the_weight,
    sinks_around_the_sizes_of_blocks,
);

fn every_specification_equals_the_reference(device: Device) {
    proptest!(cases(&device), |(
        (batch, length) in (1usize..4, prop_oneof![1usize..20, 100usize..300]),
        (kv_heads, group) in (1usize..3, 1usize..5),
        half in 1usize..9,
        (rotated, sinks) in (0usize..9, any::<bool>()),
        scale in prop_oneof![Just(None), (0.1f32..1.5).prop_map(Some)],
        documents in prop_oneof![
            Just(Vec::new()),
            prop::collection::vec(prop_oneof![1usize..5, 1usize..80, 100usize..300], 1..6),
        ],
        window in prop_oneof![Just(None), (1usize..10).prop_map(Some), (1usize..200).prop_map(Some)],
    )| {
        let usual = shape(batch, length, kv_heads, group, 2 * half);
        let shape = AttentionShape {
            rotary_dim: 2 * rotated.min(half),
            scale: scale.unwrap_or(usual.scale),
            sinks,
            window,
            ..usual
        };
        let first = (!documents.is_empty()).then(|| first_keys(shape, &documents, usize::MAX));
        assert_same(Case { first, ..shape.into() }, &device)?;
    });
}

// A window is the same as a range for each query, of documents too.
fn a_window_is_a_range(device: Device) {
    let shape = shape(2, 150, 2, 3, 12);
    for (documents, window) in [(None, 1), (None, 70), (Some(&[90, 40][..]), 50)] {
        let of = |window| documents.map(|documents| first_keys(shape, documents, window));
        let windowed = Case {
            first: of(usize::MAX),
            ..AttentionShape {
                window: Some(window),
                ..shape
            }
            .into()
        };
        let ranges = Case {
            first: of(window).or_else(|| Some(first_keys(shape, &[], window))),
            ..shape.into()
        };
        let [windowed, ranges] =
            [windowed, ranges].map(|case| run(attention, &case, [true; 4], &device));
        assert_eq!(windowed, ranges);
    }
}

// Scores of 0 and ln 3 and a sink of ln 4: weights of 1/8 and 3/8, where the first position has 1/5.
fn a_sink_takes_a_part_of_the_weight(device: Device) {
    let matrix = |rows: [[f32; 2]; 2]| Tensor::<2>::from_floats(rows, &device);
    let output = attention(AttentionInput {
        precision: Precision::F32,
        query: matrix([[1.0, 0.0]; 2]),
        key: matrix([[0.0, 0.0], [3f32.ln(), 0.0]]),
        value: matrix([[4.0, 0.0], [0.0, 8.0]]),
        batch: 1,
        rotary: None,
        sinks: Some(Tensor::from_floats([4f32.ln()], &device)),
        ranges: None,
        spec: AttentionSpec {
            scale: 1.0,
            ..AttentionSpec::new(1, 1, 2)
        },
    });
    assert_close("output", &values(output), &[0.8, 0.0, 0.5, 3.0], 5e-7).unwrap();
}

fn sinks_around_the_sizes_of_blocks(device: Device) {
    for (length, kv_heads, group) in [(1, 1, 4), (64, 1, 4), (129, 2, 1), (300, 1, 3)] {
        let shape = AttentionShape {
            sinks: true,
            ..shape(2, length, kv_heads, group, 8)
        };
        assert_same(shape, &device).unwrap();
        // Much larger than all scores, or much smaller.
        let case = Case {
            size: 4.0,
            ..shape.into()
        };
        assert_same(case, &device).unwrap();
    }
}

#[test]
#[should_panic(expected = "sinks Some([3]) against 2 query heads")]
fn each_query_head_has_a_sink() {
    let device = devices().remove(0);
    let of = |heads: usize| wave(4, heads * 8, 0.0, 1.0, &device);
    let _ = attention(AttentionInput {
        precision: Precision::F32,
        query: of(2),
        key: of(1),
        value: of(1),
        batch: 1,
        rotary: None,
        sinks: Some(Tensor::zeros([3], &device)),
        ranges: None,
        spec: AttentionSpec::new(2, 1, 8),
    });
}

#[test]
#[should_panic(expected = "Some(3) rotary rows of 8 values against 1 sequences of 4 positions")]
fn positions_that_do_not_fit_are_refused() {
    let device = devices().remove(0);
    let of = |heads: usize| wave(4, heads * 8, 0.0, 1.0, &device);
    let _ = attention(AttentionInput {
        precision: Precision::F32,
        query: of(2),
        key: of(1),
        value: of(1),
        batch: 1,
        rotary: Some(&Rotary::new(0, 3, 8, 1e4, &device)),
        sinks: None,
        ranges: None,
        spec: AttentionSpec::new(2, 1, 8),
    });
}
