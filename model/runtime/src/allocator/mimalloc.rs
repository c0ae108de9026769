//! What mimalloc does with freed memory.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// `mi_option_purge_delay`, in milliseconds; the bindings lack a name for it.
const PURGE_DELAY: mi_option_t = 15;

/// Keeps freed memory.
pub(super) fn keep_freed() {
    // SAFETY: sets a number of the allocator.
    #[allow(unsafe_code)]
    unsafe {
        mi_option_set(PURGE_DELAY, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A renumbering of mimalloc's options would show: no other one has this default.
    #[test]
    fn the_option_is_the_purge_delay() {
        // SAFETY: reads a number of the allocator.
        #[allow(unsafe_code)]
        let delay = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay, 1000);
    }
}
