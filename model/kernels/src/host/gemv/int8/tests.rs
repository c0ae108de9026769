use super::*;
use crate::precision::Precision;

/// Integers and scales of a matrix.
fn matrix(d_in: usize, d_out: usize) -> (Vec<i8>, Vec<f16>) {
    let codes = (0..d_in * d_out).map(|place| (place * 37 % 255) as i8);
    let scales = 0..d_in.div_ceil(Int8Matrix::BLOCK) * d_out;
    let scales = scales.map(|place| f16::from_f32(0.01 + place as f32 * 1e-4));
    (codes.collect(), scales.collect())
}

fn product(weights: Int8Matrix<'_>, x: &[f32], precision: Precision) -> Vec<f32> {
    let rows = x.len() / weights.d_in;
    let x = Activations::new(x, rows, weights.d_in, precision);
    let mut output = vec![MaybeUninit::new(f32::NAN); rows * weights.d_out];
    weights.product(&x, &mut Vec::new(), &mut output).to_vec()
}

#[test]
fn parts_make_up_the_whole() {
    let (d_in, d_out) = (3 * Int8Matrix::BLOCK + 5, 75);
    let (codes, scales) = matrix(d_in, d_out);
    let whole = Int8Matrix::new(&codes, &scales, d_in, d_out);
    let mut wide = Vec::new();
    whole.dequantize(&mut wide);
    for columns in [0..75, 0..1, 3..40, 74..75, 75..75] {
        for inputs in [0..d_in, 32..96, 64..d_in, 96..d_in] {
            let part = whole.outputs(columns.clone()).inputs(inputs.clone());
            let mut found = Vec::new();
            part.dequantize(&mut found);
            let rows = inputs.map(|row| &wide[row * d_out..][columns.clone()]);
            assert_eq!(found, rows.collect::<Vec<_>>().concat());
        }
    }
    assert_eq!(whole.bytes(), codes.len() + 2 * scales.len());
}

#[test]
fn columns_have_the_same_bits_in_any_part() {
    let (d_in, d_out) = (70, 100);
    let (codes, scales) = matrix(d_in, d_out);
    let weights = Int8Matrix::new(&codes, &scales, d_in, d_out);
    let x: Vec<f32> = (0..3 * d_in)
        .map(|place| (place as f32 * 0.3).sin())
        .collect();
    let whole = product(weights, &x, Precision::F32);
    let part = product(weights.outputs(13..64), &x, Precision::F32);
    for (row, found) in part.chunks(51).enumerate() {
        assert_eq!(found, &whole[row * d_out..][13..64]);
    }
}

#[test]
fn without_inputs_or_outputs_there_is_nothing_to_add() {
    let nothing = Int8Matrix::new(&[], &[], 0, 3);
    let x = Activations::new(&[], 2, 0, Precision::F32);
    let mut output = vec![MaybeUninit::new(f32::NAN); 6];
    assert_eq!(nothing.product(&x, &mut Vec::new(), &mut output), [0.0; 6]);
    let nothing = Int8Matrix::new(&[], &[], 3, 0);
    assert!(product(nothing, &[1.0; 6], Precision::F32).is_empty());
}
