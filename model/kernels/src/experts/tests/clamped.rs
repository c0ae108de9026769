//! Experts with biases and clamped activations.

use super::*;

on_every_device!(
    clamps_and_biases_by_hand,
    clamps_and_biases_equal_the_reference
);

/// One token of 1, one expert with a product of gate and up each, plus biases.
fn clamps_and_biases_by_hand(device: Device) {
    let ln3 = 3f32.ln();
    // σ(2 · ln 3 / 2) is 3/4. Up is 3, of which 2 are left, and 1 more; the bias of down is inside the router's weight of 1/2.
    let output = |gate: f32, up: f32| {
        let stack = |value: f32| Tensor::<3>::from_floats([[[value]]], &device);
        let bias = |value: f32| Tensor::<2>::from_floats([[value]], &device);
        let biases = ExpertBiases {
            gate: bias(0.25),
            up: bias(-0.5),
            down: bias(10.0),
        };
        let output = experts(
            Tensor::from_floats([[1.0]], &device),
            Tensor::from_floats([[0.5]], &device),
            ExpertWeights {
                gate: stack(gate - 0.25).into(),
                up: stack(up + 0.5).into(),
                down: stack(4.0).into(),
                biases: Some(biases),
            },
            &DispatchPlan::new(&[0], 1, 1, &device),
            Activation::ClampedSwiglu {
                alpha: 2.0,
                limit: 2.0,
            },
            Precision::F32,
        );
        data(output)
    };
    let inside = 3.0 * (ln3 / 2.0) * 0.75;
    let expected = [(4.0 * inside + 10.0) / 2.0];
    assert_close("up", &output(ln3 / 2.0, 3.0), &expected).unwrap();
    // Below, up is −2 and gate as it is: σ(−ln 9) is 1/10.
    let expected = [(4.0 * -(-ln3 * 0.1) + 10.0) / 2.0];
    assert_close("below", &output(-ln3, -7.0), &expected).unwrap();
    // Gate is 2 at most.
    assert_eq!(output(2.0, 0.0), output(5.0, 0.0));
}

/// Values within 1e-6 of a limit may be cut on one side alone, and have a gradient on the other: the seed is one without.
fn clamps_and_biases_equal_the_reference(device: Device) {
    let config = ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::with_cases(24)
    };
    // Of values up to 2 or so, most are beyond the smallest limit, and none beyond the largest.
    let limits = prop::sample::select(vec![0.3f32, 1.0, 7.0]);
    proptest!(config, |(case in cases(), limit in limits, which in 0..3)| {
        let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit };
        let case = Case {
            activation: if which == 0 { Activation::Swiglu } else { clamped },
            biased: which != 1,
            ..case
        };
        assert_same(&case, &device)?;
    });
    let chosen: Vec<u32> = (0..700).flat_map(|t| [t * t % 5, 5 + t % 2]).collect();
    let few = [0, 1, 2, 0, 1, 2];
    for case in [
        Case::new(24, 1030, &chosen, 7, 2),
        Case::new(300, 1030, &few, 3, 2),
    ] {
        let case = Case {
            activation: Activation::ClampedSwiglu {
                alpha: 1.702,
                limit: 0.9,
            },
            biased: true,
            ..case
        };
        assert_same(&case, &device).unwrap();
    }
}
