//! The host's memory: what a program keeps of it from one step to the next, and what it says when there is none left.
//!
//! A training step asks for the same blocks as the step before: gradients of tens of megabytes, and activations in
//! between. If an allocator gives them back in between, the system zeroes each page again, which took 44 % of a step.
//! If it keeps them, but each for blocks of its own size, the process grows past what it uses. So freed blocks have to
//! stay, and free neighbors have to become one: [`keep_freed`].
//!
//! The GNU C library does both when it is told to, and has the large blocks where it is the system's (`by_size.rs`).
//! Elsewhere mimalloc has all of them; it keeps what is freed, but holds large blocks apart.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod by_size;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc;
mod mimalloc;
mod reporting;

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
use ::mimalloc::MiMalloc as Inner;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use by_size::BySize as Inner;

pub use reporting::{Reporting, describe};

/// The allocator of Firebox's programs, as their `#[global_allocator]`: an error message in place of an abort.
pub type Allocator = Reporting<Inner>;

/// An [`Allocator`].
pub const ALLOCATOR: Allocator = Reporting(Inner);

/// Keeps freed memory for the next step. A process never becomes smaller than it was. This is set for the whole process,
/// so only binaries may call it, before they start threads.
pub fn keep_freed() {
    mimalloc::keep_freed();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::keep_freed();
}
