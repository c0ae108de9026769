//! What this build and this machine can compute on.

use std::fmt;

use firebox_model::device::{self, Backend, DeviceError};
use serde::Serialize;

/// Every backend that Firebox knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Devices(Vec<Offer>);

/// A backend, and how to get at it where it is missing.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Offer {
    #[serde(flatten)]
    backend: Backend,
    /// How to get it; none where it has a device.
    hint: Option<String>,
}

impl Devices {
    /// Looks at the build and at the machine.
    pub fn find() -> Self {
        Self::of(device::backends())
    }

    fn of(backends: Vec<Backend>) -> Self {
        Self(backends.into_iter().map(Offer::new).collect())
    }
}

impl Offer {
    fn new(backend: Backend) -> Self {
        let name = backend.name;
        let hint = match (backend.compiled, backend.devices.is_empty()) {
            (false, _) => Some(build_hint(name)),
            (true, true) => {
                let error = DeviceError::NoAdapter {
                    name: name.to_owned(),
                    backend: name,
                    found: 0,
                };
                Some(error.hint())
            }
            (true, false) => None,
        };
        Self { backend, hint }
    }
}

/// How to build this program with a backend.
pub fn build_hint(backend: &str) -> String {
    format!("build with it: cargo run --release --bin firebox-infer --features {backend} -- …")
}

impl fmt::Display for Devices {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Offer { backend, hint } in &self.0 {
            let state = match (backend.compiled, backend.devices.is_empty()) {
                (false, _) => "not in this build",
                (true, true) => "no device",
                (true, false) => "ready",
            };
            writeln!(
                formatter,
                "{:<8}  {state:<17}  {}",
                backend.name, backend.description
            )?;
            if !backend.devices.is_empty() {
                writeln!(
                    formatter,
                    "          --device {}",
                    backend.devices.join(", ")
                )?;
            }
            if let Some(hint) = hint {
                writeln!(formatter, "          {hint}")?;
            }
        }
        writeln!(formatter, "\nWithout --device: {}", device::default_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(compiled: bool, devices: &[&str]) -> Backend {
        let devices = devices.iter().map(|&name| name.to_owned()).collect();
        Backend {
            name: "wgpu",
            description: "any GPU",
            compiled,
            devices,
        }
    }

    #[test]
    fn what_is_missing_says_how_to_get_it() {
        let text = Devices::of(vec![backend(false, &[])]).to_string();
        assert!(
            text.contains("not in this build") && text.contains("--features wgpu"),
            "{text}"
        );
        let text = Devices::of(vec![backend(true, &[])]).to_string();
        assert!(
            text.contains("no device") && text.contains("Vulkan"),
            "{text}"
        );
        let text = Devices::of(vec![backend(true, &["wgpu:0", "wgpu:1"])]).to_string();
        assert!(
            text.contains("ready") && text.contains("--device wgpu:0, wgpu:1"),
            "{text}"
        );
        assert!(!text.contains("build with it"), "{text}");
    }

    #[test]
    fn the_default_device_is_ready() {
        let Devices(offers) = Devices::find();
        let default = offers
            .iter()
            .find(|offer| offer.backend.name == device::default_name());
        assert_eq!(default.unwrap().hint, None);
    }
}
