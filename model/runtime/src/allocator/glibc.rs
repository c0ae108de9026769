//! The heap of the GNU C library. It joins free neighbors and gives a block the smallest gap that holds it.

use crate::memory;

/// Keeps freed memory in one stretch of addresses for blocks of every size and thread.
pub(super) fn keep_freed() {
    // SAFETY: sets numbers of the allocator.
    #[allow(unsafe_code)]
    unsafe {
        // No large block gets pages of its own, which would go back to the system when it is freed.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        // -1: the end of the heap does not go back either.
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        // One heap. What is free in the heap of one thread would not serve another.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    if memory::addresses_are_free() {
        use_huge_pages();
    }
}

/// Extends the heap by most of the machine's memory and asks for larger pages there: the processor finds them faster,
/// and the system gives fewer. A later extension would be a new mapping, without them. Pages come from the system when
/// they are first touched, so that the process grows by what it uses.
fn use_huge_pages() {
    /// The system refuses to extend a heap by all of its memory.
    const SHARE: (usize, usize) = (7, 8);
    let installed = memory::installed().and_then(|bytes| usize::try_from(bytes).ok());
    let Some(bytes) = installed.map(|bytes| bytes / SHARE.1 * SHARE.0) else {
        return;
    };
    // SAFETY: the block is this function's until it is freed, and the advice is about whole pages within it.
    #[allow(unsafe_code)]
    unsafe {
        let block = libc::malloc(bytes);
        if block.is_null() {
            return;
        }
        let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let skipped = block.align_offset(page);
        let pages = (bytes - skipped) / page * page;
        // Without huge pages the heap is as good as before.
        _ = libc::madvise(block.byte_add(skipped), pages, libc::MADV_HUGEPAGE);
        // The end of the heap, which is not trimmed.
        libc::free(block);
    }
}
