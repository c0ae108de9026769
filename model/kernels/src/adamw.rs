//! AdamW: one pass over weights, gradient and moments.

#[cfg(feature = "cube")]
mod cube;
mod kernel;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

use super::host::Host;
pub use kernel::AdamWUpdate;

/// One update of AdamW (arXiv 1711.05101, algorithm 2, with the bias correction of Adam, arXiv 1412.6980):
///
/// `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
/// `w ← (1 − η λ) w − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)`
///
/// The same values as [`adamw_reference`] in one pass over memory, in place where nobody else holds the tensors.
/// Of other types than f32, and on a device without kernels, it is the reference itself.
///
/// # Shapes
///
/// - `weights`: any, of n values
/// - `gradient`, `first`, `second` (moments): `[n]`
/// - output: the weights and the two moments after the update
///
/// # Panics
///
/// When the shapes do not fit, or the weights are on an autodiff device.
pub fn adamw<const D: usize>(
    weights: Tensor<D>,
    gradient: Tensor<1>,
    [first, second]: [Tensor<1>; 2],
    update: &AdamWUpdate,
) -> (Tensor<D>, [Tensor<1>; 2]) {
    let (elements, lengths) = (
        weights.shape().num_elements(),
        [&gradient, &first, &second].map(|tensor| tensor.dims()[0]),
    );
    assert!(
        lengths.iter().all(|&length| length == elements),
        "{elements} weights; gradient and moments of {lengths:?}"
    );
    let types = [gradient.dtype(), first.dtype(), second.dtype()];
    let plain = kernels(&weights.device()) == Kernels::None;
    if plain || weights.dtype() != DType::F32 || types.iter().any(|&held| held != DType::F32) {
        return adamw_reference(weights, gradient, [first, second], update);
    }
    let (weights, first, second) = <Dispatch as AdamW>::adamw(
        weights.into_dispatch(),
        gradient.into_dispatch(),
        first.into_dispatch(),
        second.into_dispatch(),
        *update,
    );
    let moments = [first, second].map(Tensor::from_dispatch);
    (Tensor::from_dispatch(weights), moments)
}

/// [`adamw`] in plain tensor operations.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn adamw_reference<const D: usize>(
    weights: Tensor<D>,
    gradient: Tensor<1>,
    [first, second]: [Tensor<1>; 2],
    update: &AdamWUpdate,
) -> (Tensor<D>, [Tensor<1>; 2]) {
    let shape = weights.shape();
    let [beta1, beta2] = update.betas;
    let [first_correction, second_correction] = update.corrections;
    let weights = weights.reshape([shape.num_elements()]);
    let gradient = gradient.mul_scalar(update.gradient_scale);
    let first = first.mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
    let second = second.mul_scalar(beta2) + gradient.square().mul_scalar(1.0 - beta2);
    let root = second
        .clone()
        .div_scalar(second_correction)
        .sqrt()
        .add_scalar(update.epsilon);
    let change = first
        .clone()
        .div(root)
        .mul_scalar(update.learning_rate / first_correction);
    let kept = weights.mul_scalar(1.0 - update.decay);
    ((kept - change).reshape(shape), [first, second])
}

/// The backends' side of [`adamw`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube")
)]
pub trait AdamW: Backend {
    /// See [`adamw`]; the weights and the moments after the update.
    fn adamw(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: AdamWUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl<B: Host> AdamW for B {
    fn adamw(
        mut weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        mut first: FloatTensor<Self>,
        mut second: FloatTensor<Self>,
        update: AdamWUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        kernel::update(
            B::values_mut(&mut weights),
            &B::values(&gradient),
            B::values_mut(&mut first),
            B::values_mut(&mut second),
            &update,
        );
        (weights, first, second)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, on_threads, values, wave};

    const UPDATE: AdamWUpdate = AdamWUpdate {
        gradient_scale: 0.3,
        betas: [0.9, 0.95],
        corrections: [0.271, 0.142_625],
        epsilon: 1e-8,
        learning_rate: 1e-2,
        decay: 1e-3,
    };

    type Step<const D: usize> =
        fn(Tensor<D>, Tensor<1>, [Tensor<1>; 2], &AdamWUpdate) -> (Tensor<D>, [Tensor<1>; 2]);

    /// Weights and moments after an update.
    fn run<const D: usize>(step: Step<D>, shape: [usize; D], device: &Device) -> [Vec<f32>; 3] {
        let elements = shape.iter().product();
        let (weights, [first, second]) = step(
            wave(shape, 0.1, device),
            wave([elements], 0.5, device),
            [
                wave([elements], 0.9, device),
                wave([elements], 1.3, device).square(),
            ],
            &UPDATE,
        );
        [values(weights), values(first), values(second)]
    }

    on_every_device!(
        a_first_step,
        equals_the_reference,
        a_shared_tensor_is_left_alone_and_a_view_is_understood,
        any_number_of_threads_gives_the_same_bits,
        no_weights,
    );

    /// Both take the same roundings in the same order, and give the same bits on the CPU and on software Vulkan. Where
    /// a product and a sum are fused, each of them saves half a unit in the last place, 6e-8.
    const TOLERANCE: f64 = 1e-7;

    // The first step divides the gradient by its own size, so that the weight moves by the learning rate; beside that it
    // decays by a hundredth.
    fn a_first_step(device: Device) {
        let one = |value: f32| Tensor::<1>::from_floats([value], &device);
        let update = AdamWUpdate {
            gradient_scale: 0.5,
            betas: [0.9, 0.99],
            corrections: [0.1, 0.01],
            epsilon: 0.0,
            learning_rate: 0.1,
            decay: 0.01,
        };
        let (weight, [first, second]) = adamw(one(1.0), one(-2.0), [one(0.0), one(0.0)], &update);
        assert_close("weight", &values(weight), &[1.09], 3e-7).unwrap();
        assert_close("first", &values(first), &[-0.1], 3e-7).unwrap();
        assert_close("second", &values(second), &[0.01], 3e-7).unwrap();
    }

    fn equals_the_reference(device: Device) {
        proptest!(ProptestConfig::with_cases(24), |(shape in [1usize..9, 1usize..300])| {
            let fast = run(adamw, shape, &device);
            let slow = run(adamw_reference, shape, &device);
            for (name, (fast, slow)) in ["weights", "first", "second"].iter().zip(fast.iter().zip(&slow)) {
                assert_close(name, fast, slow, TOLERANCE)?;
            }
        });
    }

    fn a_shared_tensor_is_left_alone_and_a_view_is_understood(device: Device) {
        let weights = wave([6, 4], 0.1, &device);
        let before = values(weights.clone());
        let moments = || [0.9, 1.3].map(|phase| wave([24], phase, &device).abs());
        let gradient = wave([24], 0.5, &device);
        let (fast, _) = adamw(weights.clone(), gradient.clone(), moments(), &UPDATE);
        let (slow, _) = adamw_reference(weights.clone(), gradient.clone(), moments(), &UPDATE);
        assert_eq!(values(weights.clone()), before);
        assert_close("weights", &values(fast), &values(slow), TOLERANCE).unwrap();

        let view = weights.slice([1..4, 1..3]).swap_dims(0, 1);
        let part = || moments().map(|moment| moment.narrow(0, 3, 6));
        let gradient = gradient.narrow(0, 2, 6);
        let (fast, _) = adamw(view.clone(), gradient.clone(), part(), &UPDATE);
        let (slow, _) = adamw_reference(view, gradient, part(), &UPDATE);
        assert_close("weights", &values(fast), &values(slow), TOLERANCE).unwrap();
    }

    fn any_number_of_threads_gives_the_same_bits(device: Device) {
        on_threads(|| run(adamw, [3, 40_000], &device).concat());
    }

    fn no_weights(device: Device) {
        assert!(run(adamw, [0, 3], &device).concat().is_empty());
    }
}
