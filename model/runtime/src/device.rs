//! Names of devices, such as `flex` or `wgpu:1`, and what this build and this machine offer.

use burn::backend::DispatchDevice;
#[cfg(feature = "cube")]
use burn::tensor::DeviceType;
use burn::tensor::{Device, Tensor};
use firebox_console::advice::{Advice, Advise};
use serde::Serialize;

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not a name that any build knows.
    #[error("device = {name}: unknown; a device is one of {}", known().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A backend that this build was made without.
    #[error("device = {name}: this build has no `{backend}` backend")]
    NotCompiled {
        /// What was asked for.
        name: String,
        /// The Cargo feature that brings it.
        backend: &'static str,
    },
    /// The backend is there, the adapter is not.
    #[error("device = {name}: {found} {backend} adapter(s) found on this machine")]
    NoAdapter {
        /// What was asked for.
        name: String,
        /// The backend.
        backend: &'static str,
        /// How many adapters it sees.
        found: usize,
    },
}

impl Advise for DeviceError {
    fn advice(&self) -> Advice {
        Advice::USAGE.hint(match self {
            Self::Unknown { .. } => "`cargo infer devices` lists those of this machine".to_owned(),
            Self::NotCompiled { backend, .. } => format!(
                "build with it: `cargo run --release --bin firebox-train --features {backend} -- run …`, and `--bin firebox-infer` for `cargo infer`"
            ),
            Self::NoAdapter { backend: "wgpu" | "vulkan", found: 0, .. } => {
                "install a Vulkan driver; Debian's mesa-vulkan-drivers brings one that runs on the CPU".to_owned()
            }
            Self::NoAdapter { backend, .. } => {
                format!("`cargo infer devices` lists the {backend} adapters; count from 0")
            }
        })
    }
}

/// A backend and what it finds here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Its name in `--device`, and its Cargo feature.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
    /// Whether this build has it.
    pub compiled: bool,
    /// Names for `--device`, one an adapter.
    pub devices: Vec<String>,
}

/// A row for each backend that Firebox knows.
struct Known {
    name: &'static str,
    description: &'static str,
    compiled: bool,
    /// Whether a machine may have several, told apart by a number.
    numbered: bool,
}

const BACKENDS: [Known; 8] = [
    Known {
        name: "flex",
        description: "Burn's flex CPU backend, with Firebox's own kernels; recommended on a CPU",
        compiled: cfg!(feature = "flex"),
        numbered: false,
    },
    Known {
        name: "ndarray",
        description: "plain tensor operations on the ndarray CPU backend: the reference that others are compared with",
        compiled: cfg!(feature = "ndarray"),
        numbered: false,
    },
    Known {
        name: "wgpu",
        description: "any GPU by Vulkan, Metal or DirectX 12; software Vulkan too",
        compiled: cfg!(feature = "wgpu"),
        numbered: true,
    },
    Known {
        name: "vulkan",
        description: "any GPU by Vulkan, its shaders compiled to SPIR-V without a detour",
        compiled: cfg!(feature = "vulkan"),
        numbered: true,
    },
    Known {
        name: "metal",
        description: "Apple's GPUs, by Metal's own shaders",
        compiled: cfg!(feature = "metal"),
        numbered: true,
    },
    Known {
        name: "cuda",
        description: "NVIDIA GPUs",
        compiled: cfg!(feature = "cuda"),
        numbered: true,
    },
    Known {
        name: "rocm",
        description: "AMD GPUs",
        compiled: cfg!(feature = "rocm"),
        numbered: true,
    },
    Known {
        name: "cpu",
        description: "the GPU kernels, compiled for the CPU by LLVM",
        compiled: cfg!(feature = "cpu"),
        numbered: false,
    },
];

/// What a device can be called.
fn known() -> Vec<String> {
    let names = BACKENDS.iter().map(|backend| match backend.numbered {
        true => format!("{0}, {0}:N", backend.name),
        false => backend.name.to_owned(),
    });
    names.collect()
}

/// The device that is used when none is named.
pub fn default_name() -> &'static str {
    BACKENDS
        .iter()
        .find(|backend| backend.compiled)
        .map_or("flex", |backend| backend.name)
}

/// Lets the CPU backends use so many threads; by default one for each physical core, since two on one core
/// share its vector units. Results do not depend on the number. Must come before the first computation; later
/// calls change nothing.
pub fn set_threads(threads: Option<usize>) {
    let threads = threads.unwrap_or_else(num_cpus::get_physical);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    if let Err(error) = pool.build_global() {
        tracing::debug!("threads stay as they are: {error}");
    }
}

/// Waits until a tensor is computed, by reading its first value back: a device may still be at work when a call
/// returns, and on some what is read comes only when it is looked at. Work that came before on the same device is
/// done then too.
pub fn finish<const D: usize>(tensor: Tensor<D>) {
    let elements = tensor.shape().num_elements();
    let first = tensor.reshape([elements]).narrow(0, 0, 1).into_data();
    std::hint::black_box(first.iter::<f32>().sum::<f32>());
}

/// Which kernels run the operations of `firebox-kernels` on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Those over slices of this machine's memory: `flex`.
    Slices,
    /// Those in CubeCL: GPUs, and `cpu`.
    Cube,
    /// None. Plain tensor operations run instead, so that the numbers are independent of every kernel: `ndarray`.
    None,
}

/// Which kernels a device has, with autodiff or without.
pub fn kernels(device: &Device) -> Kernels {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => Kernels::Slices,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => Kernels::None,
        _ => Kernels::Cube,
    }
}

/// Whether tensors of a device lie in this machine's memory.
pub fn is_host(device: &Device) -> bool {
    kernels(device) != Kernels::Cube
}

/// Threads that the CPU backends use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Every backend that Firebox knows, compiled in or not.
pub fn backends() -> Vec<Backend> {
    BACKENDS
        .iter()
        .map(|backend| {
            let name = backend.name;
            let devices = match adapters(name).len() {
                0 => Vec::new(),
                1 => vec![name.to_owned()],
                many => (0..many).map(|index| format!("{name}:{index}")).collect(),
            };
            Backend {
                name,
                description: backend.description,
                compiled: backend.compiled,
                devices,
            }
        })
        .collect()
}

/// The device of a name: a backend, or `backend:index` where there can be several.
///
/// # Errors
///
/// When the name is unknown, this build lacks the backend, or the machine lacks the adapter.
pub fn select(name: &str) -> Result<Device, DeviceError> {
    let (backend, index) = check(name)?;
    let mut found = adapters(backend);
    if index >= found.len() {
        return Err(DeviceError::NoAdapter {
            name: name.to_owned(),
            backend,
            found: found.len(),
        });
    }
    Ok(found.swap_remove(index))
}

/// Backend and index of a name, without a look at the machine.
///
/// # Errors
///
/// When the name is unknown, or this build lacks the backend.
pub fn check(name: &str) -> Result<(&'static str, usize), DeviceError> {
    let unknown = || DeviceError::Unknown {
        name: name.to_owned(),
    };
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => (backend, index.parse::<usize>().map_err(|_| unknown())?),
        None => (name, 0),
    };
    let known = BACKENDS
        .iter()
        .find(|known| known.name == backend)
        .ok_or_else(unknown)?;
    if name.contains(':') && !known.numbered {
        return Err(unknown());
    }
    match known.compiled {
        true => Ok((known.name, index)),
        false => Err(DeviceError::NotCompiled {
            name: name.to_owned(),
            backend: known.name,
        }),
    }
}

/// The devices of one backend; none where this build lacks it.
fn adapters(backend: &str) -> Vec<Device> {
    match backend {
        #[cfg(feature = "flex")]
        "flex" => vec![Device::flex()],
        #[cfg(feature = "ndarray")]
        #[allow(deprecated)] // deprecated upstream; kept as the reference
        "ndarray" => vec![Device::ndarray()],
        #[cfg(feature = "wgpu")]
        "wgpu" => listed(DeviceType::Wgpu),
        #[cfg(feature = "vulkan")]
        "vulkan" => listed(DeviceType::Vulkan),
        #[cfg(feature = "metal")]
        "metal" => listed(DeviceType::Metal),
        #[cfg(feature = "cuda")]
        "cuda" => listed(DeviceType::Cuda),
        #[cfg(feature = "rocm")]
        "rocm" => listed(DeviceType::Rocm),
        #[cfg(feature = "cpu")]
        "cpu" => vec![Device::cpu()],
        _ => Vec::new(),
    }
}

/// What Burn finds on this machine.
#[cfg(feature = "cube")]
fn listed(kind: DeviceType) -> Vec<Device> {
    Device::enumerate(kind).into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in [
            "",
            "gpu",
            "flex:0",
            "ndarray:1",
            "wgpu:x",
            "cuda:-1",
            "cpu:0",
            "Flex",
        ] {
            assert!(
                matches!(select(name), Err(DeviceError::Unknown { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn a_missing_backend_says_how_to_get_it() {
        let error = DeviceError::NotCompiled {
            name: "cuda:0".to_owned(),
            backend: "cuda",
        };
        assert_eq!(
            error.to_string(),
            "device = cuda:0: this build has no `cuda` backend"
        );
        assert!(error.hint().unwrap().contains("--features cuda"));
    }

    #[test]
    fn the_default_is_compiled_in() {
        assert!(select(default_name()).is_ok());
    }
}
