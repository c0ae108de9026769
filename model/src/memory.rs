//! What the process and the machine have in memory.

/// The high-water mark of the process's resident memory in bytes, where the operating system keeps it (Linux).
pub fn peak() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// All the memory of the machine in bytes, where the operating system tells (Linux).
pub fn installed() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemTotal:")
}

/// The number in a line of a file that Linux keeps, in bytes.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
