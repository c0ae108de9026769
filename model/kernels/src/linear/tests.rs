use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;

use super::{Precision, linear, linear_reference, linear_transposed};
use firebox_runtime::device::{Kernels, kernels};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, devices, on_threads, values, wave};

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

on_every_device!(
    a_row_by_a_matrix,
    equals_the_reference,
    gradients_equal_those_of_the_reference,
    gradients_of_many_rows_equal_those_of_the_reference,
    large_enough_to_be_shared_out,
    panels_of_a_tall_matrix,
    a_transposed_view_is_read_as_what_it_shows,
    a_single_row_equals_the_same_row_among_others,
    any_number_of_threads_gives_the_same_bits,
    rows_of_a_transposed_product_have_the_same_bits_among_others,
);

fn a_row_by_a_matrix(device: Device) {
    let x = Tensor::from_floats([[1.0, 2.0]], &device);
    let weight = Tensor::from_floats([[3.0, 4.0], [5.0, 6.0]], &device);
    for precision in precisions(&device) {
        let found = linear(x.clone(), weight.clone(), precision);
        assert_eq!(values(found), [13.0, 16.0]);
        let found = linear_transposed(x.clone(), weight.clone(), precision);
        assert_eq!(values(found), [11.0, 17.0]);
    }
}

/// Those that a device computes at.
fn precisions(device: &Device) -> impl Iterator<Item = Precision> {
    let all = Precision::ALL.into_iter();
    all.filter(|precision| precision.runs_on(device))
}

/// Weights in a type, where the device has it.
fn weights(shape: [usize; 2], held: DType, device: &Device) -> Option<Tensor<2>> {
    let holds = device.supports_dtype(held);
    holds.then(|| wave(shape, 0.5, device).cast(held))
}

/// Both add the same products, in an order that may differ.
fn assert_same([rows, d_in, d_out]: [usize; 3], device: &Device) -> Result<(), TestCaseError> {
    for (held, precision) in TYPES
        .into_iter()
        .flat_map(|held| precisions(device).map(move |p| (held, p)))
    {
        let x = wave([rows, d_in], 0.1, device);
        let Some(weight) = weights([d_in, d_out], held, device) else {
            continue;
        };
        let reference = |weight| values(linear_reference(x.clone(), weight, precision));
        let expected = reference(weight.clone());
        let what = format!("weights in {held:?}, products in {precision}");
        let found = linear(x.clone(), weight, precision);
        prop_assert_eq!(found.dims(), [rows, d_out]);
        assert_close(&what, &values(found), &expected, 1e-6)?;

        let weight = weights([d_out, d_in], held, device).expect("held before");
        let expected = reference(weight.clone().transpose());
        let found = values(linear_transposed(x.clone(), weight, precision));
        assert_close(&what, &found, &expected, 1e-6)?;
    }
    Ok(())
}

fn equals_the_reference(device: Device) {
    let sizes = [1usize..12, 1usize..70, 1usize..150];
    proptest!(ProptestConfig::with_cases(48), |(sizes in sizes)| {
        assert_same(sizes, &device)?;
    });
}

type Product = fn(Tensor<2>, Tensor<2>, Precision) -> Tensor<2>;

/// Gradients of a weighted sum of the product, for x and weights. The weights of the sum are numbers in bf16, so that the
/// reference, which does not round them, has the same factors.
fn gradients(
    product: Product,
    precision: Precision,
    x: [usize; 2],
    weight: [usize; 2],
    device: &Device,
) -> [Vec<f32>; 2] {
    let device = device.clone().autodiff();
    let x = wave(x, 0.1, &device).require_grad();
    let weight = wave(weight, 0.5, &device).require_grad();
    let output = product(x.clone(), weight.clone(), precision);
    let factors = wave(output.dims(), 0.9, &device)
        .mul_scalar(8.0)
        .round()
        .div_scalar(8.0);
    let found = (output * factors).sum().backward();
    [&x, &weight].map(|tensor| values(tensor.grad(&found).expect("a gradient of each")))
}

fn assert_same_gradients(
    [rows, d_in, d_out]: [usize; 3],
    device: &Device,
) -> Result<(), TestCaseError> {
    let transposed: Product =
        |x, weight, precision| linear_reference(x, weight.transpose(), precision);
    for precision in precisions(device) {
        let of = |product, weight| gradients(product, precision, [rows, d_in], weight, device);
        for (found, expected) in [
            (
                of(linear, [d_in, d_out]),
                of(linear_reference, [d_in, d_out]),
            ),
            (
                of(linear_transposed, [d_out, d_in]),
                of(transposed, [d_out, d_in]),
            ),
        ] {
            for (what, (found, expected)) in ["d(x)", "d(weight)"]
                .iter()
                .zip(found.iter().zip(&expected))
            {
                assert_close(&format!("{what} in {precision}"), found, expected, 2e-6)?;
            }
        }
    }
    Ok(())
}

fn gradients_equal_those_of_the_reference(device: Device) {
    let sizes = [1usize..40, 1usize..70, 1usize..90];
    proptest!(ProptestConfig::with_cases(24), |(sizes in sizes)| {
        assert_same_gradients(sizes, &device)?;
    });
}

fn gradients_of_many_rows_equal_those_of_the_reference(device: Device) {
    assert_same_gradients([1100, 65, 130], &device).unwrap();
}

fn large_enough_to_be_shared_out(device: Device) {
    for rows in [1, 3, 8, 9, 40] {
        assert_same([rows, 300, 1030], &device).unwrap();
    }
}

fn panels_of_a_tall_matrix(device: Device) {
    assert_same([9, 5000, 37], &device).unwrap();
}

fn a_transposed_view_is_read_as_what_it_shows(device: Device) {
    for held in TYPES {
        let Some(weight) = weights([40, 30], held, &device) else {
            continue;
        };
        let x = wave([2, 30], 0.1, &device);
        let expected = linear_transposed(x.clone(), weight.clone(), Precision::F32);
        let found = linear(x, weight.transpose(), Precision::F32);
        let (found, expected) = (values(found), values(expected));
        assert_close("transposed", &found, &expected, 1e-6).unwrap();
    }
}

// Burn's own product of a single f16 row adds up in f16 on `flex`; no path here may end there.
fn a_single_row_equals_the_same_row_among_others(device: Device) {
    for held in TYPES {
        let Some(weight) = weights([3000, 7], held, &device) else {
            continue;
        };
        let x = wave([12, 3000], 0.1, &device);
        let alone = x.clone().narrow(0, 3, 1);
        for (product, precision) in [linear as Product, linear_reference]
            .into_iter()
            .flat_map(|product| precisions(&device).map(move |p| (product, p)))
        {
            let among = product(x.clone(), weight.clone(), precision).narrow(0, 3, 1);
            let alone = values(product(alone.clone(), weight.clone(), precision));
            assert_close(&format!("{held:?}"), &alone, &values(among), 4e-6).unwrap();
        }
    }
}

fn rows_of_a_transposed_product_have_the_same_bits_among_others(device: Device) {
    if kernels(&device) != Kernels::Slices {
        return;
    }
    for (held, precision) in TYPES
        .into_iter()
        .flat_map(|held| precisions(&device).map(move |p| (held, p)))
    {
        let weight = weights([41, 75], held, &device).expect("flex holds it");
        let x = wave([8, 75], 0.1, &device);
        let all = values(linear_transposed(x.clone(), weight.clone(), precision));
        for rows in 1..8 {
            let first = x.clone().narrow(0, 0, rows);
            let found = values(linear_transposed(first, weight.clone(), precision));
            assert_eq!(
                found,
                all[..rows * 41],
                "{rows} rows, {held:?}, {precision}"
            );
        }
    }
}

fn any_number_of_threads_gives_the_same_bits(device: Device) {
    for held in TYPES {
        for rows in [1, 7, 20] {
            let Some(weight) = weights([257, 1500], held, &device) else {
                continue;
            };
            let x = wave([rows, 257], 0.1, &device);
            for precision in precisions(&device) {
                on_threads(|| values(linear(x.clone(), weight.clone(), precision)));
                if held == DType::F32 {
                    on_threads(|| {
                        gradients(linear, precision, [rows, 257], [257, 150], &device).concat()
                    });
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "against weights [3, …]")]
fn widths_that_differ_are_refused() {
    let device = devices().remove(0);
    let (x, weight) = (wave([4, 2], 0.0, &device), wave([3, 2], 0.0, &device));
    let _ = linear(x, weight, Precision::F32);
}

#[cfg(feature = "ndarray")]
#[test]
#[should_panic(expected = "no products in bf16")]
fn a_device_without_products_in_bf16_says_so() {
    let device = firebox_runtime::device::select("ndarray").unwrap();
    let (x, weight) = (wave([4, 2], 0.0, &device), wave([2, 2], 0.0, &device));
    let _ = linear(x, weight, Precision::Bf16);
}
