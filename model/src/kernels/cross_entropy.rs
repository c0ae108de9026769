//! Cross-entropy as one operation: the logits are the only matrix, and become their own gradient.

// NdArray is deprecated upstream; it is kept as an independent second opinion.
#![allow(deprecated)]

mod kernel;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

use super::host::{Host, is_host};
use kernel::{Normalizer, Targets};

/// Sum over the targets that count of `−ln p(target)`, in nats.
///
/// The same values as [`cross_entropy_sum_reference`]. On a CPU backend no probabilities are kept: the backward
/// pass computes them once more, over the logits, in place where nobody else holds those.
///
/// # Shapes
///
/// - `logits`: `[tokens, vocabulary]`
/// - `targets`: `[tokens]`
/// - `counted`: `[tokens]`, 1 for a target that counts and 0 for padding; `None` when all count. No gradient
///   flows into it.
/// - output: `[1]`
///
/// # Panics
///
/// When the shapes do not fit, or a target that counts is not in the vocabulary.
pub fn cross_entropy_sum(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Option<&Tensor<1>>,
) -> Tensor<1> {
    check(&logits, &targets, counted);
    if !is_host(&logits.device()) {
        return cross_entropy_sum_reference(logits, targets, counted);
    }
    // On these devices the host reads its own memory.
    let targets = Targets {
        ids: targets
            .into_data()
            .iter::<i64>()
            .map(|id| id as u32)
            .collect(),
        counted: counted.map(|counted| counted.to_data().iter::<f32>().collect()),
    };
    Tensor::from_dispatch(<Dispatch as CrossEntropy>::cross_entropy(
        logits.into_dispatch(),
        targets,
    ))
}

/// [`cross_entropy_sum`] in plain tensor operations.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn cross_entropy_sum_reference(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Option<&Tensor<1>>,
) -> Tensor<1> {
    check(&logits, &targets, counted);
    let log_probabilities = log_softmax(logits, 1)
        .gather(1, targets.unsqueeze_dim(1))
        .squeeze_dim::<1>(1);
    let nats = match counted {
        Some(counted) => log_probabilities * counted.clone(),
        None => log_probabilities,
    };
    -nats.sum()
}

fn check(logits: &Tensor<2>, targets: &Tensor<1, Int>, counted: Option<&Tensor<1>>) {
    let [tokens, vocabulary] = logits.dims();
    assert!(
        targets.dims() == [tokens] && counted.is_none_or(|counted| counted.dims() == [tokens]),
        "logits [{tokens}, {vocabulary}], targets {:?}, counted {:?}",
        targets.dims(),
        counted.map(Tensor::dims)
    );
}

/// The CPU backends' side of [`cross_entropy_sum`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Autodiff
)]
pub trait CrossEntropy: Backend {
    /// See [`cross_entropy_sum`].
    fn cross_entropy(logits: FloatTensor<Self>, targets: Targets) -> FloatTensor<Self>;
}

impl<B: Host> CrossEntropy for B {
    fn cross_entropy(logits: FloatTensor<Self>, targets: Targets) -> FloatTensor<Self> {
        forward::<B>(&logits, &targets).0
    }
}

fn forward<B: Host>(
    logits: &FloatTensor<B>,
    targets: &Targets,
) -> (FloatTensor<B>, Vec<Normalizer>) {
    let (nats, normalizers) = kernel::forward(&B::values(logits), logits.shape()[1], targets);
    (B::tensor(vec![nats], [1].into()), normalizers)
}

impl<B: Host, C: CheckpointStrategy> CrossEntropy for Autodiff<B, C> {
    fn cross_entropy(logits: FloatTensor<Self>, targets: Targets) -> FloatTensor<Self> {
        let parents = [logits.node()];
        let logits = logits.into_primitive();
        let (output, normalizers) = forward::<B>(&logits, &targets);
        match CrossEntropyBackward
            .prepare::<C>(parents)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((logits, targets, normalizers), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl<B: Host> Backward<B, 1> for CrossEntropyBackward {
    type State = (FloatTensor<B>, Targets, Vec<Normalizer>);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let [logits_node] = ops.parents;
        let (mut logits, targets, normalizers) = ops.state;
        if let Some(node) = logits_node {
            let vocabulary = logits.shape()[1];
            let gradient = B::values(&gradient)[0];
            let values = B::values_mut(&mut logits);
            kernel::backward(values, vocabulary, &targets, &normalizers, gradient);
            gradients.register::<B>(node.id, logits);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::{assert_close, devices, on_threads, values, wave};

    type Loss = fn(Tensor<2>, Tensor<1, Int>, Option<&Tensor<1>>) -> Tensor<1>;

    fn targets(tokens: usize, vocabulary: usize, device: &Device) -> Tensor<1, Int> {
        let ids: Vec<i32> = (0..tokens)
            .map(|token| (token * 7 % vocabulary) as i32)
            .collect();
        Tensor::from_data(TensorData::new(ids, [tokens]), device)
    }

    /// The loss, and a third of its gradient for the logits, which are up to `size`. Every `padding`th token
    /// does not count.
    fn run(
        loss: Loss,
        [tokens, vocabulary]: [usize; 2],
        size: f64,
        padding: Option<usize>,
        device: &Device,
    ) -> [Vec<f32>; 2] {
        let device = device.clone().autodiff();
        let logits = wave([tokens, vocabulary], 0.1, &device).mul_scalar(size);
        let logits = logits.detach().require_grad();
        let counted = padding.map(|padding| {
            let flags: Vec<f32> = (0..tokens)
                .map(|token| if token % padding == 0 { 0.0 } else { 1.0 })
                .collect();
            Tensor::from_data(TensorData::new(flags, [tokens]), &device)
        });
        let targets = targets(tokens, vocabulary, &device);
        let nats = loss(logits.clone(), targets, counted.as_ref());
        let gradients = nats.clone().div_scalar(3.0).backward();
        [values(nats), values(logits.grad(&gradients).unwrap())]
    }

    /// Exponentials within 1 unit in the last place, and sums of the same terms in another order.
    fn assert_same(
        shape: [usize; 2],
        size: f64,
        padding: Option<usize>,
    ) -> Result<(), TestCaseError> {
        for device in devices() {
            let fast = run(cross_entropy_sum, shape, size, padding, &device);
            let slow = run(cross_entropy_sum_reference, shape, size, padding, &device);
            assert_close("loss", &fast[0], &slow[0], 1e-5)?;
            assert_close("d(logits)", &fast[1], &slow[1], 1e-5)?;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_reference(
            shape in [1usize..60, 2usize..200],
            size in 0.1f64..40.0,
            padding in prop::option::of(1usize..4),
        ) {
            assert_same(shape, size, padding)?;
        }
    }

    #[test]
    fn more_rows_than_a_block_and_rows_longer_than_one() {
        assert_same([300, 512], 3.0, Some(5)).unwrap();
        assert_same([3, 40_000], 3.0, None).unwrap();
    }

    #[test]
    fn no_tokens_and_none_that_counts() {
        for device in devices() {
            let none =
                cross_entropy_sum(Tensor::zeros([0, 5], &device), targets(0, 5, &device), None);
            assert_eq!(values(none), [0.0]);
            let [loss, gradient] = run(cross_entropy_sum, [4, 5], 1.0, Some(1), &device);
            assert_eq!(loss, [0.0]);
            assert_eq!(gradient, [0.0; 20]);
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        for device in devices() {
            let [loss, gradient] = run(cross_entropy_sum, [4, 5], 1e30, None, &device);
            assert!(loss[0].is_finite() && gradient.iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn what_is_no_number_shows() {
        for device in devices() {
            let logits = Tensor::<2>::from_floats([[0.0, f32::NAN, 1.0]], &device);
            let loss = cross_entropy_sum(logits, targets(1, 3, &device), None);
            assert!(values(loss)[0].is_nan());
        }
    }

    #[test]
    fn logits_that_others_hold_are_left_alone() {
        for device in devices() {
            let device = device.autodiff();
            let logits = wave([4, 5], 0.1, &device).require_grad();
            let before = values(logits.clone());
            let loss = cross_entropy_sum(logits.clone(), targets(4, 5, &device), None);
            loss.backward();
            assert_eq!(values(logits), before);
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        for device in devices() {
            let device = &device;
            on_threads(move || run(cross_entropy_sum, [900, 100], 3.0, Some(7), device).concat());
        }
    }
}
