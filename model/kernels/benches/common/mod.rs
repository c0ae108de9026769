//! What the benchmarks share: every device of the build, and values to work on.

use std::fmt;

use burn::tensor::{Device, Distribution, Tensor};
use firebox_runtime::device::{backends, select};

/// A device, by its name, and sizes.
pub struct Case<const N: usize> {
    device: String,
    pub sizes: [usize; N],
}

impl<const N: usize> Case<N> {
    pub fn device(&self) -> Device {
        select(&self.device).expect("a device of the build")
    }
}

impl<const N: usize> fmt::Display for Case<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.device, self.sizes)
    }
}

/// All sizes on the first device of each backend.
pub fn cases<const N: usize>(sizes: &[[usize; N]]) -> impl Iterator<Item = Case<N>> {
    let compiled = backends().into_iter().filter(|backend| backend.compiled);
    let devices = compiled.filter_map(|backend| backend.devices.into_iter().next());
    devices.flat_map(move |device| {
        sizes.iter().map(move |&sizes| Case {
            device: device.clone(),
            sizes,
        })
    })
}

/// Normal values.
pub fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}
