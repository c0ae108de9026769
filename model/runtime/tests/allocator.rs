//! Freed memory serves blocks of other sizes, in other threads, without a page from the system.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn main() {
    use std::fs;
    use std::path::Path;
    use std::thread;

    use firebox_runtime::{allocator, memory};

    const LARGE: usize = 64 << 20;

    /// The times that the system gave this process a page.
    fn page_faults() -> u64 {
        let text = fs::read_to_string("/proc/self/stat").expect("Linux");
        let fields = text.rsplit_once(") ").expect("a name in parentheses").1;
        let minor = fields.split(' ').nth(7).expect("a tenth field");
        minor.parse().expect("a number")
    }

    /// Touches every page of a new block of so many bytes, and says at which address it was.
    fn use_and_free(bytes: usize) -> usize {
        let block = vec![1u8; bytes];
        block.as_ptr().addr()
    }

    /// The flags of the mapping that holds an address.
    fn flags(address: usize) -> String {
        let maps = fs::read_to_string("/proc/self/smaps").expect("Linux");
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| {
                let (start, end) = range.split_once('-')?;
                let address = |text| usize::from_str_radix(text, 16).ok();
                Some(address(start)?..address(end)?)
            });
            match (range, line.strip_prefix("VmFlags:")) {
                (Some(range), _) => inside = range.contains(&address),
                (None, Some(flags)) if inside => return flags.to_owned(),
                _ => {}
            }
        }
        panic!("no mapping holds {address:#x}");
    }

    allocator::keep_freed();
    let first = use_and_free(LARGE);
    let before = page_faults();
    let second = thread::spawn(|| use_and_free(LARGE / 4 * 3));
    let second = second.join().expect("a block");
    let faults = page_faults() - before;
    assert!(
        (first..first + LARGE).contains(&second),
        "{second:#x} is not in the {LARGE} bytes at {first:#x}"
    );
    // The stack of the thread takes some. The block has 12,288 pages, or 24 huge ones.
    assert!(faults < 20, "{faults} page faults");
    let has_huge_pages = Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    if has_huge_pages && memory::addresses_are_free() {
        // Its start may lie in the part of the heap that was there before.
        let flags = flags(first + LARGE / 2);
        assert!(flags.contains(" hg"), "no huge pages: {flags}");
    }
}

/// mimalloc's option has a test of its own.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn main() {}
