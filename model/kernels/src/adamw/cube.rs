//! AdamW in CubeCL: one launch.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Cube, TensorMetadata};
use cubecl::prelude::*;

use super::{AdamW, AdamWUpdate};
use crate::cube::{contiguous, owned, units, vector_size};

impl AdamW for Cube {
    fn adamw(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: AdamWUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let elements = weights.shape().num_elements();
        if elements == 0 {
            return (weights, first, second);
        }
        let [weights, first, second] = [weights, first, second].map(owned);
        let client = weights.client.clone();
        let vectors = vector_size(elements);
        let (count, dim) = units(&client, elements / vectors);
        let factors = update.factors();
        update_kernel::launch(
            &client,
            count,
            dim,
            vectors,
            weights.clone().into_buffer_arg(),
            contiguous(gradient).into_buffer_arg(),
            first.clone().into_buffer_arg(),
            second.clone().into_buffer_arg(),
            FactorsLaunch::new(
                factors.gradient,
                factors.kept[0],
                factors.kept[1],
                factors.new[0],
                factors.new[1],
                factors.second_correction,
                factors.epsilon,
                factors.rate,
                factors.weight,
            ),
        );
        (weights, first, second)
    }
}

/// [`Factors`](super::kernel::Factors) in a kernel, which takes no arrays of numbers.
#[derive(CubeType, CubeLaunch)]
struct Factors {
    gradient: f32,
    kept_first: f32,
    kept_second: f32,
    new_first: f32,
    new_second: f32,
    second_correction: f32,
    epsilon: f32,
    rate: f32,
    weight: f32,
}

/// A unit a vector of weights.
#[cube(launch)]
fn update_kernel<N: Size>(
    weights: &mut [Vector<f32, N>],
    gradient: &[Vector<f32, N>],
    first: &mut [Vector<f32, N>],
    second: &mut [Vector<f32, N>],
    factors: Factors,
) {
    if ABSOLUTE_POS >= weights.len() {
        terminate!();
    }
    let gradient = gradient[ABSOLUTE_POS] * Vector::new(factors.gradient);
    let mean = first[ABSOLUTE_POS] * Vector::new(factors.kept_first)
        + gradient * Vector::new(factors.new_first);
    let square = second[ABSOLUTE_POS] * Vector::new(factors.kept_second)
        + gradient * gradient * Vector::new(factors.new_second);
    let root =
        (square / Vector::new(factors.second_correction)).sqrt() + Vector::new(factors.epsilon);
    first[ABSOLUTE_POS] = mean;
    second[ABSOLUTE_POS] = square;
    weights[ABSOLUTE_POS] = weights[ABSOLUTE_POS] * Vector::new(factors.weight)
        - mean / root * Vector::new(factors.rate);
}
