//! What the tests of all crates share: one test per device, arbitrary values, comparisons.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::backend::{Backend, Dispatch};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Uniform};

use crate::device::{backends, select};

/// Makes a test for each backend of this build out of every function that is named, so that a failure names its
/// device and a device can be tested alone: `on_every_device!(decoding)` makes `decoding::flex`,
/// `decoding::ndarray` and so on, each of which calls `decoding` with what it takes, a [`Device`] or its name.
///
/// A backend that is not in the build has no test. One that is there and finds no adapter fails its tests: nothing
/// is skipped in silence.
#[macro_export]
macro_rules! on_every_device {
    ($($test:ident),+ $(,)?) => {
        $(mod $test {
            $crate::on_every_device! {
                @of $test
                flex "flex", ndarray "ndarray", wgpu "wgpu", vulkan "vulkan", metal "metal", cuda "cuda", rocm "rocm",
                cpu "cpu"
            }
        })+
    };
    (@of $test:ident $($backend:ident $name:literal),+) => {
        $(
            #[cfg(feature = $name)]
            #[test]
            fn $backend() {
                super::$test($crate::testing::TestDevice::named($name));
            }
        )+
    };
}

/// Those of [`on_every_device`](crate::on_every_device) whose backend is not the CPU, for what can only go wrong
/// where the host waits for a device. A build without such a backend has none.
#[macro_export]
macro_rules! on_every_gpu {
    ($($test:ident),+ $(,)?) => {
        $(mod $test {
            $crate::on_every_device! {
                @of $test
                wgpu "wgpu", vulkan "vulkan", metal "metal", cuda "cuda", rocm "rocm", cpu "cpu"
            }
        })+
    };
}

/// What the body of a test takes.
pub trait TestDevice {
    /// The device of this name, as `--device` has it.
    ///
    /// # Panics
    ///
    /// When this machine has none.
    fn named(name: &'static str) -> Self;
}

impl TestDevice for Device {
    fn named(name: &'static str) -> Self {
        select(name).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl TestDevice for &'static str {
    fn named(name: &'static str) -> Self {
        let _: Device = TestDevice::named(name);
        name
    }
}

/// Every device of this build.
///
/// # Panics
///
/// When this machine lacks one.
pub fn devices() -> Vec<Device> {
    let compiled = backends().into_iter().filter(|backend| backend.compiled);
    compiled
        .map(|backend| select(backend.devices.first().expect("a device for each backend")).unwrap())
        .collect()
}

/// Values of both signs, about 1 in size, that have nothing to do with each other: sums of their products cancel no
/// further than chance has it, so that the error of a sum stands for the operation and not for the data.
pub fn wave<const D: usize>(shape: [usize; D], phase: f32, device: &Device) -> Tensor<D> {
    let values = noise(shape.iter().product(), phase, 1.0);
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Those of [`wave`], uniform between `−√3 · size` and `√3 · size`, whose variance is `size²`.
pub fn noise(length: usize, phase: f32, size: f32) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(phase.to_bits().into());
    let uniform = Uniform::new(-size * 3f32.sqrt(), size * 3f32.sqrt()).expect("a range");
    uniform.sample_iter(&mut generator).take(length).collect()
}

/// On the host.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Two results differ by more than they may.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {found} differs from {expected}")]
pub struct Differs {
    what: String,
    found: String,
    expected: String,
}

/// Checks that `‖found − expected‖ ≤ tolerance · ‖expected‖`.
///
/// # Errors
///
/// When the difference is larger, is not a number, or the lengths differ.
pub fn assert_close(
    what: &str,
    found: &[f32],
    expected: &[f32],
    tolerance: f64,
) -> Result<(), Differs> {
    let differs = |found: String, expected: String| Differs {
        what: what.to_owned(),
        found,
        expected,
    };
    if found.len() != expected.len() {
        let values = |values: &[f32]| format!("a result of {} values", values.len());
        return Err(differs(values(found), values(expected)));
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    let difference = norm(&mut pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let size = norm(&mut expected.iter().map(|&b| f64::from(b)));
    // A comparison with NaN is false.
    match difference <= tolerance * size {
        true => Ok(()),
        false => Err(differs(
            format!("the result by {difference:.1e}"),
            format!("the expected one, of norm {size:.1e}"),
        )),
    }
}

/// Whether `work` reads nothing from a graphics device: while that records, it refuses readings.
pub fn reads_nothing(device: &Device, mut work: impl FnMut()) -> bool {
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
pub fn on_threads(work: impl Fn() -> Vec<f32> + Send + Sync) {
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
