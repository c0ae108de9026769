//! The host's memory: how tensors share it, and what is said when there is none left.

mod large;
mod reporting;

use mimalloc::MiMalloc;

pub use large::Large;
pub use reporting::{Reporting, describe};

/// The allocator of Firebox's programs, as their `#[global_allocator]`: mimalloc, with a place of their own for large
/// blocks, and a sentence in place of an abort.
pub type Allocator = Reporting<Large<MiMalloc>>;

/// An [`Allocator`].
pub const ALLOCATOR: Allocator = Reporting(Large(MiMalloc));

/// `mi_option_purge_delay`, which the bindings lack a name for; retired options keep their numbers.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Lets mimalloc keep what is freed, as [`Large`] does: each step needs it again. This is set for the whole
/// process, so only binaries may call it.
pub fn keep_freed() {
    // SAFETY: sets a number of the allocator.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
}
