//! The sum of squares: the norm of a gradient without its squares in memory.

#[cfg(feature = "cube")]
mod cube;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};
use rayon::prelude::*;

use super::host::Host;
use crate::host::simd::{sum, vectorized};
use crate::sum_of_rows::sum_in_blocks;

/// `Σ x²` over all values, `[1]`. The same as [`sum_of_squares_reference`], to rounding, and of other types than f32 and
/// on a device without kernels that itself.
///
/// # Panics
///
/// When the values are on an autodiff device.
pub fn sum_of_squares<const D: usize>(values: Tensor<D>) -> Tensor<1> {
    if kernels(&values.device()) == Kernels::None || values.dtype() != DType::F32 {
        return sum_of_squares_reference(values);
    }
    Tensor::from_dispatch(<Dispatch as SumOfSquares>::sum_of_squares(
        values.into_dispatch(),
    ))
}

/// [`sum_of_squares`] in plain tensor operations, in f32.
pub fn sum_of_squares_reference<const D: usize>(values: Tensor<D>) -> Tensor<1> {
    let elements = values.shape().num_elements();
    if elements == 0 {
        // To `reshape`, a length of 0 means that of the old shape.
        return Tensor::zeros([1], &values.device());
    }
    let values = values.cast(DType::F32).reshape([elements]);
    sum_in_blocks(values.square())
}

/// The backends' side of [`sum_of_squares`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube")
)]
pub trait SumOfSquares: Backend {
    /// See [`sum_of_squares`].
    fn sum_of_squares(values: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl<B: Host> SumOfSquares for B {
    fn sum_of_squares(values: FloatTensor<Self>) -> FloatTensor<Self> {
        let sum = of_slice(&B::values(&values));
        B::tensor(vec![sum], [1].into())
    }
}

/// Values that a thread adds at once.
const BLOCK_VALUES: usize = 1 << 14;

/// [`sum_of_squares`] of a slice. Blocks add up in f64, in their order.
pub(crate) fn of_slice(values: &[f32]) -> f32 {
    let blocks = values.par_chunks(BLOCK_VALUES).map(|block| {
        f64::from(vectorized(
            #[inline(always)]
            || sum(block, |value| value * value),
        ))
    });
    let blocks: Vec<f64> = blocks.collect();
    blocks.iter().sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, on_threads, values, wave};

    on_every_device!(
        three_and_four,
        equals_the_reference,
        many_blocks,
        a_view_of_many_values_and_its_reference,
        any_number_of_threads_gives_the_same_bits,
        nan_shows,
    );

    /// Sums of positive numbers, taken in another order: twice the 3.6e-7 that 4,000 random shapes showed at most.
    const TOLERANCE: f64 = 7e-7;

    fn three_and_four(device: Device) {
        let input = Tensor::<1>::from_floats([3.0, -4.0], &device);
        assert_eq!(values(sum_of_squares(input)), [25.0]);
    }

    fn equals_the_reference(device: Device) {
        proptest!(ProptestConfig::with_cases(24), |(shape in [0usize..9, 0usize..300])| {
            let input = wave(shape, 0.1, &device);
            let slow = values(sum_of_squares_reference(input.clone()));
            assert_close("sum", &values(sum_of_squares(input)), &slow, TOLERANCE)?;
        });
    }

    fn many_blocks(device: Device) {
        let input = wave([5, 1_000_001], 0.1, &device);
        let squares = values(input.clone())
            .into_iter()
            .map(|x| f64::from(x).powi(2));
        let expected = squares.sum::<f64>() as f32;
        assert_close(
            "sum",
            &values(sum_of_squares(input)),
            &[expected],
            TOLERANCE,
        )
        .unwrap();
    }

    // Burn's own `sum` adds such a view up in a single f32 on `flex`, and everything on `ndarray`: off by 2e-4.
    fn a_view_of_many_values_and_its_reference(device: Device) {
        let view = wave([2100, 2101], 0.1, &device).swap_dims(0, 1);
        let view = view.narrow(0, 1, 2099);
        let squares = values(view.clone())
            .into_iter()
            .map(|x| f64::from(x).powi(2));
        let expected = [squares.sum::<f64>() as f32];
        for sum in [sum_of_squares, sum_of_squares_reference] {
            assert_close("sum", &values(sum(view.clone())), &expected, TOLERANCE).unwrap();
        }
    }

    fn any_number_of_threads_gives_the_same_bits(device: Device) {
        on_threads(|| values(sum_of_squares(wave([100_000], 0.1, &device))));
    }

    fn nan_shows(device: Device) {
        for bad in [f32::NAN, f32::INFINITY] {
            let input = Tensor::<1>::from_floats([1.0, bad, 2.0], &device);
            assert!(!values(sum_of_squares(input))[0].is_finite());
        }
    }
}
