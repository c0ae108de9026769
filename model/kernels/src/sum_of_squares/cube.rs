//! The sum of squares in CubeCL: a sum for each cube, then their sum.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::DType;
use cubecl::prelude::*;

use super::SumOfSquares;
use crate::cube::{UNITS, contiguous, empty_float, sum, sum_of_group, vector_size, zeros};

/// Vectors that a unit adds up before there is another cube.
const VECTORS: usize = 8;

/// Cubes at most: several for each processor of any device.
const CUBES: usize = 1024;

impl SumOfSquares for Cube {
    fn sum_of_squares(values: FloatTensor<Self>) -> FloatTensor<Self> {
        let elements = values.shape().num_elements();
        if elements == 0 {
            return zeros(&values, [1], DType::F32);
        }
        let values = contiguous(values);
        let size = vector_size(elements);
        let vectors = elements / size;
        let cubes = vectors.div_ceil(UNITS * VECTORS).min(CUBES);
        let parts = empty_float(&values, [cubes]);
        squares_kernel::launch(
            &values.client.clone(),
            CubeCount::new_1d(cubes as u32),
            CubeDim::new_1d(UNITS as u32),
            size,
            values.into_buffer_arg(),
            parts.clone().into_buffer_arg(),
        );
        match cubes {
            1 => parts,
            _ => sum(parts),
        }
    }
}

/// The cubes' units take turns over the vectors, so that neighbours read neighbours.
#[cube(launch)]
fn squares_kernel<N: Size>(values: &[Vector<f32, N>], parts: &mut [f32]) {
    let step = parts.len() * UNITS;
    let mut place = ABSOLUTE_POS;
    let mut squares = Vector::<f32, N>::new(0.0f32);
    while place < values.len() {
        let vector = values[place];
        squares += vector * vector;
        place += step;
    }
    let sum = sum_of_group(squares.vector_sum(), UNITS);
    if UNIT_POS == 0 {
        parts[CUBE_POS] = sum;
    }
}
