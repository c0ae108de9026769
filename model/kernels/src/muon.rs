//! Muon: momentum, of which every matrix is made orthogonal.

mod kernel;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, IndexingUpdateOp, Tensor, TensorData};
use firebox_runtime::device::{Kernels, kernels};

use super::host::Host;
pub use kernel::{MuonUpdate, Turns};

/// The root of the mean square of an update's values at a learning rate of 1, which is about that of AdamW, so that both have the
/// same learning rate and weight decay (Moonlight, arXiv 2502.16982, section 2.2).
const SIZE: f64 = 0.2;

/// a, b and c of each iteration. They are those of Polar Express (arXiv 2505.16932, algorithm 1): each polynomial comes as close to
/// 1 as an odd one of degree 5 can over the values that the one before leaves, from singular values of 0.01 to 1 at
/// first. Three of them leave 0.73 to 1.27, about what five of the usual iterations leave (Keller Jordan,
/// kellerjordan.github.io/posts/muon).
const FACTORS: [[f64; 3]; 3] = [
    [8.0934, -23.6206, 17.4463],
    [3.6366, -2.7219, 0.5365],
    [2.6613, -1.9772, 0.4526],
];

/// What is added to a matrix's norm before it is divided by it: a momentum that is next to nothing moves nothing.
const LEAST_NORM: f64 = 1e-7;

/// One update of Muon with Nesterov momentum (Keller Jordan, kellerjordan.github.io/posts/muon), with the size and the weight
/// decay of Moonlight (arXiv 2502.16982, eq. 4), of each of the matrices with m rows and n columns that the weights are:
///
/// `b ← μ b + (1 − μ) g`, `w ← (1 − η λ) w − η · 0.2 · √max(m, n) · orthogonal(μ b + (1 − μ) g)`
///
/// where `orthogonal(x)` has the singular vectors of x and singular values of about 1, but for those of x below a hundredth of the
/// root of the norm of `x xᵀ`, which is at least the largest of them. The polynomials of Newton and Schulz's iteration, `x ← (a 1 + b x xᵀ + c (x xᵀ)²) x`, need no more of x than
/// `r = x xᵀ` of its shorter side, which is symmetric and passes from one to the next as
/// `r ← (a 1 + b r + c r²)² r`; x is multiplied once, by the product of all of them.
///
/// The size of an update does not depend on that of the momentum: a matrix without gradients, such as that of an expert without
/// tokens, moves on in the direction of its last ones until its momentum is next to nothing. Of a stack, matrices may take turns
/// ([`Turns`]).
///
/// The same values as [`muon_reference`], which runs for other types than f32 and everywhere but on `flex`.
///
/// # Shapes
///
/// - `weights`: `[m, n]`, or a stack of matrices, `[experts, m, n]`
/// - `gradient`, `momentum` (b): flattened
/// - output: the weights and the momentum after the update
///
/// # Panics
///
/// When the weights are no matrices, or the lengths differ.
pub fn muon<const D: usize>(
    weights: Tensor<D>,
    gradient: Tensor<1>,
    momentum: Tensor<1>,
    update: &MuonUpdate,
) -> (Tensor<D>, Tensor<1>) {
    check(&weights, &gradient, &momentum);
    let types = [weights.dtype(), gradient.dtype(), momentum.dtype()];
    if kernels(&weights.device()) != Kernels::Slices || types != [DType::F32; 3] {
        return muon_reference(weights, gradient, momentum, update);
    }
    let [.., rows, columns] = weights.dims()[..] else {
        unreachable!("checked above")
    };
    let (weights, momentum) = <Dispatch as Muon>::muon(
        weights.into_dispatch(),
        gradient.into_dispatch(),
        momentum.into_dispatch(),
        [rows, columns],
        *update,
    );
    (
        Tensor::from_dispatch(weights),
        Tensor::from_dispatch(momentum),
    )
}

/// [`muon`] in plain tensor operations.
///
/// # Panics
///
/// When the weights are no matrices, or the lengths differ.
pub fn muon_reference<const D: usize>(
    weights: Tensor<D>,
    gradient: Tensor<1>,
    momentum: Tensor<1>,
    update: &MuonUpdate,
) -> (Tensor<D>, Tensor<1>) {
    check(&weights, &gradient, &momentum);
    let shape = weights.dims();
    let (stacked, &[rows, columns]) = shape.split_last_chunk().expect("matrices");
    let count = stacked.iter().product::<usize>();
    if count * rows * columns == 0 {
        return (weights, momentum);
    }
    let gradient = gradient.mul_scalar((1.0 - update.momentum) * update.gradient_scale);
    let momentum = momentum.mul_scalar(update.momentum) + gradient.clone();
    let direction = momentum.clone().mul_scalar(update.momentum) + gradient;
    let moving: Vec<i32> = (0..count as i32)
        .filter(|&index| update.turns.includes(index as usize))
        .collect();
    if moving.is_empty() {
        return (weights, momentum);
    }
    let update = update.of_turn();
    let size = update.learning_rate * SIZE * (rows.max(columns) as f64).sqrt();
    let change = |direction| orthogonal_reference(direction).mul_scalar(size);
    let direction = direction.reshape([count, rows, columns]);
    if moving.len() == count {
        let change = change(direction).reshape(shape);
        return (weights.mul_scalar(1.0 - update.decay) - change, momentum);
    }
    let moving = Tensor::from_data(TensorData::from(&moving[..]), &weights.device());
    let of_moving = |matrices: Tensor<3>| matrices.select(0, moving.clone());
    let weights = weights.reshape([count, rows, columns]);
    let lost = of_moving(weights.clone()).mul_scalar(update.decay);
    let change = (change(of_moving(direction)) + lost).neg();
    let weights = weights.select_assign(0, moving, change, IndexingUpdateOp::Add);
    (weights.reshape(shape), momentum)
}

/// `orthogonal` of [`muon`].
///
/// # Shapes
///
/// - `matrices`, output: `[count, m, n]`
fn orthogonal_reference(matrices: Tensor<3>) -> Tensor<3> {
    let [_, rows, columns] = matrices.dims();
    if rows > columns {
        return orthogonal_reference(matrices.swap_dims(1, 2)).swap_dims(1, 2);
    }
    let norm = |x: &Tensor<3>| x.clone().square().sum_dim(2).sum_dim(1).sqrt();
    let x = matrices.clone() / norm(&matrices).add_scalar(LEAST_NORM);
    let mut square = x.clone().matmul(x.clone().swap_dims(1, 2));
    // No singular value is larger than the root of this norm; of a matrix with a norm of 1 it is 1/√rows or more.
    let scale = norm(&square).clamp_min((rows as f64).sqrt().recip());
    square = square / scale.clone();
    let one = Tensor::<2>::eye(rows, &x.device()).unsqueeze::<3>();
    let mut factor = one.clone() / scale.sqrt();
    for [a, b, c] in FACTORS {
        let second = square.clone().matmul(square.clone());
        let polynomial =
            one.clone().mul_scalar(a) + square.clone().mul_scalar(b) + second.mul_scalar(c);
        square = polynomial.clone().matmul(polynomial.clone().matmul(square));
        factor = polynomial.matmul(factor);
    }
    factor.matmul(x)
}

fn check<const D: usize>(weights: &Tensor<D>, gradient: &Tensor<1>, momentum: &Tensor<1>) {
    let elements = weights.shape().num_elements();
    let lengths = [gradient, momentum].map(|tensor| tensor.dims()[0]);
    assert!(
        D >= 2 && lengths == [elements; 2],
        "weights {:?}; gradient and momentum of {lengths:?}",
        weights.dims()
    );
}

/// The backends' side of [`muon`].
#[backend_extension(Flex: cfg(feature = "flex"))]
pub trait Muon: Backend {
    /// See [`muon`]; the weights and the momentum after the update.
    fn muon(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        momentum: FloatTensor<Self>,
        matrix: [usize; 2],
        update: MuonUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl<B: Host> Muon for B {
    fn muon(
        mut weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        mut momentum: FloatTensor<Self>,
        matrix: [usize; 2],
        update: MuonUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        kernel::update(
            B::values_mut(&mut weights),
            &B::values(&gradient),
            B::values_mut(&mut momentum),
            matrix,
            &update,
        );
        (weights, momentum)
    }
}

#[cfg(test)]
mod tests;
