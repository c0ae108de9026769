//! Rows of a table, by number.

use burn::tensor::{Int, Tensor};

use firebox_runtime::device::{Kernels, kernels};

/// Ids whose gradients one launch adds up on a GPU.
const PART: usize = 1 << 15;

/// The rows of `table` that `ids` name, in the type of the table.
///
/// Burn adds up the table's gradient on a GPU with a unit for each column, which takes the ids one after the other.
/// Since that is a round of a loop for each (see `cube.rs`), many ids go in parts.
///
/// # Shapes
///
/// - `table`: `[vocab_size, width]`
/// - `ids`: `[tokens]`, each below `vocab_size`
/// - output: `[tokens, width]`
pub fn embedding(table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    let device = table.device();
    let [tokens] = ids.dims();
    if tokens <= PART || kernels(&device) != Kernels::Cube || !device.is_autodiff() {
        return table.select(0, ids);
    }
    let parts = ids.split(PART, 0).into_iter();
    Tensor::cat(parts.map(|ids| table.clone().select(0, ids)).collect(), 0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values, wave};

    on_every_device!(
        rows_and_their_gradient,
        rows_and_their_gradient_of_many_tokens
    );

    fn rows_and_their_gradient(device: Device) {
        let device = device.autodiff();
        let table = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        let table = table.require_grad();
        let found = embedding(table.clone(), Tensor::from_ints([2, 0, 2], &device));
        assert_eq!(values(found.clone()), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
        let gradients = found.sum().backward();
        let gradient = values(table.grad(&gradients).unwrap());
        assert_eq!(gradient, [1.0, 1.0, 0.0, 0.0, 2.0, 2.0]);
    }

    fn rows_and_their_gradient_of_many_tokens(device: Device) {
        let device = device.autodiff();
        let (tokens, vocab_size, width) = (70_000, 50, 3);
        let ids: Vec<usize> = (0..tokens)
            .map(|token| (token * 7919 + token / 3) % vocab_size)
            .collect();
        let table = wave([vocab_size, width], 0.1, &device).require_grad();
        let factors = wave([tokens, width], 0.5, &device);
        let numbers: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let numbers = Tensor::from_data(TensorData::new(numbers, [tokens]), &device);
        let found = embedding(table.clone(), numbers);
        let gradients = (found.clone() * factors.clone()).sum().backward();

        let rows = values(table.clone());
        let expected = ids.iter().flat_map(|id| &rows[id * width..][..width]);
        assert!(values(found).iter().eq(expected));

        let mut sums = vec![0.0; vocab_size * width];
        for (id, factors) in ids.iter().zip(values(factors).chunks(width)) {
            let sums = sums[id * width..].iter_mut().zip(factors);
            sums.for_each(|(sum, &factor)| *sum += f64::from(factor));
        }
        let sums: Vec<f32> = sums.iter().map(|&sum| sum as f32).collect();
        let gradient = values(table.grad(&gradients).unwrap());
        // Sums of 1400 terms of both signs, one after the other: twice the 6.3e-7 that they showed.
        assert_close("d(table)", &gradient, &sums, 1.3e-6).unwrap();
    }
}
