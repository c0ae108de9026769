//! The host's memory: what a program keeps of it from one step to the next, and what it says when there is none left.
//!
//! A training step asks for the same blocks as the step before: gradients of tens of megabytes, and activations in
//! between. If an allocator gives them back in between, the system zeroes each page again, which took 44 % of a step.
//! If it keeps them, but each for blocks of its own size, the process grows past what it uses. So freed blocks have to
//! stay, and free neighbors have to become one: [`keep_freed`].
//!
//! The GNU C library does both when it is told to, and is used where it is the system's. Elsewhere mimalloc is, which
//! keeps what is freed, but holds large blocks apart.

#[cfg_attr(all(target_os = "linux", target_env = "gnu"), path = "glibc.rs")]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    path = "mimalloc.rs"
)]
mod inner;
mod reporting;

pub use inner::keep_freed;
pub use reporting::{Reporting, describe};

/// The allocator of Firebox's programs, as their `#[global_allocator]`: an error message in place of an abort.
pub type Allocator = Reporting<inner::Inner>;

/// An [`Allocator`].
pub const ALLOCATOR: Allocator = Reporting(inner::INNER);
