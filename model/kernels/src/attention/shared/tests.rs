//! Keys that serve as values, beside keys and values.

use burn::tensor::{Device, Tensor};

use super::*;
use crate::attention::{Segment, cached_attention};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, values, wave};

on_every_device!(a_second_position, equals_a_cache_of_both);

/// Of the keys (0, 0) and (ln 3, 0) and a query of (1, 0), the scores are 0 and ln 3 and the weights 1/4 and 3/4.
fn a_second_position(device: Device) {
    let row = |row: [f32; 2]| Tensor::<2>::from_floats([row], &device);
    let cache = [[[[0.0, 0.0], [9.0, 9.0]]]];
    let mut cache = Tensor::<4>::from_floats(cache, &device);
    let segments = [Segment {
        past: 1,
        new: 1,
        blocks: vec![0],
    }];
    let input = SharedInput {
        query: row([1.0, 0.0]),
        key: row([3f32.ln(), 0.0]),
        // Nothing turns at position 0, which the row is said to have.
        rotary: &Rotary::new(0, 1, 2, 1e4, &device),
        segments: &Segments::new(&segments, 2, &device),
        spec: AttentionSpec {
            scale: 1.0,
            ..AttentionSpec::new(1, 1, 2)
        },
    };
    let output = values(shared_attention(input, &mut cache));
    let expected = [0.75 * 3f32.ln(), 0.0];
    assert_close("output", &output, &expected, 1e-6).unwrap();
    assert_close("cache", &values(cache)[2..], &[3f32.ln(), 0.0], 1e-6).unwrap();
}

/// With heads as wide as latents, several segments in scattered blocks, single positions and long pieces.
fn equals_a_cache_of_both(device: Device) {
    for (heads, head_dim, rotary_dim, window) in
        [(4, 6, 2, None), (3, 72, 8, Some(5)), (16, 130, 64, None)]
    {
        let list = [
            (0, 9, vec![4, 1, 0]),
            (6, 1, vec![3, 2]),
            (3, 2, vec![5, 7]),
        ];
        let list = list.map(|(past, new, blocks)| Segment { past, new, blocks });
        let segments = Segments::new(&list, 4, &device);
        let positions = list.iter().flat_map(|segment| segment.past..segment.end());
        let positions: Vec<i32> = positions.map(|position| position as i32).collect();
        let rotary = Rotary::new(0, 9, rotary_dim, 1e4, &device);
        let rotary = rotary.at(&Tensor::from_ints(positions.as_slice(), &device));
        let spec = AttentionSpec {
            window,
            scale: 0.3,
            ..AttentionSpec::new(heads, 1, head_dim)
        };
        let input = SharedInput {
            query: wave([12, heads * head_dim], 0.1, &device),
            key: wave([12, head_dim], 0.4, &device),
            rotary: &rotary,
            segments: &segments,
            spec,
        };
        // Of the positions so far, keys and values are the same.
        let past = wave([32, head_dim], 0.2, &device).reshape([1, 8, 4, head_dim]);
        let (mut shared, mut keys, mut copy) = (past.clone(), past.clone(), past);
        let rotated_key = split_heads(input.key.clone(), 1, head_dim);
        let rotated_key = rotary.apply(rotated_key).swap_dims(1, 2);
        let both = CachedInput {
            query: input.query.clone(),
            key: input.key.clone(),
            value: rotated_key.reshape([12, head_dim]),
            rotary: Some(&rotary),
            sinks: None,
            segments: &segments,
            spec,
        };
        let expected = values(cached_attention(both, [&mut keys, &mut copy]));
        let mut of_reference = shared.clone();
        let reference = values(shared_attention_reference(input.clone(), &mut of_reference));
        let found = values(shared_attention(input, &mut shared));
        let what = format!("{heads} heads of {head_dim}");
        assert_close(&what, &found, &expected, 2e-6).unwrap();
        assert_close(&what, &reference, &expected, 2e-6).unwrap();
        let [shared, keys, of_reference] = [shared, keys, of_reference].map(values);
        assert_close(&what, &shared, &keys, 1e-6).unwrap();
        assert_close(&what, &of_reference, &keys, 1e-6).unwrap();
    }
}
