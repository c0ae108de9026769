//! `cargo infer devices`: the backends of this build and the devices of this machine.

use std::fmt;

use firebox_console::advice::Advise as _;
use firebox_console::numbers;
use firebox_kernels::{Bf16Unit, Precision};
use firebox_runtime::adapter::Adapter;
use firebox_runtime::device::{self, Backend, DeviceError};
use serde::Serialize;

/// Every backend that Firebox knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Devices(Vec<Offer>);

/// A backend, its devices, and how to get it if it has none.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Offer {
    #[serde(flatten)]
    backend: Backend,
    /// Properties of each device.
    adapters: Vec<Properties>,
    /// How to get a device; `None` if there is one.
    hint: Option<String>,
}

/// Properties of a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Properties {
    #[serde(flatten)]
    adapter: Adapter,
    /// What multiplies in bf16; `None` if nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    bf16_products: Option<Bf16Unit>,
}

impl Properties {
    fn of(name: &str) -> Result<Self, DeviceError> {
        let runs = Precision::Bf16.runs_on(&device::select(name)?);
        Ok(Self {
            adapter: Adapter::of(name)?,
            bf16_products: runs.then(Bf16Unit::of_this_machine),
        })
    }
}

impl Devices {
    /// Lists the backends of this build and the devices of this machine; GPUs are opened.
    ///
    /// # Errors
    ///
    /// When a listed device can no longer be opened.
    pub fn find() -> Result<Self, DeviceError> {
        let offer = |backend: Backend| {
            let adapters = backend.devices.iter().map(|name| Properties::of(name));
            let adapters = adapters.collect::<Result<_, _>>()?;
            Ok(Offer::new(backend, adapters))
        };
        let offers = device::backends().into_iter().map(offer);
        Ok(Self(offers.collect::<Result<_, _>>()?))
    }
}

impl Offer {
    fn new(backend: Backend, adapters: Vec<Properties>) -> Self {
        let name = backend.name;
        let hint = match (backend.compiled, backend.devices.is_empty()) {
            (false, _) => Some(build_hint(name)),
            (true, true) => {
                let error = DeviceError::NoAdapter {
                    name: name.to_owned(),
                    backend: name,
                    found: 0,
                };
                error.hint()
            }
            (true, false) => None,
        };
        Self {
            backend,
            adapters,
            hint,
        }
    }

    fn state(&self) -> &'static str {
        match (self.backend.compiled, self.backend.devices.is_empty()) {
            (false, _) => "not in this build",
            (true, true) => "no device",
            (true, false) => "ready",
        }
    }
}

/// How to build this program with a backend.
pub fn build_hint(backend: &str) -> String {
    format!("build with it: cargo run --release --bin firebox-infer --features {backend} -- …")
}

impl fmt::Display for Devices {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for offer in &self.0 {
            let Backend {
                name, description, ..
            } = &offer.backend;
            writeln!(formatter, "{name:<8}  {:<17}  {description}", offer.state())?;
            for properties in &offer.adapters {
                writeln!(
                    formatter,
                    "          --device {}",
                    properties.adapter.device
                )?;
                for (name, value) in facts(properties) {
                    writeln!(formatter, "            {name:<15}  {value}")?;
                }
            }
            if let Some(hint) = &offer.hint {
                writeln!(formatter, "          {hint}")?;
            }
        }
        writeln!(formatter, "\nDefault device: {}", device::default_name())
    }
}

/// Properties of a device, one per line.
fn facts(properties: &Properties) -> Vec<(&'static str, String)> {
    let Properties {
        adapter,
        bf16_products,
    } = properties;
    let called = [adapter.name.as_deref(), adapter.kind];
    let called: Vec<&str> = called.into_iter().flatten().collect();
    let size = |bytes: u64| numbers::bytes(bytes.into());
    let lines = [
        ("name", (!called.is_empty()).then(|| called.join(", "))),
        ("driver", adapter.driver.clone()),
        ("memory", adapter.memory.map(size)),
        ("largest tensor", adapter.largest_buffer.map(size)),
        (
            "threads",
            adapter.threads.map(|threads| threads.to_string()),
        ),
        ("dtypes", Some(adapter.dtypes.join(", "))),
        ("bf16 products", bf16_products.map(|unit| unit.to_string())),
    ];
    let known = lines.into_iter();
    known
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(compiled: bool, names: &[&str]) -> String {
        let devices: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let adapter = |device: &String| Properties {
            bf16_products: Some(Bf16Unit::Amx),
            adapter: Adapter {
                device: device.clone(),
                name: Some("Tender 4".to_owned()),
                kind: Some("discrete GPU"),
                driver: Some("Vulkan, steam 1829".to_owned()),
                memory: Some(8 << 30),
                largest_buffer: None,
                threads: None,
                dtypes: vec!["f32", "f16"],
            },
        };
        let adapters = devices.iter().map(adapter).collect();
        let backend = Backend {
            name: "wgpu",
            description: "any GPU",
            compiled,
            devices,
        };
        Devices(vec![Offer::new(backend, adapters)]).to_string()
    }

    #[test]
    fn a_missing_backend_or_device_has_a_hint() {
        let text = offer(false, &[]);
        assert!(
            text.contains("not in this build") && text.contains("--features wgpu"),
            "{text}"
        );
        let text = offer(true, &[]);
        assert!(
            text.contains("no device") && text.contains("Vulkan"),
            "{text}"
        );
    }

    #[test]
    fn a_device_is_listed_with_its_known_properties() {
        let text = offer(true, &["wgpu:0", "wgpu:1"]);
        for part in [
            "ready",
            "--device wgpu:0\n",
            "--device wgpu:1\n",
            "Tender 4, discrete GPU",
            "steam 1829",
            "8.00 GiB",
            "f32, f16",
            "bf16 products    AMX",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        for part in ["build with it", "threads", "largest tensor"] {
            assert!(!text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn the_default_device_is_ready() {
        let Devices(offers) = Devices::find().unwrap();
        let default = offers
            .iter()
            .find(|offer| offer.backend.name == device::default_name());
        let default = default.unwrap();
        assert_eq!((default.hint.as_ref(), default.adapters.len()), (None, 1));
    }
}
