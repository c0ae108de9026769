//! Cross-entropy as one operation: the logits are the only matrix, and become their own gradient.

#[cfg(feature = "cube")]
mod cube;
mod host;
mod kernel;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};
use firebox_runtime::device::{Kernels, kernels};

use crate::operation::{Operation, differentiable};
use crate::sum_of_rows::sum_in_blocks;

/// Sum over the targets that count of `−ln p(target)`, in nats.
///
/// The same values as [`cross_entropy_sum_reference`]; a token that does not count is not looked at. No
/// probabilities are kept: the backward pass computes them once more, over the logits, in place where nobody else
/// holds those. Logits of other types than f32, and devices without kernels, take the reference itself.
///
/// # Shapes
///
/// - `logits`: `[tokens, vocab_size]`
/// - `targets`: `[tokens]`
/// - `counted`: `[tokens]`, 1 for a target that counts and 0 for padding; `None` when all count. No gradient
///   flows into it.
/// - output: `[1]`
///
/// # Panics
///
/// When the shapes do not fit; on a CPU backend, which alone can look, also when a target that counts is not in the
/// vocabulary.
pub fn cross_entropy_sum(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Option<&Tensor<1>>,
) -> Tensor<1> {
    check(&logits, &targets, counted);
    if kernels(&logits.device()) == Kernels::None || logits.dtype() != DType::F32 {
        return cross_entropy_sum_reference(logits, targets, counted);
    }
    let all = || Tensor::ones(targets.dims(), &logits.device());
    let counted = counted.cloned().unwrap_or_else(all);
    Tensor::from_dispatch(<Dispatch as CrossEntropyBackend>::cross_entropy(
        logits.into_dispatch(),
        targets.into_dispatch(),
        counted.into_dispatch(),
    ))
}

/// [`cross_entropy_sum`] in plain tensor operations, in f32.
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
    let shape = logits.dims();
    let mut logits = logits.cast(DType::F32);
    if let Some(counted) = counted {
        // Whatever they are: NaN times 0 is NaN.
        let skipped = counted.clone().equal_scalar(0.0).unsqueeze_dim::<2>(1);
        logits = logits.mask_fill(skipped.expand(shape), 0.0);
    }
    let log_probabilities = log_softmax(logits, 1)
        .gather(1, targets.unsqueeze_dim(1))
        .squeeze_dim::<1>(1);
    let nats = match counted {
        Some(counted) => log_probabilities * counted.clone(),
        None => log_probabilities,
    };
    -sum_in_blocks(nats)
}

fn check(logits: &Tensor<2>, targets: &Tensor<1, Int>, counted: Option<&Tensor<1>>) {
    let [tokens, vocab_size] = logits.dims();
    assert!(
        targets.dims() == [tokens] && counted.is_none_or(|counted| counted.dims() == [tokens]),
        "logits [{tokens}, {vocab_size}], targets {:?}, counted {:?}",
        targets.dims(),
        counted.map(Tensor::dims)
    );
}

/// The operation, of the logits: the sum over rows of `−counted · ln softmax(logits)[target]`, `[1]`. A row that counts 0
/// is not looked at.
///
/// The gradient of the logits is `gradient · counted · (softmax − onehot(target))`.
#[derive(Debug, Clone)]
pub struct CrossEntropy<B: Backend> {
    targets: IntTensor<B>,
    counted: FloatTensor<B>,
}

/// The backends' side of [`cross_entropy_sum`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait CrossEntropyBackend: Backend {
    /// See [`cross_entropy_sum`].
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> CrossEntropyBackend for B
where
    CrossEntropy<B>: Operation<B, 1>,
{
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        CrossEntropy::<B> { targets, counted }.forward([logits])
    }
}

impl<B: Backend, C: CheckpointStrategy> CrossEntropyBackend for Autodiff<B, C>
where
    CrossEntropy<B>: Operation<B, 1>,
{
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let counted = counted.into_primitive();
        let operation = CrossEntropy::<B> { targets, counted };
        differentiable::<_, B, C, 1>(operation, [logits])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, on_threads, values, wave};

    type Loss = fn(Tensor<2>, Tensor<1, Int>, Option<&Tensor<1>>) -> Tensor<1>;

    fn targets(tokens: usize, vocab_size: usize, device: &Device) -> Tensor<1, Int> {
        let ids: Vec<i32> = (0..tokens)
            .map(|token| (token * 7 % vocab_size) as i32)
            .collect();
        Tensor::from_data(TensorData::new(ids, [tokens]), device)
    }

    /// The loss, and a third of its gradient for the logits, which are up to `size`. Every `padding`th token
    /// does not count.
    fn run(
        loss: Loss,
        [tokens, vocab_size]: [usize; 2],
        size: f64,
        padding: Option<usize>,
        device: &Device,
    ) -> [Vec<f32>; 2] {
        let device = device.clone().autodiff();
        let logits = wave([tokens, vocab_size], 0.1, &device).mul_scalar(size);
        let logits = logits.detach().require_grad();
        let counted = padding.map(|padding| {
            let flags: Vec<f32> = (0..tokens)
                .map(|token| if token % padding == 0 { 0.0 } else { 1.0 })
                .collect();
            Tensor::from_data(TensorData::new(flags, [tokens]), &device)
        });
        let targets = targets(tokens, vocab_size, &device);
        let nats = loss(logits.clone(), targets, counted.as_ref());
        let gradients = nats.clone().div_scalar(3.0).backward();
        [values(nats), values(logits.grad(&gradients).unwrap())]
    }

    on_every_device!(
        odds_of_three_to_one,
        equals_the_reference,
        more_rows_than_a_block_and_rows_longer_than_one,
        no_tokens_and_none_that_counts,
        what_does_not_count_is_not_looked_at,
        large_logits_do_not_overflow,
        nan_shows,
        logits_that_others_hold_are_left_alone,
        any_number_of_threads_gives_the_same_bits,
    );

    /// Exponentials within 1 unit in the last place, and sums of the same terms in another order; twice what 4,000
    /// random shapes and the largest one showed at most, which is 3.1e-7 for the loss and 1.5e-7 for the gradient.
    fn assert_same(
        shape: [usize; 2],
        size: f64,
        padding: Option<usize>,
        device: &Device,
    ) -> Result<(), TestCaseError> {
        let fast = run(cross_entropy_sum, shape, size, padding, device);
        let slow = run(cross_entropy_sum_reference, shape, size, padding, device);
        assert_close("loss", &fast[0], &slow[0], 7e-7)?;
        assert_close("d(logits)", &fast[1], &slow[1], 3e-7)?;
        Ok(())
    }

    // Probabilities of 3/4 and 1/4: ln 4/3 and ln 4 nats.
    fn odds_of_three_to_one(device: Device) {
        let logits = Tensor::<2>::from_floats([[3f32.ln(), 0.0]; 2], &device);
        let targets = Tensor::<1, Int>::from_ints([0, 1], &device);
        let first = Tensor::<1>::from_floats([1.0, 0.0], &device);
        for (counted, nats) in [(None, 1.673_976_4), (Some(&first), 0.287_682_07)] {
            let found = cross_entropy_sum(logits.clone(), targets.clone(), counted);
            assert_close("nats", &values(found), &[nats], 3e-7).unwrap();
        }
    }

    fn equals_the_reference(device: Device) {
        let shapes = [1usize..60, 2usize..200];
        let paddings = prop::option::of(1usize..4);
        proptest!(
            ProptestConfig::with_cases(24),
            |(shape in shapes, size in 0.1f64..40.0, padding in paddings)| {
                assert_same(shape, size, padding, &device)?;
            }
        );
    }

    fn more_rows_than_a_block_and_rows_longer_than_one(device: Device) {
        assert_same([300, 512], 3.0, Some(5), &device).unwrap();
        assert_same([3, 40_000], 3.0, None, &device).unwrap();
        assert_same([3, 5001], 3.0, None, &device).unwrap();
    }

    fn no_tokens_and_none_that_counts(device: Device) {
        let none = cross_entropy_sum(Tensor::zeros([0, 5], &device), targets(0, 5, &device), None);
        assert_eq!(values(none), [0.0]);
        let [loss, gradient] = run(cross_entropy_sum, [4, 5], 1.0, Some(1), &device);
        assert_eq!(loss, [0.0]);
        assert_eq!(gradient, [0.0; 20]);
    }

    fn what_does_not_count_is_not_looked_at(device: Device) {
        let device = device.autodiff();
        let rows = [[1.0, 2.0, 4.0], [f32::NAN; 3]];
        let logits = Tensor::<2>::from_floats(rows, &device).require_grad();
        let counted = Tensor::from_floats([1.0, 0.0], &device);
        let loss = cross_entropy_sum(logits.clone(), targets(2, 3, &device), Some(&counted));
        let gradient = values(logits.grad(&loss.clone().backward()).unwrap());
        assert!(values(loss)[0].is_finite());
        assert!(gradient[0] < 0.0 && gradient[1] > 0.0);
        assert_eq!(gradient[3..], [0.0; 3]);
    }

    fn large_logits_do_not_overflow(device: Device) {
        let [loss, gradient] = run(cross_entropy_sum, [4, 5], 1e30, None, &device);
        assert!(loss[0].is_finite() && gradient.iter().all(|value| value.is_finite()));
    }

    fn nan_shows(device: Device) {
        let logits = Tensor::<2>::from_floats([[0.0, f32::NAN, 1.0]], &device);
        let loss = cross_entropy_sum(logits, targets(1, 3, &device), None);
        assert!(values(loss)[0].is_nan());
    }

    fn logits_that_others_hold_are_left_alone(device: Device) {
        let device = device.autodiff();
        let logits = wave([4, 5], 0.1, &device).require_grad();
        let before = values(logits.clone());
        let loss = cross_entropy_sum(logits.clone(), targets(4, 5, &device), None);
        let gradients = loss.backward();
        assert_eq!(values(logits.clone()), before);
        let slow = cross_entropy_sum_reference(logits.clone(), targets(4, 5, &device), None);
        let [fast, slow] = [gradients, slow.backward()].map(|gradients| {
            let gradient = logits.grad(&gradients);
            values(gradient.expect("it was asked for"))
        });
        assert_close("d(logits)", &fast, &slow, 3e-7).unwrap();
    }

    fn any_number_of_threads_gives_the_same_bits(device: Device) {
        on_threads(|| run(cross_entropy_sum, [900, 100], 3.0, Some(7), &device).concat());
    }
}
