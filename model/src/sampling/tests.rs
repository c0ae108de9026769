use super::testing::{deviate, processed};
use super::*;

const DRAWS: u64 = 50_000;

/// Of both signs; two are equal.
const LOGITS: [f32; 12] = [
    1.2, -0.3, 0.4, 2.1, -1.7, 0.4, 1.9, -2.5, 0.0, 0.9, -0.6, 1.4,
];
const PROMPT: [u32; 4] = [3, 3, 7, 0];
const GENERATED: [u32; 5] = [6, 1, 6, 6, 0];

fn plain() -> Sampling {
    Sampling {
        temperature: 1.0,
        ..Sampling::default()
    }
}

/// Each option by itself, and all of them.
fn options() -> Vec<(&'static str, Sampling)> {
    let all = Sampling {
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        temperature: 1.5,
        top_k: 9,
        top_p: 0.9,
        min_p: 0.12,
        ..Sampling::default()
    };
    let of = |change: fn(&mut Sampling, Sampling)| {
        let mut sampling = plain();
        change(&mut sampling, all);
        sampling
    };
    vec![
        ("cold", of(|s, _| s.temperature = 0.7)),
        ("hot", of(|s, all| s.temperature = all.temperature)),
        ("top_k", of(|s, _| s.top_k = 4)),
        ("top_p", of(|s, _| s.top_p = 0.7)),
        ("min_p", of(|s, _| s.min_p = 0.2)),
        ("repetition", of(|s, _| s.repetition_penalty = 1.4)),
        ("presence", of(|s, _| s.presence_penalty = 0.8)),
        ("frequency", of(|s, _| s.frequency_penalty = -0.4)),
        ("all", all),
    ]
}

/// How far draws with as many seeds are from these probabilities.
fn distance(sampling: Sampling, probabilities: &[f64]) -> f64 {
    let mut counts = vec![0; LOGITS.len()];
    for seed in 0..DRAWS {
        let mut sampler = Sampler::new(Sampling { seed, ..sampling });
        counts[sampler.sample(&LOGITS, &PROMPT, &GENERATED) as usize] += 1;
    }
    deviate(&counts, probabilities)
}

#[test]
fn draws_have_the_probabilities_of_every_option() {
    let plain_probabilities = processed(&LOGITS, &plain(), &PROMPT, &GENERATED);
    assert!(distance(plain(), &plain_probabilities) < 4.0);
    for (name, sampling) in options() {
        let found = distance(
            sampling,
            &processed(&LOGITS, &sampling, &PROMPT, &GENERATED),
        );
        assert!(found < 4.0, "{name}: {found}");
        // The same test finds an option that is ignored.
        let ignored = distance(sampling, &plain_probabilities);
        assert!(ignored > 4.0, "{name}, ignored: {ignored}");
    }
}

#[test]
fn draws_at_one_position_after_the_other_are_independent() {
    let sampling = plain();
    let mut sampler = Sampler::new(sampling);
    let generated = vec![0; DRAWS as usize];
    let logits = &LOGITS[..4];
    let drawn: Vec<usize> = (0..generated.len())
        .map(|position| sampler.sample(logits, &[], &generated[..position]) as usize)
        .collect();
    let probabilities = processed(logits, &sampling, &[], &[]);
    let mut counts = vec![0; 16];
    for pair in drawn.chunks_exact(2) {
        counts[4 * pair[0] + pair[1]] += 1;
    }
    let of_pairs = probabilities.iter();
    let of_pairs: Vec<f64> = of_pairs
        .flat_map(|first| probabilities.iter().map(move |second| first * second))
        .collect();
    let found = deviate(&counts, &of_pairs);
    assert!(found < 4.0, "{found}");
}

#[test]
fn a_draw_depends_on_its_place_alone() {
    let sampling = plain();
    let mut used = Sampler::new(sampling);
    for position in [7, 0, 3, 3, 12] {
        let generated = vec![1; position];
        let fresh = Sampler::new(sampling).sample(&LOGITS, &[2], &generated);
        assert_eq!(used.sample(&LOGITS, &[2, 5], &generated), fresh);
    }
    let text = |sampling: Sampling| -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        let generated = [0; 40];
        (0..40)
            .map(|position| sampler.sample(&LOGITS, &[], &generated[..position]))
            .collect()
    };
    assert_eq!(text(sampling), text(sampling));
    assert_ne!(
        text(sampling),
        text(Sampling {
            seed: 1,
            ..sampling
        })
    );
}

#[test]
fn alike_probabilities_mostly_give_the_same_token() {
    let near: Vec<f32> = (LOGITS.iter().enumerate())
        .map(|(id, logit)| logit + 0.1 * (id as f32).sin())
        .collect();
    let (p, q) = (
        processed(&LOGITS, &plain(), &[], &[]),
        processed(&near, &plain(), &[], &[]),
    );
    let variation: f64 = p.iter().zip(&q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
    let agree = (0..20_000).filter(|&seed| {
        let mut sampler = Sampler::new(Sampling { seed, ..plain() });
        sampler.sample(&LOGITS, &[], &[]) == sampler.sample(&near, &[], &[])
    });
    let agree = agree.count() as f64 / 20_000.0;
    assert!(
        agree > (1.0 - variation) / (1.0 + variation) - 0.01,
        "{agree}, {variation}"
    );
}

#[test]
fn temperature_zero_is_greedy_and_ties_go_to_the_first() {
    let mut greedy = Sampler::new(Sampling::greedy());
    assert_eq!(greedy.sample(&[0.0, 3.0, -1.0, 3.0], &[], &[]), 1);
    assert_eq!(
        greedy.sample(&[f32::NAN, -5.0, f32::NEG_INFINITY], &[], &[]),
        1
    );
    let mut penalized = Sampler::new(Sampling {
        presence_penalty: 1.0,
        ..Sampling::greedy()
    });
    assert_eq!(penalized.sample(&[0.0, 3.0, -1.0, 3.0], &[], &[1]), 3);
}

#[test]
fn what_cannot_be_is_not_drawn() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NAN, -1000.0, 0.1];
    for seed in 0..200 {
        let mut sampler = Sampler::new(Sampling { seed, ..plain() });
        assert!([1, 4].contains(&sampler.sample(&logits, &[], &[])));
    }
    let nothing = [f32::NEG_INFINITY, f32::NAN];
    assert_eq!(Sampler::new(plain()).sample(&nothing, &[], &[]), 0);
    assert_eq!(
        Sampler::new(plain()).sample(&[1.0, f32::INFINITY], &[], &[]),
        1
    );
}

#[test]
fn the_two_zeros_are_equally_likely() {
    for seed in 0..20 {
        let mut one_of_one = Sampler::new(Sampling {
            seed,
            top_k: 1,
            ..plain()
        });
        assert_eq!(one_of_one.sample(&[-0.0, 0.0], &[], &[]), 0);
    }
}
