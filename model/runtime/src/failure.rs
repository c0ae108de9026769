//! A device that fails in the middle of a computation: out of memory, lost, or wrong in itself.
//!
//! Burn tells of it by a panic, often long after the operation that failed, when something is read back.
//! [`guard`] stands around a whole computation and turns that panic into a [`DeviceFailure`]. Memory of the host
//! ends otherwise: see [`crate::allocator`].

use firebox_console::advice::Advice;
use firebox_console::panics::caught;

/// A computation that did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device} {kind}: {cause}")]
pub struct DeviceFailure {
    /// The device's name.
    pub device: String,
    /// What happened to it.
    pub kind: FailureKind,
    /// The innermost cause.
    pub cause: String,
    /// All that was said, on several lines.
    pub message: String,
}

/// What happened to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// A buffer did not fit.
    OutOfMemory,
    /// The driver gave it up, and nothing can be computed on it any more.
    Lost,
    /// Anything else, faults of this program among them.
    Other,
}

impl std::fmt::Display for FailureKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::OutOfMemory => "ran out of memory",
            Self::Lost => "was lost",
            Self::Other => "failed",
        })
    }
}

impl DeviceFailure {
    /// From what a panic said.
    fn new(device: &str, message: String) -> Self {
        let cause = innermost_cause(&message);
        let said = |phrases: &[&str], text: &str| {
            let text = text.to_lowercase();
            phrases.iter().any(|phrase| text.contains(phrase))
        };
        let kind = if said(&MEMORY, &cause) {
            FailureKind::OutOfMemory
        } else if said(&LOST, &message) {
            FailureKind::Lost
        } else {
            FailureKind::Other
        };
        Self {
            device: device.to_owned(),
            kind,
            cause,
            message,
        }
    }

    /// What to do about it; `less_memory` says how this computation needs less, which only its caller knows.
    pub fn advice(&self, less_memory: &str) -> Advice {
        Advice::FAILURE.hint(match self.kind {
            FailureKind::OutOfMemory => format!("{less_memory}, or choose another --device"),
            FailureKind::Lost => {
                "try again, or choose another --device; the system's log may say why the driver gave up".to_owned()
            }
            FailureKind::Other => {
                "see whether another --device does it; RUST_LOG=debug RUST_BACKTRACE=1 show where it happened".to_owned()
            }
        })
    }
}

/// How drivers and CubeCL say that memory is short. An illegal memory access says none of these.
const MEMORY: [&str; 5] = [
    "out of memory",
    "out of device memory",
    "out_of_memory",
    "not enough memory",
    "can't allocate",
];

/// How CubeCL says that a device is gone.
const LOST: [&str; 3] = ["device is poisoned", "device was lost", "device lost"];

/// The line after the last `Caused by:`, or the first line where there is none. What stands around it are the
/// operations that were skipped in consequence, and backtraces.
fn innermost_cause(message: &str) -> String {
    let lines: Vec<&str> = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let after = lines.iter().rposition(|&line| line == "Caused by:");
    let cause = lines.get(after.map_or(0, |line| line + 1));
    cause.copied().unwrap_or("no reason was given").to_owned()
}

/// Computes, and gives back as an error what the device reports by a panic. What was being changed when it failed
/// is of no more use.
///
/// # Errors
///
/// When the computation panics.
pub fn guard<T>(device: &str, computation: impl FnOnce() -> T) -> Result<T, DeviceFailure> {
    caught(computation).map_err(|message| DeviceFailure::new(device, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As CubeCL 0.11.3 said it on software Vulkan.
    const TOO_BIG: &str = "Error while reading data: use `try_to_data` instead to catch the error at runtime: An error happened during execution
Caused by:
  Several failures at once
Caused by:
  The bytes were never written (failure #313, still claiming 12 buffer(s))
  skipped `KernelBinop`: it needed memory ManagedMemoryId { value: 549 }, which carried the failure
Caused by:
  An IO error happened
Caused by:
  can't allocate buffer of size: 576716800
No backtrace available
Asked at:
   0: burn_tensor::bridge
             at /somewhere";

    #[test]
    fn the_innermost_cause_is_told() {
        let failure = guard("wgpu", || panic!("{TOO_BIG}")).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "wgpu ran out of memory: can't allocate buffer of size: 576716800"
        );
        assert_eq!(failure.message, TOO_BIG);
        assert!(
            failure
                .advice("take less")
                .hint
                .unwrap()
                .starts_with("take less, or ")
        );
    }

    #[test]
    fn kinds_are_told_apart() {
        for (message, kind) in [
            (
                "The device is poisoned\nCaused by:\n  Unknown: reset",
                FailureKind::Lost,
            ),
            ("CUDA_ERROR_OUT_OF_MEMORY", FailureKind::OutOfMemory),
            (
                "CUDA_ERROR_ILLEGAL_ADDRESS: illegal memory access",
                FailureKind::Other,
            ),
            ("index out of bounds", FailureKind::Other),
            ("", FailureKind::Other),
        ] {
            let failure = guard("cuda:0", || panic!("{message}")).unwrap_err();
            assert_eq!(failure.kind, kind, "{message}");
            assert!(!failure.to_string().contains('\n'), "{failure}");
        }
    }

    #[test]
    fn what_succeeds_is_given_back() {
        assert_eq!(guard("flex", || 3), Ok(3));
    }
}
