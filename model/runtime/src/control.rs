//! What a binary and the long work that it started tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The exit code of a process that an interrupt ended (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// A request to stop, whether the work heeds it, and the step that is being computed. Clones share all of it.
#[derive(Debug, Clone, Default)]
pub struct Control {
    stop: Arc<AtomicBool>,
    heeds_stop: Arc<AtomicBool>,
    step: Arc<AtomicU64>,
}

impl Control {
    /// Asks the work to end at the next point where nothing is lost.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Says that the work looks at [`stop_requested`](Self::stop_requested) from now on. Until then, an interrupt
    /// ends the process at once.
    pub fn heed_stop(&self) {
        self.heeds_stop.store(true, Ordering::Relaxed);
    }

    /// Whether the work should end.
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Says which step is being computed, from 1; 0 before the first.
    pub fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// The step that is being computed, from 1; `None` before the first.
    pub fn step(&self) -> Option<u64> {
        match self.step.load(Ordering::Relaxed) {
            0 => None,
            step => Some(step),
        }
    }

    /// Requests a stop at the first Ctrl-C (SIGINT, SIGTERM or SIGHUP), after printing `message` where there is
    /// one; the second ends the process at once, and so does the first where the work does not
    /// [heed](Self::heed_stop) it. The handler is set for the whole process, so only binaries may call this.
    pub fn stop_on_interrupt(&self, message: Option<&'static str>) {
        let control = self.clone();
        let handler = move || {
            let stopped_before = control.stop.swap(true, Ordering::Relaxed);
            if stopped_before || !control.heeds_stop.load(Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
            if let Some(message) = message {
                eprintln!("\n{message}");
            }
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C will end the process at once: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_what_they_say() {
        let control = Control::default();
        let clone = control.clone();
        assert!(!control.stop_requested());
        assert_eq!(control.step(), None);
        clone.request_stop();
        clone.set_step(3);
        assert!(control.stop_requested());
        assert_eq!(control.step(), Some(3));
    }
}
