//! Fused operations of mixture-of-experts transformers on Burn, each beside a reference in plain tensor operations.
//!
//! ```
//! use burn::tensor::Tensor;
//! use firebox_kernels::{rms_norm, rms_norm_reference};
//! use firebox_runtime::device;
//!
//! let device = device::select(device::default_name())?;
//! let x = Tensor::<2>::from_floats([[3.0, 4.0], [1.0, -1.0]], &device);
//! let gamma = Tensor::<1>::from_floats([1.0, 2.0], &device);
//! let fused = rms_norm(x.clone(), gamma.clone(), 1e-6);
//! let plain = rms_norm_reference(x, gamma, 1e-6);
//! let difference: f32 = (fused - plain).abs().max().into_scalar();
//! assert!(difference < 1e-6);
//! # Ok::<(), device::DeviceError>(())
//! ```
//!
//! # Anatomy of an operation
//!
//! An operation is a folder, or a file where it is small. [`rms_norm()`] is the one to read first.
//!
//! - `mod.rs`: the public function with formula, shapes and panics; the reference beside it, or in `reference.rs`; the
//!   operation as a struct; the trait by which Burn finds the backend of a tensor.
//! - `kernel.rs`, or `forward.rs` and `backward.rs`: Rust over slices, which knows no tensors.
//! - `host.rs`: tensors to slices and back, for `flex`.
//! - `cube.rs`: CubeCL, for GPUs and `cpu`.
//! - `tests.rs`: a number to check by hand; values and gradients against the reference, on every device.
//!
//! What they share: `operation` (the bridge to autodiff), `host` (products of matrices, vector instructions, memory) and
//! `cube` (launches and sums).
//!
//! Products of matrices take a [`Precision`]: in bf16 a factor can be rounded once for many products
//! (`host::product`), into the order in which the units for bf16 read it (`host::panels`): the tiles of a CPU with AMX
//! (`host::amx`), or vectors of AVX-512 (`host::avx512`).
//!
//! Which of them runs, [`device::kernels`](firebox_runtime::device::kernels) decides by the device. `ndarray` has no
//! kernels: there every operation is its reference, so that a comparison with `ndarray` is one with independent numbers.
//!
//! # Sums
//!
//! Sums are taken in an order that depends on shapes alone, never on the number of threads or on atomics, so that two
//! runs give the same bits. Some sums of Burn are not like that: on `flex`, 4 Mi values and more are added up in the
//! order in which threads steal work, and a view that is not contiguous by a single f32. So [`sum_of_rows()`],
//! [`sum_of_squares()`] and [`cross_entropy_sum()`] serve wherever a sum runs over tokens or parameters.

mod adamw;
mod attention;
pub mod bandwidth;
mod collective;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
pub mod dispatch;
pub mod dtype;
mod embedding;
mod experts;
mod gelu;
mod host;
mod layer_norm;
mod linear;
mod muon;
mod operation;
mod peak;
mod precision;
mod rms_norm;
pub mod rope;
mod sum_of_rows;
mod sum_of_squares;
mod weight;

pub use adamw::{AdamWUpdate, adamw, adamw_reference};
pub use attention::{
    AttentionInput, AttentionSpec, BiasedInput, CachedInput, HIDDEN, KeyRanges, PlacedSegment,
    Segment, Segments, SharedInput, attention, attention_reference, biased_attention,
    biased_attention_reference, biased_weights, cached_attention, cached_attention_reference,
    shared_attention, shared_attention_reference,
};
pub use collective::{Collective, collective};
pub use cross_entropy::{cross_entropy_sum, cross_entropy_sum_reference};
pub use embedding::embedding;
pub use experts::{
    Activation, ExpertBiases, ExpertWeights, experts, experts_reference, steps, swiglu,
    swiglu_reference,
};
pub use gelu::{gelu, gelu_reference};
pub use host::product::Bf16Unit;
pub use host::{awake, latency_bound};
pub use layer_norm::{layer_norm, layer_norm_reference};
pub use linear::{linear, linear_reference, linear_transposed};
pub use muon::{MuonUpdate, Turns, muon, muon_reference};
pub use peak::matrix_peak;
pub use precision::Precision;
pub use rms_norm::{rms_norm, rms_norm_reference};
pub use sum_of_rows::{sum_in_blocks, sum_of_rows};
pub use sum_of_squares::{sum_of_squares, sum_of_squares_reference};
pub use weight::{Int8, LargeWeight, Weight, block_scale};
