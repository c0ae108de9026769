//! What a device is: its name and driver, its memory, and the types that it computes in.

use burn::tensor::{DType, Device};
use serde::Serialize;

use crate::device::{self, DeviceError};
use crate::memory;

/// What is known of a device; what the system does not tell is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adapter {
    /// Its name for `--device`.
    pub device: String,
    /// As it calls itself, such as `NVIDIA H100 PCIe`.
    pub name: Option<String>,
    /// Such as `CPU`, `discrete GPU` or `integrated GPU`.
    pub kind: Option<&'static str>,
    /// What runs it, such as `Vulkan, llvmpipe 22.3.6`.
    pub driver: Option<String>,
    /// All the memory that it has, in bytes.
    pub memory: Option<u64>,
    /// The largest tensor that it takes, in bytes.
    pub largest_buffer: Option<u64>,
    /// Threads, of a CPU.
    pub threads: Option<usize>,
    /// Types that it stores, converts and computes in.
    pub dtypes: Vec<&'static str>,
}

/// The types that a device is asked for.
const DTYPES: [(&str, DType); 9] = [
    ("f64", DType::F64),
    ("f32", DType::F32),
    ("f16", DType::F16),
    ("bf16", DType::BF16),
    ("i64", DType::I64),
    ("i32", DType::I32),
    ("i16", DType::I16),
    ("i8", DType::I8),
    ("u8", DType::U8),
];

impl Adapter {
    /// Looks at a device; a GPU is opened for it.
    ///
    /// # Errors
    ///
    /// See [`device::select`].
    pub fn of(name: &str) -> Result<Self, DeviceError> {
        let (backend, _) = device::check(name)?;
        let selected = device::select(name)?;
        let dtypes = DTYPES
            .iter()
            .filter(|(_, dtype)| selected.supports_dtype(*dtype));
        let blank = Self {
            device: name.to_owned(),
            name: None,
            kind: None,
            driver: None,
            memory: None,
            largest_buffer: None,
            threads: None,
            dtypes: dtypes.map(|(name, _)| *name).collect(),
        };
        Ok(match backend {
            "flex" | "ndarray" | "cpu" => Self {
                name: processor(),
                kind: Some("CPU"),
                memory: memory::installed(),
                threads: Some(device::threads()),
                ..blank
            },
            _ => blank.with_gpu(&selected),
        })
    }

    /// What CubeCL and wgpu say of a GPU.
    #[cfg(feature = "cube")]
    fn with_gpu(self, device: &Device) -> Self {
        let name = device.identity().map(|identity| identity.name);
        let found = Self { name, ..self };
        #[cfg(feature = "wgpu")]
        let found = found.with_graphics();
        found
    }

    #[cfg(not(feature = "cube"))]
    fn with_gpu(self, _: &Device) -> Self {
        self
    }

    /// What wgpu says of the adapter of this name. CubeCL tells no more than the name, by which the same machine's
    /// adapters are told apart; those of one name are of one kind.
    #[cfg(feature = "wgpu")]
    fn with_graphics(self) -> Self {
        let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        let adapters = wgpu::Instance::new(descriptor).enumerate_adapters(wgpu::Backends::all());
        let found = pollster::block_on(adapters)
            .into_iter()
            .find(|adapter| Some(adapter.get_info().name) == self.name);
        let Some(adapter) = found else {
            return self;
        };
        let info = adapter.get_info();
        let driver = [info.driver, info.driver_info]
            .into_iter()
            .filter(|text| !text.is_empty());
        let driver: Vec<String> = driver.collect();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software on the CPU",
            wgpu::DeviceType::Other => "GPU",
        };
        Self {
            kind: Some(kind),
            driver: Some(format!("{:?}, {}", info.backend, driver.join(" "))),
            // A software adapter's memory is the machine's.
            memory: (info.device_type == wgpu::DeviceType::Cpu)
                .then(memory::installed)
                .flatten(),
            largest_buffer: Some(adapter.limits().max_storage_buffer_binding_size),
            ..self
        }
    }
}

/// What the processor calls itself, where the operating system tells (Linux on x86).
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::on_every_device;

    on_every_device!(a_device_computes_in_f32);

    fn a_device_computes_in_f32(name: &'static str) {
        let adapter = Adapter::of(name).unwrap();
        assert_eq!(adapter.device, name);
        assert!(
            adapter.dtypes.contains(&"f32") && adapter.dtypes.contains(&"i32"),
            "{adapter:?}"
        );
        if name == "flex" {
            assert!(
                adapter.threads.is_some() && adapter.kind == Some("CPU"),
                "{adapter:?}"
            );
        }
        if name == "wgpu" {
            assert!(
                adapter.driver.is_some() && adapter.largest_buffer > Some(1 << 20),
                "{adapter:?}"
            );
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        assert!(matches!(
            Adapter::of("gpu"),
            Err(DeviceError::Unknown { .. })
        ));
    }
}
