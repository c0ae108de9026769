//! Large blocks side by side.
//!
//! A training step asks for the same blocks as the one before: weights' gradients of tens of megabytes, and activations
//! in between. General allocators hold such blocks apart, each in a stretch of memory of its own; what one leaves free
//! serves none of another size, and the process grows past what it uses (mimalloc: 4.5 GB for 3.4). If they give the
//! stretches back in between, the system zeroes each page anew, which took 44 % of a step.
//!
//! Here one stretch of addresses, as long as the machine has memory, holds all of them. A block takes the smallest gap
//! that it fits in, free neighbours become one gap, and what was touched once is never given back: the system gives
//! each page once. Of steps that repeat each other the process is as large as what they hold at most, and 2 % more for
//! gaps that no block fits in. The price is that a process never becomes smaller than it was.

use std::alloc::{GlobalAlloc, Layout};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, OnceLock, PoisonError};

use memmap2::{MmapMut, MmapOptions};
use range_alloc::RangeAllocator;

use crate::memory;

/// The least bytes of a large block.
const LARGE: usize = 1 << 20;

/// What addresses and sizes of large blocks are multiples of.
const PAGE: usize = 4096;

/// An allocator whose large blocks lie side by side; the others are the inner one's, and so are those for which there is
/// no room, or where the operating system does not tell how much memory there is, or counts addresses as if they were
/// memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Large<A>(pub A);

/// Addresses for large blocks. The pages behind them come from the system when they are first touched.
#[derive(Debug)]
struct Region {
    addresses: Range<usize>,
    gaps: Mutex<Gaps>,
    /// What the addresses are of; never read or written through this.
    _memory: MmapMut,
}

#[derive(Debug)]
struct Gaps {
    free: RangeAllocator<usize>,
    blocks: usize,
    /// No block reached further yet: from here on there are zeros.
    untouched: usize,
}

/// A block of the region, and whether it still holds the system's zeros from an address on.
struct Block {
    pointer: NonNull<u8>,
    touched: usize,
}

/// The most blocks at a time. There is at most one gap more, and the list of gaps, which grows while it is locked, has
/// to stay a small block itself.
const BLOCKS: usize = LARGE / size_of::<Range<usize>>() / 4;

/// That of this process; none, where the system gave none.
fn region() -> Option<&'static Region> {
    static REGION: OnceLock<Option<Region>> = OnceLock::new();
    REGION
        .get_or_init(|| {
            let free = memory::addresses_are_free();
            Region::reserve(free.then(memory::installed).flatten()?)
        })
        .as_ref()
}

impl Region {
    fn reserve(bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok()? / PAGE * PAGE;
        let mut memory = MmapOptions::new()
            .len(bytes)
            .no_reserve_swap()
            .map_anon()
            .ok()?;
        // Fewer, larger pages, where the system has such; it is no less memory without.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let start = memory.as_mut_ptr().expose_provenance();
        let addresses = start..start + bytes;
        Some(Self {
            gaps: Mutex::new(Gaps {
                free: RangeAllocator::new(addresses.clone()),
                blocks: 0,
                untouched: start,
            }),
            addresses,
            _memory: memory,
        })
    }

    /// A block of so many bytes, where there is a gap for it.
    fn take(&self, bytes: usize) -> Option<Block> {
        let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        if gaps.blocks == BLOCKS {
            return None;
        }
        let block = gaps.free.allocate_range(pages(bytes)?).ok()?;
        let touched = gaps.untouched.clamp(block.start, block.end) - block.start;
        gaps.untouched = gaps.untouched.max(block.end);
        gaps.blocks += 1;
        let pointer = ptr::with_exposed_provenance_mut(block.start);
        NonNull::new(pointer).map(|pointer| Block { pointer, touched })
    }

    fn contains(&self, pointer: *mut u8) -> bool {
        self.addresses.contains(&pointer.addr())
    }

    /// Makes a gap of a block of this region.
    fn free(&self, block: Range<usize>) {
        let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        gaps.free.free_range(block);
        gaps.blocks -= 1;
    }

    /// Makes a gap of the end of a block that stays.
    fn free_end(&self, end: Range<usize>) {
        if !end.is_empty() {
            let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
            gaps.free.free_range(end);
        }
    }
}

/// Bytes of the pages that so many fill.
fn pages(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(PAGE)
}

/// A block for what counts as large.
fn take(layout: Layout) -> Option<Block> {
    let large = layout.size() >= LARGE && layout.align() <= PAGE;
    large.then(region).flatten()?.take(layout.size())
}

/// The region, when the pointer is of one of its blocks.
fn owner(pointer: *mut u8, size: usize) -> Option<&'static Region> {
    let large = size >= LARGE;
    large
        .then(region)
        .flatten()
        .filter(|region| region.contains(pointer))
}

// SAFETY: a block of the region is a range of its addresses that nobody else has until it is freed, on a page's border,
// and of at least the size that was asked for; whatever is not one of those went to the inner allocator, and goes there
// again.
#[allow(unsafe_code)]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Large<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some(block) => block.pointer.as_ptr(),
            // SAFETY: the caller's promise.
            None => unsafe { self.0.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(block) = take(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { self.0.alloc_zeroed(layout) };
        };
        let pointer = block.pointer.as_ptr();
        // SAFETY: `touched` is at most the block's length, and the block is ours.
        unsafe { pointer.write_bytes(0, block.touched) };
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match owner(pointer, layout.size()).zip(pages(layout.size())) {
            Some((region, length)) => region.free(pointer.addr()..pointer.addr() + length),
            // SAFETY: the caller's promise.
            None => unsafe { self.0.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let owner = owner(pointer, layout.size());
        let lengths = pages(layout.size()).zip(pages(size));
        match (owner, lengths) {
            (None, _) if size < LARGE || region().is_none() => {
                // SAFETY: the caller's promise.
                return unsafe { self.0.realloc(pointer, layout, size) };
            }
            (Some(region), Some((old, new))) if size >= LARGE && new <= old => {
                region.free_end(pointer.addr() + new..pointer.addr() + old);
                return pointer;
            }
            _ => {}
        }
        // SAFETY: the caller promises that the size, rounded up to the alignment, is one of a block; both blocks hold at
        // least the smaller size, and are not the same one.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(pointer, new, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::System;

    use proptest::prelude::*;

    use super::*;

    /// What is done with one of some blocks.
    #[derive(Debug, Clone)]
    enum Act {
        Allocate { bytes: usize, zeroed: bool },
        Resize { place: usize, bytes: usize },
        Free { place: usize },
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let bytes = || prop_oneof![1usize..5000, LARGE - 2..LARGE + 2, LARGE..3 * LARGE];
        let act = prop_oneof![
            3 => (bytes(), any::<bool>()).prop_map(|(bytes, zeroed)| Act::Allocate { bytes, zeroed }),
            1 => (any::<usize>(), bytes()).prop_map(|(place, bytes)| Act::Resize { place, bytes }),
            2 => any::<usize>().prop_map(|place| Act::Free { place }),
        ];
        prop::collection::vec(act, 1..60)
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 64).unwrap()
    }

    /// A block that holds one number from end to end.
    struct Marked {
        pointer: *mut u8,
        bytes: usize,
        mark: u8,
    }

    #[allow(unsafe_code)]
    impl Marked {
        fn mark(pointer: *mut u8, bytes: usize, mark: u8) -> Self {
            // SAFETY: a block of so many bytes.
            unsafe { pointer.write_bytes(mark, bytes) };
            Self {
                pointer,
                bytes,
                mark,
            }
        }

        /// Whether so many bytes still hold the number.
        fn holds(&self, bytes: usize) -> bool {
            // SAFETY: written from end to end.
            let values = unsafe { std::slice::from_raw_parts(self.pointer, bytes) };
            values.iter().all(|&value| value == self.mark)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        #[allow(unsafe_code)]
        fn no_block_touches_another(acts in acts()) {
            let allocator = Large(System);
            let mut blocks: Vec<Marked> = Vec::new();
            for (mark, act) in (1..).zip(acts) {
                match act {
                    Act::Allocate { bytes, zeroed } => {
                        // SAFETY: the layout is of at least one byte; zeroed blocks may be read.
                        let pointer = unsafe {
                            match zeroed {
                                true => allocator.alloc_zeroed(layout(bytes)),
                                false => allocator.alloc(layout(bytes)),
                            }
                        };
                        prop_assert!(pointer.addr().is_multiple_of(64));
                        if zeroed {
                            let block = Marked { pointer, bytes, mark: 0 };
                            prop_assert!(block.holds(bytes));
                        }
                        blocks.push(Marked::mark(pointer, bytes, mark));
                    }
                    Act::Resize { place, bytes } if !blocks.is_empty() => {
                        let place = place % blocks.len();
                        let mut block = blocks.swap_remove(place);
                        // SAFETY: the block's own layout, and at least one byte.
                        block.pointer = unsafe {
                            allocator.realloc(block.pointer, layout(block.bytes), bytes)
                        };
                        prop_assert!(block.holds(bytes.min(block.bytes)));
                        blocks.push(Marked::mark(block.pointer, bytes, mark));
                    }
                    Act::Free { place } if !blocks.is_empty() => {
                        let place = place % blocks.len();
                        let block = blocks.swap_remove(place);
                        prop_assert!(block.holds(block.bytes));
                        // SAFETY: the block's own layout.
                        unsafe { allocator.dealloc(block.pointer, layout(block.bytes)) };
                    }
                    _ => {}
                }
            }
            for block in blocks {
                prop_assert!(block.holds(block.bytes));
                // SAFETY: the block's own layout.
                unsafe { allocator.dealloc(block.pointer, layout(block.bytes)) };
            }
        }
    }

    #[test]
    fn a_gap_serves_blocks_of_other_sizes_and_a_full_region_none() {
        let region = Region::reserve(8 * LARGE as u64).expect("addresses");
        let address = |block: &Block| block.pointer.addr().get();
        let [first, second] = [3, 5].map(|size| region.take(size * LARGE).expect("room"));
        assert!(region.take(LARGE).is_none());
        let start = address(&first);
        assert_eq!(address(&second), start + 3 * LARGE);
        region.free(start..start + 3 * LARGE);
        region.free(start + 3 * LARGE..start + 8 * LARGE);
        let whole = region.take(8 * LARGE - 1).expect("one gap");
        assert_eq!((address(&whole), whole.touched), (start, 8 * LARGE));
    }
}
