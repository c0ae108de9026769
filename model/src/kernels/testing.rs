//! What the tests of kernels share.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::backend::{Backend, Dispatch};
use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Uniform};

use crate::device::{backends, select};

/// Every device of this build.
pub(crate) fn devices() -> Vec<Device> {
    let compiled = backends().into_iter().filter(|backend| backend.compiled);
    compiled
        .map(|backend| select(backend.devices.first().expect("a device for each backend")).unwrap())
        .collect()
}

/// Values of both signs, about 1 in size, that have nothing to do with each other: sums of their products cancel no
/// further than chance has it, so that the error of a sum stands for the operation and not for the data.
pub(crate) fn wave<const D: usize>(shape: [usize; D], phase: f32, device: &Device) -> Tensor<D> {
    let values = noise(shape.iter().product(), phase, 1.0);
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Those of [`wave`], uniform between `−√3 · size` and `√3 · size`, whose variance is `size²`.
pub(crate) fn noise(length: usize, phase: f32, size: f32) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(phase.to_bits().into());
    let uniform = Uniform::new(-size * 3f32.sqrt(), size * 3f32.sqrt()).expect("a range");
    uniform.sample_iter(&mut generator).take(length).collect()
}

/// On the host.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// That `‖found − expected‖ ≤ tolerance · ‖expected‖`.
pub(crate) fn assert_close(
    what: &str,
    found: &[f32],
    expected: &[f32],
    tolerance: f64,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.len(), expected.len(), "{}", what);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    let difference = norm(&mut pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let size = norm(&mut expected.iter().map(|&b| f64::from(b)));
    prop_assert!(
        difference <= tolerance * size,
        "{what}: off by {difference:.1e} of {size:.1e}"
    );
    Ok(())
}

/// Whether `work` reads nothing from a graphics device: while that records, it refuses readings.
pub(crate) fn reads_nothing(device: &Device, mut work: impl FnMut()) -> bool {
    let dispatch = device.as_dispatch();
    Dispatch::graph_prepare(dispatch).unwrap();
    work(); // compiles what it launches
    Dispatch::sync(dispatch).unwrap();
    Dispatch::graph_start_capture(dispatch).unwrap();
    let done = catch_unwind(AssertUnwindSafe(work));
    let recorded = Dispatch::graph_stop_capture(dispatch);
    done.is_ok() && recorded.is_ok()
}

/// That `work` gives the same bits on 1, 2 and 8 threads.
pub(crate) fn on_threads(work: impl Fn() -> Vec<f32> + Send + Sync) {
    let bits = |threads: usize| -> Vec<u32> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let found = pool.build().expect("threads").install(&work);
        found.into_iter().map(f32::to_bits).collect()
    };
    let one = bits(1);
    for threads in [2, 8] {
        assert!(bits(threads) == one, "{threads} threads differ from one");
    }
}
