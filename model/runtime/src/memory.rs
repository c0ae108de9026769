//! What the process and the machine have in memory.

/// The high-water mark of the process's resident memory in bytes, where the operating system keeps it (Linux).
///
/// `getrusage` exists on more systems, but on Linux its maximum includes the process that started this one: 614 MiB
/// for a child of 13 MiB whose parent had 600 MiB. The devices of a comparison are such children.
pub fn peak() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// All the memory of the machine in bytes, where the operating system tells (Linux).
pub fn installed() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemTotal:")
}

/// Whether addresses cost nothing until they are used (Linux): not under a limit of them, and not where the system
/// promises no memory that it has not got.
pub fn addresses_are_free() -> bool {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"));
    let policy = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    let unlimited = limit.is_some_and(|limit| limit.trim_start().starts_with("unlimited"));
    unlimited && policy.trim() != "2"
}

/// The number in a line of a file that Linux keeps, in bytes.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
