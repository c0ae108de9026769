use burn::tensor::{DType, Device, Tensor, TensorData};
use half::f16;
use proptest::prelude::*;

use super::{Int8, LargeWeight, Weight};
use crate::dispatch::DispatchPlan;
use crate::host::gemv::GEMV_MAX_ROWS as FEW_ROWS;
use crate::{
    Activation, ExpertBiases, ExpertWeights, Precision, experts, experts_reference, linear,
    linear_reference, swiglu, swiglu_reference,
};
use firebox_runtime::device::{Kernels, kernels};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, noise, on_threads, values, wave};

on_every_device!(
    integers_by_hand,
    no_weight_is_off_by_more_than_half_a_scale,
    integers_times_scales_of_f16_stay_what_they_are,
    products_equal_those_of_the_numbers_that_the_integers_stand_for,
    a_large_product_is_shared_out,
    a_row_has_the_same_bits_among_any_others,
    any_number_of_threads_gives_the_same_bits,
    experts_equal_those_of_the_numbers_that_the_integers_stand_for,
    a_dense_feed_forward_is_one_of_experts,
);

const BLOCK: usize = Int8::<2>::BLOCK;

/// Weights of random signs and sizes; `None` where the device does not hold integers of 8 bits.
fn weights<const D: usize>(shape: [usize; D], phase: f32, device: &Device) -> Option<Int8<D>> {
    let values = noise(shape.iter().product(), phase, 0.5);
    let held = Int8::<D>::is_held_by(device);
    held.then(|| Int8::quantize(&values, shape, device).expect("not too large"))
}

/// Those that a device computes at.
fn precisions(device: &Device) -> impl Iterator<Item = Precision> {
    let all = Precision::ALL.into_iter();
    all.filter(|precision| precision.runs_on(device))
}

fn integers_by_hand(device: Device) {
    if !Int8::<2>::is_held_by(&device) {
        return;
    }
    // The second column is one of zeros, and the last row a block of its own.
    let mut weights = vec![0.0; (BLOCK + 1) * 3];
    weights[0] = 127.0;
    weights[3] = -3.4;
    weights[2] = -0.5;
    weights[5] = 0.3;
    weights[BLOCK * 3] = 1e-3;
    let held = Int8::quantize(&weights, [BLOCK + 1, 3], &device).unwrap();
    let codes: Vec<i64> = held.codes.clone().into_data().iter().collect();
    assert_eq!(codes[..6], [127, 0, -127, -3, 0, 76]);
    assert_eq!(codes[BLOCK * 3..], [127, 0, 0]);
    let scales = values(held.scales.clone());
    let rounded = |scale: f32| f16::from_f32(scale).to_f32();
    let expected = [
        1.0,
        0.0,
        rounded(0.5 / 127.0),
        rounded(1e-3 / 127.0),
        0.0,
        0.0,
    ];
    assert_eq!(scales, expected);
    let widened = values(held.dequantized());
    assert_eq!(widened[..2], [127.0, 0.0]);
    assert_eq!(widened[3], -3.0);
}

fn no_weight_is_off_by_more_than_half_a_scale(device: Device) {
    if !Int8::<2>::is_held_by(&device) {
        return;
    }
    let sizes = [1usize..4, 1usize..100, 1usize..20];
    let cases = ProptestConfig::with_cases(32);
    proptest!(cases, |(shape in sizes, size in -40i32..22, phase in 0f32..9.0)| {
        let weights = noise(shape.iter().product(), phase, 2f32.powi(size));
        let held = Int8::quantize(&weights, shape, &device).unwrap();
        let [_, d_in, d_out] = shape;
        let scales = values(held.scales.clone());
        for (place, (found, weight)) in values(held.dequantized()).iter().zip(&weights).enumerate() {
            let (stack, row, column) = (place / (d_in * d_out), place / d_out % d_in, place % d_out);
            let block = stack * d_in.div_ceil(BLOCK) + row / BLOCK;
            let scale = scales[block * d_out + column];
            // Division and product round once each, relative to a weight of 127 scales at most.
            let bound = scale * (0.5 + 128.0 * f32::EPSILON);
            prop_assert!((found - weight).abs() <= bound, "{found}, {weight}, {scale}");
        }
    });
}

// As the blocks of a file in q8_0 are.
fn integers_times_scales_of_f16_stay_what_they_are(device: Device) {
    if !Int8::<2>::is_held_by(&device) {
        return;
    }
    let shape = [3 * BLOCK, 5];
    let numbers = noise(3 * BLOCK * 5, 0.3, 127.0);
    let scales = noise(15, 1.7, 0.01).into_iter();
    let scales: Vec<f32> = scales.map(|v| f16::from_f32(v.abs()).to_f32()).collect();
    let weights: Vec<f32> = (0..numbers.len())
        .map(|place| {
            let (row, column) = (place / 5, place % 5);
            let code = match row % BLOCK {
                7 => -127.0,
                _ => numbers[place].round().clamp(-127.0, 127.0),
            };
            code * scales[row / BLOCK * 5 + column]
        })
        .collect();
    let held = Int8::quantize(&weights, shape, &device).unwrap();
    assert_eq!(values(held.scales.clone()), scales);
    assert_eq!(values(held.dequantized()), weights);
}

fn assert_same([rows, d_in, d_out]: [usize; 3], device: &Device) -> Result<(), TestCaseError> {
    let Some(weight) = weights([d_in, d_out], 0.2, device) else {
        return Ok(());
    };
    let x = wave([rows, d_in], 0.1, device);
    for precision in precisions(device) {
        let found = linear(x.clone(), weight.clone(), precision);
        prop_assert_eq!(found.dims(), [rows, d_out]);
        // Few rows leave the weights as they are, which are rounded only where they are many.
        let expected = match rows > FEW_ROWS {
            true => linear_reference(x.clone(), weight.clone().dequantized(), precision),
            false => {
                let x = precision.rounded(x.clone());
                linear_reference(x, weight.clone().dequantized(), Precision::F32)
            }
        };
        let what = format!("products in {precision}");
        assert_close(&what, &values(found), &values(expected), 1e-6)?;
    }
    Ok(())
}

fn products_equal_those_of_the_numbers_that_the_integers_stand_for(device: Device) {
    let sizes = [1usize..50, 1usize..150, 1usize..150];
    proptest!(ProptestConfig::with_cases(48), |(sizes in sizes)| {
        assert_same(sizes, &device)?;
    });
}

fn a_large_product_is_shared_out(device: Device) {
    for rows in [1, 3, 8, 9, 33, 40] {
        assert_same([rows, 300, 1030], &device).unwrap();
    }
}

fn a_row_has_the_same_bits_among_any_others(device: Device) {
    if kernels(&device) != Kernels::Slices {
        return;
    }
    let weight = weights([77, 530], 0.4, &device).expect("flex holds it");
    let x = wave([32, 77], 0.1, &device);
    for precision in precisions(&device) {
        let all = values(linear(x.clone(), weight.clone(), precision));
        for rows in [1, 2, 5, 8, 9, 31] {
            let first = x.clone().narrow(0, 0, rows);
            let found = values(linear(first, weight.clone(), precision));
            assert_eq!(found, all[..rows * 530], "{rows} rows, {precision}");
        }
    }
}

fn any_number_of_threads_gives_the_same_bits(device: Device) {
    let Some(weight) = weights([257, 1500], 0.4, &device) else {
        return;
    };
    for rows in [1, 7, 40] {
        let x = wave([rows, 257], 0.1, &device);
        for precision in precisions(&device) {
            on_threads(|| values(linear(x.clone(), weight.clone(), precision)));
        }
    }
}

fn experts_equal_those_of_the_numbers_that_the_integers_stand_for(device: Device) {
    // Of the last, the hidden width is cut for few tokens, at no multiple of a block at its end.
    for (tokens, d_model, d_ff) in [(1, 20, 12), (5, 33, 70), (90, 64, 40), (2, 40, 1100)] {
        let stack = |shape, phase| weights(shape, phase, &device);
        let (Some(gate), Some(up), Some(down)) = (
            stack([4, d_model, d_ff], 0.1),
            stack([4, d_model, d_ff], 0.7),
            stack([4, d_ff, d_model], 1.3),
        ) else {
            return;
        };
        let chosen: Vec<u32> = (0..tokens)
            .flat_map(|token| [token % 4, (token + 1 + token % 3) % 4])
            .collect();
        let plan = DispatchPlan::new(&chosen, 4, 2, &device);
        let router = wave([tokens as usize, 2], 0.3, &device);
        let x = wave([tokens as usize, d_model], 0.1, &device);
        for biased in [false, true] {
            let biases = || ExpertBiases {
                gate: wave([4, d_ff], 0.2, &device),
                up: wave([4, d_ff], 0.4, &device),
                down: wave([4, d_model], 0.6, &device),
            };
            let of_experts = ExpertWeights {
                gate: gate.clone().into(),
                up: up.clone().into(),
                down: down.clone().into(),
                biases: biased.then(biases),
            };
            let [found, expected] = [experts, experts_reference].map(|operation| {
                let (x, router) = (x.clone(), router.clone());
                let (of_experts, activation) = (of_experts.clone(), Activation::Swiglu);
                values(operation(
                    x,
                    router,
                    of_experts,
                    &plan,
                    activation,
                    Precision::F32,
                ))
            });
            let what = format!("{tokens} tokens, {d_model}, {d_ff}");
            assert_close(&what, &found, &expected, 2e-6).unwrap();
        }
    }
}

fn a_dense_feed_forward_is_one_of_experts(device: Device) {
    let (Some(gate), Some(up), Some(down)) = (
        weights([40, 70], 0.1, &device),
        weights([40, 70], 0.7, &device),
        weights([70, 40], 1.3, &device),
    ) else {
        return;
    };
    let x = wave([3, 40], 0.1, &device);
    let stacks = [
        gate.clone().dequantized(),
        up.clone().dequantized(),
        down.clone().dequantized(),
    ];
    let [wide_gate, wide_up, wide_down] = stacks;
    let found = swiglu(x.clone(), gate, up, down, Precision::F32);
    let expected = swiglu_reference(x, wide_gate, wide_up, wide_down, Precision::F32);
    assert_close("SwiGLU", &values(found), &values(expected), 2e-6).unwrap();
}

#[test]
fn a_weight_that_is_too_large_for_a_scale_is_refused() {
    let device = firebox_runtime::testing::devices().remove(0);
    let held = |weight| Int8::quantize(&[1.0, 0.0, 1.0, weight], [2, 1, 2], &device).map(|_| ());
    assert_eq!(held(8e6), Ok(()));
    let error = Err(LargeWeight { matrix: 1 });
    assert_eq!([held(9e6), held(f32::INFINITY)], [error, error]);
}

#[test]
fn weights_know_their_shape_and_type() {
    let device = firebox_runtime::testing::devices().remove(0);
    let held = Weight::from(Int8::quantize(&[0.0; 6], [2, 3], &device).unwrap());
    assert_eq!((held.dims(), held.dtype()), ([2, 3], DType::I8));
    let data = TensorData::new(vec![0f32; 6], [2, 3]);
    let held = Weight::from(Tensor::<2>::from_data(data, &device));
    assert_eq!((held.dims(), held.dtype()), ([2, 3], DType::F32));
}
