//! The host's memory: how tensors share it, and what is said when there is none left.

mod large;
mod reporting;

use mimalloc::MiMalloc;

pub use large::Large;
pub use reporting::{Reporting, Work, at_step, working};

/// The allocator of Firebox's programs, as their `#[global_allocator]`: mimalloc, with a place of their own for large
/// blocks, and a sentence in place of an abort.
pub type Allocator = Reporting<Large<MiMalloc>>;

/// An [`Allocator`].
pub const ALLOCATOR: Allocator = Reporting(Large(MiMalloc));
