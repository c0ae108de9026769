use burn::tensor::{Device, Tensor, TensorData};
use firebox_kernels::{AttentionInput, Precision, attention_reference};
use firebox_runtime::device::{default_name, select};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, values};
use proptest::prelude::*;

use super::*;
use crate::testing::smallest;

on_every_device!(
    what_is_cached_stays_as_the_cache_grows,
    a_truncated_sequence_is_written_anew,
    sequences_that_begin_alike_share_blocks,
    any_history_equals_sequences_by_themselves,
);

const SPEC: AttentionSpec = AttentionSpec {
    heads: 1,
    kv_heads: 1,
    head_dim: 2,
    window: None,
    scale: 1.0,
};

/// Queries, keys and values of some tokens, which differ from token to token.
fn inputs(tokens: &[u32], device: &Device) -> [Tensor<2>; 3] {
    [0.0, 0.3, 0.6].map(|phase: f32| {
        let values = tokens
            .iter()
            .flat_map(|&token| [0, 1].map(|i| (token as f32 * 1.7 + i as f32 + phase).sin()));
        let data = TensorData::new(values.collect::<Vec<f32>>(), [tokens.len(), 2]);
        Tensor::from_data(data, device)
    })
}

/// The outputs for new tokens of some sequences.
fn attend(cache: &mut KeyValueCache, new: &[(usize, &[u32])]) -> Vec<f32> {
    let device = cache.device.clone();
    let lengths: Vec<(usize, usize)> = new
        .iter()
        .map(|(sequence, tokens)| (*sequence, tokens.len()))
        .collect();
    let mut step = cache.begin(&lengths);
    let rotary = step.rotary(|positions| Rotary::new(0, positions, 2, 1e4, &device));
    let tokens: Vec<u32> = new
        .iter()
        .flat_map(|(_, tokens)| *tokens)
        .copied()
        .collect();
    let inputs = inputs(&tokens, &device);
    let layer = step.layer(0);
    values(layer.attend(inputs, Some(&rotary), None, SPEC))
}

/// The outputs for the last `new` tokens of a sequence, without a cache.
fn alone(tokens: &[u32], new: usize, device: &Device) -> Vec<f32> {
    let [query, key, value] = inputs(tokens, device);
    let output = attention_reference(AttentionInput {
        precision: Precision::F32,
        query,
        key,
        value,
        batch: 1,
        rotary: Some(&Rotary::new(0, tokens.len(), 2, 1e4, device)),
        sinks: None,
        ranges: None,
        spec: SPEC,
    });
    values(output.narrow(0, tokens.len() - new, new))
}

fn text(length: u32) -> Vec<u32> {
    (0..length).collect()
}

fn what_is_cached_stays_as_the_cache_grows(device: Device) {
    let steps: [&[(usize, u32)]; 4] =
        [&[(1, 3)], &[(0, 20), (1, 1)], &[(2, 9), (1, 1)], &[(1, 50)]];
    let run = |tokens: usize| {
        let mut cache = KeyValueCache::new(&smallest(), 3, tokens, &device);
        let found = steps.map(|step| {
            let texts: Vec<(usize, Vec<u32>)> = step
                .iter()
                .map(|&(sequence, new)| (sequence, text(new)))
                .collect();
            let new: Vec<(usize, &[u32])> = texts
                .iter()
                .map(|(sequence, text)| (*sequence, &text[..]))
                .collect();
            attend(&mut cache, &new)
        });
        (found.concat(), cache)
    };
    let (grown, cache) = run(0);
    assert_eq!(cache.lengths(), [20, 55, 9]);
    // Of 16 tokens: 2, 4 and 1.
    assert_eq!((cache.held_blocks(), cache.blocks()), (7, 12));
    let (whole, cache) = run(100);
    assert_eq!((cache.held_blocks(), cache.blocks()), (7, 21));
    // Keys and values of 16 tokens, two f32 each.
    assert_eq!(cache.block_bytes(), 2 * 16 * 2 * 4);
    assert_close("outputs", &grown, &whole, 2e-6).unwrap();
}

fn a_truncated_sequence_is_written_anew(device: Device) {
    let mut cache = KeyValueCache::new(&smallest(), 2, 4, &device);
    attend(&mut cache, &[(0, &text(3)), (1, &text(2))]);
    attend(&mut cache, &[(0, &text(40)), (1, &[9])]);
    cache.truncate(0, 3);
    assert_eq!(cache.lengths(), [3, 3]);
    assert_eq!(cache.held_blocks(), 2);
    let found = attend(&mut cache, &[(0, &[7, 8])]);
    let expected = alone(&[0, 1, 2, 7, 8], 2, &device);
    assert_close("outputs", &found, &expected, 2e-6).unwrap();
}

fn sequences_that_begin_alike_share_blocks(device: Device) {
    let mut cache = KeyValueCache::new(&smallest(), 3, 64, &device);
    attend(&mut cache, &[(0, &text(40))]);
    cache.fork(0, 40, 1);
    cache.fork(1, 32, 2);
    assert_eq!(
        (cache.lengths(), cache.held_blocks()),
        (&[40, 40, 32][..], 3)
    );
    // All of them append: the third block is copied for one of its two holders.
    let found = attend(&mut cache, &[(0, &[50]), (1, &[60]), (2, &[70])]);
    assert_eq!(cache.held_blocks(), 2 + 3);
    assert_eq!(cache.held_blocks_of([1, 2].into_iter()), 2 + 2);
    let expected = [(40, 50), (40, 60), (32, 70)].map(|(shared, next)| {
        let tokens = [text(shared), vec![next]].concat();
        alone(&tokens, 1, &device)
    });
    assert_close("outputs", &found, &expected.concat(), 2e-6).unwrap();
    for sequence in 0..3 {
        cache.truncate(sequence, 0);
    }
    assert_eq!(cache.held_blocks(), 0);
}

/// What can happen to the sequences of a cache.
#[derive(Debug, Clone)]
enum Event {
    /// So many tokens to each of these sequences.
    Append(Vec<(usize, usize)>),
    /// So large a part of a sequence stays.
    Truncate(usize, f64),
    /// So large a part of a sequence is what another one begins with.
    Fork(usize, f64, usize),
}

const SEQUENCES: usize = 4;

fn event() -> impl Strategy<Value = Event> {
    let sequence = 0..SEQUENCES;
    let part = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    let append = prop::collection::btree_map(sequence.clone(), 1usize..12, 1..SEQUENCES);
    prop_oneof![
        4 => append.prop_map(|new| Event::Append(new.into_iter().collect())),
        1 => (sequence.clone(), part.clone()).prop_map(|(of, part)| Event::Truncate(of, part)),
        2 => (sequence.clone(), part, sequence).prop_map(|(of, part, to)| Event::Fork(of, part, to)),
    ]
}

fn any_history_equals_sequences_by_themselves(device: Device) {
    proptest!(ProptestConfig::with_cases(24), |(
        events in prop::collection::vec(event(), 1..24),
        block_tokens in prop_oneof![Just(1), 2usize..6, Just(16)],
        bound in prop_oneof![Just(None), (1usize..30).prop_map(Some)],
    )| {
        let config = smallest();
        let room = bound.map_or(Room::Growing(1), Room::Bounded);
        let mut cache = KeyValueCache::in_blocks(&config, SEQUENCES, room, block_tokens, &device);
        let mut texts = vec![Vec::new(); SEQUENCES];
        let mut next = 0;
        for event in events {
            match event {
                Event::Append(new) => {
                    let before = (cache.lengths().to_vec(), cache.held_blocks());
                    if let Err(full) = cache.reserve(&new) {
                        prop_assert!(bound == Some(full.blocks) && full.needed > full.free);
                        prop_assert_eq!(full.free, cache.blocks() - cache.held_blocks());
                        prop_assert_eq!((cache.lengths().to_vec(), cache.held_blocks()), before);
                        continue;
                    }
                    let reserved = cache.held_blocks();
                    for &(sequence, count) in &new {
                        texts[sequence].extend(next..next + count as u32);
                        next += count as u32;
                    }
                    let tokens: Vec<(usize, &[u32])> = new.iter().map(|&(sequence, count)| {
                        let text: &Vec<u32> = &texts[sequence];
                        (sequence, &text[text.len() - count..])
                    }).collect();
                    let found = attend(&mut cache, &tokens);
                    prop_assert_eq!(cache.held_blocks(), reserved);
                    let expected = new.iter().flat_map(|&(sequence, count)| {
                        alone(&texts[sequence], count, &device)
                    });
                    assert_close("outputs", &found, &expected.collect::<Vec<f32>>(), 5e-6)?;
                }
                Event::Truncate(sequence, part) => {
                    let length = (texts[sequence].len() as f64 * part) as usize;
                    texts[sequence].truncate(length);
                    cache.truncate(sequence, length);
                }
                Event::Fork(from, part, to) if from != to => {
                    let length = (texts[from].len() as f64 * part) as usize;
                    texts[to] = texts[from][..length].to_vec();
                    cache.truncate(to, 0);
                    cache.fork(from, length, to);
                }
                Event::Fork(..) => {}
            }
            let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
            prop_assert_eq!(cache.lengths(), &lengths);
            // No more blocks than sequences would hold that share nothing.
            let most: usize = lengths.iter().map(|length| length.div_ceil(block_tokens)).sum();
            prop_assert!(cache.held_blocks() <= most);
        }
        for sequence in 0..SEQUENCES {
            cache.truncate(sequence, 0);
        }
        prop_assert_eq!(cache.held_blocks(), 0);
    });
}

fn bounded(blocks: usize) -> KeyValueCache {
    let device = select(default_name()).unwrap();
    KeyValueCache::in_blocks(&smallest(), 2, Room::Bounded(blocks), 4, &device)
}

#[test]
fn a_bounded_cache_says_that_it_is_full() {
    let mut cache = bounded(3);
    attend(&mut cache, &[(0, &text(6))]);
    let full = cache.reserve(&[(0, 2), (1, 5)]).unwrap_err();
    assert_eq!(
        full.to_string(),
        "the cache needs 2 more blocks, but 1 of 3 are free"
    );
    // A copy needs a block too.
    cache.fork(0, 6, 1);
    assert_eq!(cache.reserve(&[(0, 2), (1, 2)]), Ok(()));
    assert_eq!(cache.held_blocks(), 3);
    // Blocks that were reserved and not used are given back.
    cache.truncate(0, 0);
    cache.reserve(&[(1, 6)]).unwrap();
    cache.truncate(1, 6);
    assert_eq!(cache.held_blocks(), 2);
}

#[test]
#[should_panic(expected = "the cache needs 2 more blocks, but 1 of 1 are free")]
fn a_step_does_not_fit_into_a_full_cache() {
    attend(&mut bounded(1), &[(0, &text(5))]);
}

#[test]
#[should_panic(expected = "4 of 3 cached tokens")]
fn a_sequence_is_not_truncated_to_more_than_it_has() {
    let mut cache = bounded(2);
    attend(&mut cache, &[(0, &text(3))]);
    cache.truncate(0, 4);
}

#[test]
#[should_panic(expected = "a sequence of 1 cached tokens is to begin with others")]
fn a_sequence_that_has_begun_is_no_fork() {
    let mut cache = bounded(2);
    attend(&mut cache, &[(0, &text(3)), (1, &text(1))]);
    cache.fork(0, 3, 1);
}
