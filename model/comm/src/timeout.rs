//! How long an operation waits.

use std::time::{Duration, Instant};

/// The time at which an operation stops waiting, which progress of the other ranks may put off. `None` waits
/// indefinitely.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeout(Option<Instant>);

impl Timeout {
    /// Waits indefinitely.
    pub(crate) const NEVER: Self = Self(None);

    /// So long from now on.
    pub(crate) fn after(longest: Duration) -> Self {
        // A time that the clock cannot express does not come.
        Self(Instant::now().checked_add(longest))
    }

    /// Whether the time has come.
    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// What is left; [`Duration::MAX`] if it never comes.
    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |time| {
            time.saturating_duration_since(Instant::now())
        })
    }
}
