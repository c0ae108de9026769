//! The machine that Firebox runs on: the names of devices and what a machine offers of each, adapters, threads, memory, and devices that fail.
//!
//! ```
//! use firebox_runtime::device;
//!
//! let device = device::select(device::default_name())?;
//! assert!(device::is_host(&device));
//! # Ok::<(), device::DeviceError>(())
//! ```

pub mod adapter;
pub mod allocator;
pub mod control;
pub mod device;
pub mod failure;
pub mod memory;
pub mod testing;
