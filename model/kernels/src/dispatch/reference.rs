//! The choice of experts in plain tensor operations, for devices without kernels.

use burn::tensor::{Int, Tensor};

use crate::sum_of_rows;

/// The experts with the largest `score + bias` of each token, largest first and of equal ones the lower number.
///
/// As often as a token has choices, the largest score that is left is taken; Burn's `argmax` on `ndarray` finds the
/// first of equal ones. Sorting operations of Burn promise no order of equal values.
///
/// # Shapes
///
/// - `scores`: `[tokens, experts]`
/// - `bias`: `[experts]`
/// - output: `[tokens, top_k]`
pub fn choose(scores: Tensor<2>, bias: Tensor<1>, top_k: usize) -> Tensor<2, Int> {
    let numbers = numbers(&scores, scores.dims()[1]);
    let mut left = scores + bias.unsqueeze();
    let choices = (0..top_k).map(|_| {
        let best = left.clone().argmax(1); // [tokens, 1]
        let taken = best.clone().equal(numbers.clone().unsqueeze());
        left = left.clone().mask_fill(taken, f32::NEG_INFINITY);
        best
    });
    Tensor::cat(choices.collect(), 1)
}

/// Assignments to each expert from the tokens that `valid` marks with 1.
///
/// # Shapes
///
/// - `chosen`: `[tokens, top_k]`
/// - `valid`: `[tokens]`
/// - output: `[experts]`
pub fn load(chosen: &Tensor<2, Int>, experts: usize, valid: Tensor<1>) -> Tensor<1> {
    let numbers = numbers(&valid, experts).unsqueeze::<3>();
    let visits = chosen.clone().unsqueeze_dim::<3>(2).equal(numbers); // [tokens, top_k, experts]
    let by_token = visits.float().sum_dim(1).squeeze_dim::<2>(1);
    sum_of_rows(by_token * valid.unsqueeze_dim(1))
}

/// `0 .. experts`, where `like` is.
fn numbers<const D: usize>(like: &Tensor<D>, experts: usize) -> Tensor<1, Int> {
    Tensor::arange(0..experts as i64, &like.device())
}
