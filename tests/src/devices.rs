//! The devices that a test runs on.

use burn::tensor::Device;
use firebox_model::device;

/// Every backend of this build. A backend that is compiled in and finds no device fails the test: no
/// test is skipped in silence.
pub fn all() -> Vec<(String, Device)> {
    let compiled = device::backends()
        .into_iter()
        .filter(|backend| backend.compiled);
    compiled
        .map(|backend| {
            let name = backend.devices.first().unwrap_or_else(|| {
                panic!(
                    "{} is compiled in, but this machine has no device for it",
                    backend.name
                )
            });
            (name.clone(), device::select(name).expect("a listed device"))
        })
        .collect()
}
