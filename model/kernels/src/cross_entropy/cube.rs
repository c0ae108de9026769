//! Cross-entropy in CubeCL: nothing is read back, targets and gradient least of all.

use burn::backend::ops::IntTensorOps;
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::{DType, IntDType};
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::CrossEntropy;
use crate::cube::{
    UNITS, contiguous, empty_float, owned, sum, sum_of_group, units, vector_size, zeros,
};
use crate::operation::Operation;

/// The largest vocabulary of which a cube takes several rows.
const NARROW: usize = 2048;
/// Units for each of those rows.
const NARROW_UNITS: usize = 32;

/// The softmax of a row is `exp(logit − maximum) / sum`. The two are kept apart because their logarithmic sum would
/// lose the last bits of the sum.
#[derive(Debug, Clone)]
pub struct Saved {
    logits: CubeTensor,
    targets: CubeTensor,
    counted: CubeTensor,
    /// `[tokens]`
    maxima: CubeTensor,
    /// `[tokens]`
    sums: CubeTensor,
}

impl Operation<Cube, 1> for CrossEntropy<Cube> {
    type Saved = Saved;

    fn forward_saving(self, [logits]: [CubeTensor; 1]) -> (CubeTensor, Saved) {
        let [tokens, vocab_size] = logits.shape().dims();
        let [maxima, sums, nats] = [(); 3].map(|()| empty_float(&logits, [tokens]));
        let saved = Saved {
            logits,
            targets: contiguous(Cube::int_cast(self.targets, IntDType::I32)),
            counted: contiguous(self.counted),
            maxima,
            sums,
        };
        let logits = &saved.logits;
        if tokens == 0 {
            return (zeros(logits, [1], DType::F32), saved);
        }
        let client = logits.client.clone();
        let size = vector_size(vocab_size);
        let lanes = if vocab_size > NARROW {
            UNITS
        } else {
            NARROW_UNITS
        };
        let dim = CubeDim::new_1d(UNITS as u32);
        forward_kernel::launch(
            &client,
            calculate_cube_count_elemwise(&client, tokens * lanes, dim),
            dim,
            size,
            contiguous(logits.clone()).into_buffer_arg(),
            saved.targets.clone().into_buffer_arg(),
            saved.counted.clone().into_buffer_arg(),
            saved.maxima.clone().into_buffer_arg(),
            saved.sums.clone().into_buffer_arg(),
            nats.clone().into_buffer_arg(),
            vocab_size / size,
            lanes,
        );
        (sum(nats), saved)
    }

    fn backward(saved: Saved, gradient: CubeTensor, _: [bool; 1]) -> [Option<CubeTensor>; 1] {
        let [tokens, vocab_size] = saved.logits.shape().dims();
        if tokens == 0 {
            return [Some(saved.logits)];
        }
        let logits = owned(saved.logits);
        let client = logits.client.clone();
        let size = vector_size(vocab_size);
        let (count, dim) = units(&client, tokens * vocab_size / size);
        backward_kernel::launch(
            &client,
            count,
            dim,
            size,
            logits.clone().into_buffer_arg(),
            saved.targets.into_buffer_arg(),
            saved.counted.into_buffer_arg(),
            saved.maxima.into_buffer_arg(),
            saved.sums.into_buffer_arg(),
            contiguous(gradient).into_buffer_arg(),
            vocab_size / size,
        );
        [Some(logits)]
    }
}

/// `lanes` units a row of `vocab_size` vectors: they look for the maximum, then add up the exponentials.
#[cube(launch)]
fn forward_kernel<N: Size>(
    logits: &[Vector<f32, N>],
    targets: &[i32],
    counted: &[f32],
    maxima: &mut [f32],
    sums: &mut [f32],
    nats: &mut [f32],
    vocab_size: usize,
    #[comptime] lanes: usize,
) {
    let row = ABSOLUTE_POS / lanes;
    let lane = ABSOLUTE_POS % lanes;
    let start = row * vocab_size;
    // A row that does not count, or is none, has no values.
    let mut end = start;
    let mut weight = 0.0f32;
    if row < targets.len() {
        weight = counted[row];
        if weight != 0.0f32 {
            end += vocab_size;
        }
    }

    let mut maximum = 0.0f32;
    if start < end {
        maximum = logits[start].extract(0usize);
    }
    let mut place = start + lane;
    while place < end {
        let vector = logits[place];
        #[unroll]
        for i in 0..N::value() {
            maximum = f32::max(maximum, vector.extract(i));
        }
        place += lanes;
    }
    let maximum = maximum_of_group(maximum, lanes);

    let mut exponentials = Vector::<f32, N>::new(0.0f32);
    let mut place = start + lane;
    while place < end {
        exponentials += (logits[place] - Vector::new(maximum)).exp();
        place += lanes;
    }
    let sum = sum_of_group(exponentials.vector_sum(), lanes);

    if row < targets.len() && lane == 0 {
        let mut surprise = 0.0f32;
        if start < end {
            let target = targets[row] as usize;
            let vector = logits[start + target / N::value()];
            #[unroll]
            for i in 0..N::value() {
                if target % N::value() == i {
                    surprise = (maximum - vector.extract(i)) + sum.ln();
                }
            }
        }
        maxima[row] = maximum;
        sums[row] = sum;
        nats[row] = weight * surprise;
    }
}

/// The largest `value` of a group of neighbours, as [`sum_of_group`] has their sum.
#[cube]
fn maximum_of_group(value: f32, #[comptime] group: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let mut values = Shared::<[f32]>::new_slice(UNITS);
    values[unit] = value;
    sync_cube();
    let mut step = (group / 2).runtime();
    while step > 0 {
        if unit % group < step {
            values[unit] = f32::max(values[unit], values[unit + step]);
        }
        sync_cube();
        step /= 2;
    }
    values[unit / group * group]
}

/// A unit a vector of logits, which become their gradient.
#[cube(launch)]
fn backward_kernel<N: Size>(
    logits: &mut [Vector<f32, N>],
    targets: &[i32],
    counted: &[f32],
    maxima: &[f32],
    sums: &[f32],
    gradient: &[f32],
    vocab_size: usize,
) {
    if ABSOLUTE_POS >= logits.len() {
        terminate!();
    }
    let row = ABSOLUTE_POS / vocab_size;
    let scale = gradient[0] * counted[row];
    let mut values = Vector::<f32, N>::new(0.0f32);
    if scale != 0.0f32 {
        let shifted = logits[ABSOLUTE_POS] - Vector::new(maxima[row]);
        values = shifted.exp() * Vector::new(scale / sums[row]);
        let first = ABSOLUTE_POS % vocab_size * N::value();
        #[unroll]
        for i in 0..N::value() {
            if targets[row] as usize == first + i {
                values.insert(i, values.extract(i) - scale);
            }
        }
    }
    logits[ABSOLUTE_POS] = values;
}
