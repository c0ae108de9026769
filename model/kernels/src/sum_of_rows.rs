//! The sum over many rows.

use burn::tensor::Tensor;

/// Rows that are added up one after the other.
const BLOCK_ROWS: usize = 256;

/// `Σ_row x`: blocks of rows are added up each by itself, then their sums in the same way.
///
/// On a GPU Burn may give a column to one unit, which takes the rows one after the other. That is a round of a loop for
/// each row (see `cube.rs`), and of tens of thousands of f32 summands it loses several digits.
///
/// # Shapes
///
/// - `x`: `[rows, width]`
/// - output: `[width]`
pub fn sum_of_rows(x: Tensor<2>) -> Tensor<1> {
    let [rows, width] = x.dims();
    if rows <= BLOCK_ROWS {
        return x.sum_dim(0).squeeze_dim(0);
    }
    let blocks = rows / BLOCK_ROWS;
    let whole = blocks * BLOCK_ROWS;
    let by_block = x.clone().narrow(0, 0, whole);
    let by_block = by_block.reshape([blocks, BLOCK_ROWS, width]).sum_dim(1);
    let mut sums = vec![by_block.squeeze_dim(1)];
    if whole < rows {
        sums.push(x.narrow(0, whole, rows - whole).sum_dim(0));
    }
    sum_of_rows(Tensor::cat(sums, 0))
}

/// `Σ x`, `[1]`, in the same way. Burn's own sums lose digits of long vectors: on `flex` those of views that are not
/// contiguous, and on `ndarray` all of them, are added up by a single f32.
///
/// # Shapes
///
/// - `x`: `[values]`
pub fn sum_in_blocks(x: Tensor<1>) -> Tensor<1> {
    sum_of_rows(x.unsqueeze_dim(1))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values, wave};

    on_every_device!(of_two_rows, equals_the_sum_in_f64, of_many_rows);

    fn check(rows: usize, width: usize, device: &Device) -> Result<(), TestCaseError> {
        // Of one sign, so that no sum cancels.
        let x = wave([rows, width], 0.1, device).square();
        let mut expected = vec![0.0; width];
        for row in values(x.clone()).chunks(width) {
            let sums = expected.iter_mut().zip(row);
            sums.for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let expected: Vec<f32> = expected.iter().map(|&sum| sum as f32).collect();
        // Chains of at most 256 additions: twice the 3.5e-7 that 4,000 random shapes showed at most.
        assert_close("sum", &values(sum_of_rows(x)), &expected, 7e-7)?;
        Ok(())
    }

    fn of_two_rows(device: Device) {
        let x = Tensor::from_floats([[1.0, 2.0], [3.0, 4.0]], &device);
        assert_eq!(values(sum_of_rows(x)), [4.0, 6.0]);
    }

    fn equals_the_sum_in_f64(device: Device) {
        proptest!(ProptestConfig::with_cases(24), |(rows in 1usize..1500, width in 1usize..9)| {
            check(rows, width, &device)?;
        });
    }

    fn of_many_rows(device: Device) {
        for (rows, width) in [(65_536, 1), (70_000, 2), (200_001, 3)] {
            check(rows, width, &device).unwrap();
        }
    }
}
