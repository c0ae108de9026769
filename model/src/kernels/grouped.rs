//! The grouped product: rows sorted by group, each group multiplied by its own matrix.

// NdArray is deprecated upstream; it is kept as an independent second opinion.
#![allow(deprecated)]

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, FloatDType, Shape, Slice, Tensor};

use super::linear_reference;

/// `output[r] = rows[r] · weights[g]` for the rows `offsets[g] .. offsets[g + 1]` of each group g.
///
/// The same values as [`grouped_matmul_reference`]. The difference is the backward pass: that of the
/// plain operations fills a whole stack with zeros for each group's slice, `groups²` matrices of memory
/// traffic, where this one writes each group's gradient once.
///
/// # Shapes
///
/// - `rows`: `[rows, d_in]`
/// - `weights`: `[groups, d_in, d_out]`
/// - `offsets`: `groups + 1` of them, from 0 to `rows`, rising
/// - output: `[rows, d_out]`
///
/// # Panics
///
/// When the shapes or the offsets do not fit.
pub fn grouped_matmul(rows: Tensor<2>, weights: Tensor<3>, offsets: &[usize]) -> Tensor<2> {
    check(&rows, &weights, offsets);
    let output = <Dispatch as GroupedMatmul>::grouped_matmul(
        rows.into_dispatch(),
        weights.into_dispatch(),
        offsets.to_vec(),
    );
    Tensor::from_dispatch(output)
}

/// [`grouped_matmul`] in plain tensor operations.
///
/// # Panics
///
/// When the shapes or the offsets do not fit.
pub fn grouped_matmul_reference(
    rows: Tensor<2>,
    weights: Tensor<3>,
    offsets: &[usize],
) -> Tensor<2> {
    check(&rows, &weights, offsets);
    let [_, _, d_out] = weights.dims();
    let products = offsets
        .windows(2)
        .enumerate()
        .filter(|(_, range)| range[0] < range[1]);
    let products: Vec<Tensor<2>> = products
        .map(|(group, range)| {
            let matrix = weights.clone().narrow(0, group, 1).squeeze_dim::<2>(0);
            linear_reference(
                rows.clone().narrow(0, range[0], range[1] - range[0]),
                matrix,
            )
        })
        .collect();
    if products.is_empty() {
        return Tensor::zeros([0, d_out], &rows.device());
    }
    Tensor::cat(products, 0)
}

fn check(rows: &Tensor<2>, weights: &Tensor<3>, offsets: &[usize]) {
    let ([count, d_in], [groups, d_weight, _]) = (rows.dims(), weights.dims());
    assert_eq!(
        d_in, d_weight,
        "rows [{count}, {d_in}] against weights [{groups}, {d_weight}, …]"
    );
    assert_eq!(offsets.len(), groups + 1, "offsets of {groups} groups");
    assert!(
        offsets[0] == 0 && offsets[groups] == count && offsets.is_sorted(),
        "offsets {offsets:?} must rise from 0 to {count}"
    );
}

/// The backends' side of [`grouped_matmul`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait GroupedMatmul: Backend {
    /// See [`grouped_matmul`](super::grouped_matmul).
    fn grouped_matmul(
        rows: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        offsets: Vec<usize>,
    ) -> FloatTensor<Self> {
        product::<Self>(&rows, &weights, &offsets)
    }
}

#[cfg(feature = "flex")]
impl GroupedMatmul for burn::backend::Flex {}
#[cfg(feature = "ndarray")]
impl GroupedMatmul for burn::backend::NdArray {}
#[cfg(feature = "cube")]
impl GroupedMatmul for burn::backend::Cube {}

fn product<B: Backend>(
    rows: &FloatTensor<B>,
    weights: &FloatTensor<B>,
    offsets: &[usize],
) -> FloatTensor<B> {
    let d_out = weights.shape()[2];
    let products: Vec<_> = occupied(offsets)
        .map(|(group, start, end)| {
            B::float_matmul(
                rows_of::<B>(rows, start, end),
                matrix_of::<B>(weights, group),
            )
        })
        .collect();
    concatenated::<B>(products, [0, d_out].into(), rows)
}

/// d(rows): each group's gradient rows times its transposed matrix.
fn rows_gradient<B: Backend>(
    gradient: &FloatTensor<B>,
    weights: &FloatTensor<B>,
    offsets: &[usize],
) -> FloatTensor<B> {
    let d_in = weights.shape()[1];
    let products: Vec<_> = occupied(offsets)
        .map(|(group, start, end)| {
            let transposed = B::float_transpose(matrix_of::<B>(weights, group));
            B::float_matmul(rows_of::<B>(gradient, start, end), transposed)
        })
        .collect();
    concatenated::<B>(products, [0, d_in].into(), gradient)
}

/// d(weights): each group's transposed rows times its gradient rows; zeros for a group without rows.
fn weights_gradient<B: Backend>(
    rows: &FloatTensor<B>,
    gradient: &FloatTensor<B>,
    offsets: &[usize],
) -> FloatTensor<B> {
    let (d_in, d_out) = (rows.shape()[1], gradient.shape()[1]);
    let matrices = offsets.windows(2).map(|range| {
        let shape: Shape = [1, d_in, d_out].into();
        if range[0] == range[1] {
            return B::float_zeros(shape, &rows.device(), rows.dtype().into());
        }
        let transposed = B::float_transpose(rows_of::<B>(rows, range[0], range[1]));
        let product = B::float_matmul(transposed, rows_of::<B>(gradient, range[0], range[1]));
        B::float_reshape(product, shape)
    });
    B::float_cat(matrices.collect(), 0)
}

/// Groups that have rows, with the bounds of those.
fn occupied(offsets: &[usize]) -> impl Iterator<Item = (usize, usize, usize)> {
    let groups = offsets.windows(2).enumerate();
    groups
        .filter(|(_, range)| range[0] < range[1])
        .map(|(group, range)| (group, range[0], range[1]))
}

fn rows_of<B: Backend>(matrix: &FloatTensor<B>, start: usize, end: usize) -> FloatTensor<B> {
    B::float_slice(
        matrix.clone(),
        &[Slice::from(start..end), Slice::from(0..matrix.shape()[1])],
    )
}

fn matrix_of<B: Backend>(stack: &FloatTensor<B>, index: usize) -> FloatTensor<B> {
    let (d_in, d_out) = (stack.shape()[1], stack.shape()[2]);
    let place = [
        Slice::from(index..index + 1),
        Slice::from(0..d_in),
        Slice::from(0..d_out),
    ];
    let matrix = B::float_reshape(B::float_slice(stack.clone(), &place), [d_in, d_out].into());
    match stack.dtype() {
        DType::F32 => matrix,
        _ => B::float_cast(matrix, FloatDType::F32),
    }
}

/// The products under each other; an empty tensor of `empty` shape when there are none.
fn concatenated<B: Backend>(
    products: Vec<FloatTensor<B>>,
    empty: Shape,
    like: &FloatTensor<B>,
) -> FloatTensor<B> {
    if products.is_empty() {
        return B::float_zeros(empty, &like.device(), like.dtype().into());
    }
    B::float_cat(products, 0)
}

impl<B: GroupedMatmul, C: CheckpointStrategy> GroupedMatmul for Autodiff<B, C> {
    fn grouped_matmul(
        rows: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        offsets: Vec<usize>,
    ) -> FloatTensor<Self> {
        let parents = [rows.node(), weights.node()];
        match GroupedMatmulBackward
            .prepare::<C>(parents)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (rows, weights) = (rows.into_primitive(), weights.into_primitive());
                let output = B::grouped_matmul(rows.clone(), weights.clone(), offsets.clone());
                prep.finish((rows, weights, offsets), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::grouped_matmul(
                rows.into_primitive(),
                weights.into_primitive(),
                offsets,
            )),
        }
    }
}

#[derive(Debug)]
struct GroupedMatmulBackward;

impl<B: GroupedMatmul> Backward<B, 2> for GroupedMatmulBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Vec<usize>);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let [rows_node, weights_node] = ops.parents;
        let (rows, weights, offsets) = ops.state;
        if let Some(node) = rows_node {
            gradients.register::<B>(node.id, rows_gradient::<B>(&gradient, &weights, &offsets));
        }
        if let Some(node) = weights_node {
            gradients.register::<B>(node.id, weights_gradient::<B>(&rows, &gradient, &offsets));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::{devices, wave};

    type Product = fn(Tensor<2>, Tensor<3>, &[usize]) -> Tensor<2>;

    /// The product, and the gradients of a weighted sum of it for rows and weights.
    fn run(
        product: Product,
        counts: &[usize],
        d_in: usize,
        d_out: usize,
        device: &Device,
    ) -> [Vec<f32>; 3] {
        let device = device.clone().autodiff();
        let offsets: Vec<usize> = std::iter::once(0)
            .chain(counts.iter().scan(0, |sum, count| {
                *sum += count;
                Some(*sum)
            }))
            .collect();
        let rows = offsets[counts.len()];
        let input = wave([rows, d_in], 0.1, &device).require_grad();
        let weights = wave([counts.len(), d_in, d_out], 0.5, &device).require_grad();
        let output = product(input.clone(), weights.clone(), &offsets);
        let gradients = (output.clone() * wave([rows, d_out], 0.9, &device))
            .sum()
            .backward();
        let values = |data: TensorData| data.iter::<f32>().collect::<Vec<f32>>();
        [
            values(output.to_data()),
            values(input.grad(&gradients).unwrap().to_data()),
            values(weights.grad(&gradients).unwrap().to_data()),
        ]
    }

    /// Both add the same products of two numbers below 1, in an order that may differ.
    fn assert_same(counts: &[usize], d_in: usize, d_out: usize) -> Result<(), TestCaseError> {
        for device in devices() {
            let fast = run(grouped_matmul, counts, d_in, d_out, &device);
            let slow = run(grouped_matmul_reference, counts, d_in, d_out, &device);
            for (kind, (fast, slow)) in ["output", "d(rows)", "d(weights)"]
                .iter()
                .zip(fast.iter().zip(&slow))
            {
                prop_assert_eq!(fast.len(), slow.len());
                for (a, b) in fast.iter().zip(slow) {
                    prop_assert!(
                        (a - b).abs() <= 1e-5 * (1.0 + b.abs()),
                        "{kind}: {a} against {b}"
                    );
                }
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_reference(
            counts in prop::collection::vec(prop_oneof![Just(0usize), 1usize..9], 1..7)
                .prop_filter("at least one row", |counts| counts.iter().sum::<usize>() > 0),
            d_in in 1usize..11,
            d_out in 1usize..11,
        ) {
            assert_same(&counts, d_in, d_out)?;
        }
    }

    #[test]
    fn one_row_and_one_group_with_everything() {
        assert_same(&[0, 1, 0], 5, 3).unwrap();
        assert_same(&[0, 300, 0, 0], 17, 9).unwrap();
    }

    #[test]
    #[should_panic(expected = "must rise from 0 to 4")]
    fn offsets_that_do_not_fit_are_refused() {
        let device = devices().remove(0);
        let _ = grouped_matmul(
            wave([4, 2], 0.0, &device),
            wave([2, 2, 2], 0.0, &device),
            &[0, 3, 5],
        );
    }
}
