//! What the tests of all crates share: one test a device.

use burn::tensor::Device;

use crate::device::select;

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
