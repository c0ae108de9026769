//! How far along a long step is: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts bytes towards a total.
#[derive(Debug)]
pub(super) struct Progress {
    label: String,
    bar: ProgressBar,
    /// When the last line was logged; `None` where a bar shows, or nothing is to be shown.
    logged: Option<Instant>,
}

impl Progress {
    /// Begins at 0 of `total` bytes (0 when unknown); shows nothing unless `visible`.
    pub fn new(label: impl Into<String>, total: u64, visible: bool) -> Self {
        let label = label.into();
        let terminal = io::stderr().is_terminal();
        let bar = if visible && terminal {
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_style(style)
                .with_message(label.clone())
        } else {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
        };
        Self {
            label,
            bar,
            logged: (visible && !terminal).then(Instant::now),
        }
    }

    /// `bytes` more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        if let Some(logged) = &mut self.logged
            && logged.elapsed() >= INTERVAL
        {
            *logged = Instant::now();
            let done = megabytes(self.bar.position());
            let total = megabytes(self.bar.length().unwrap_or_default());
            tracing::info!("data: {}: {done} of {total} MB", self.label);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Bytes in units of 10⁶, for people.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}
