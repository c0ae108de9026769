//! How far a long piece of work is: a bar on a terminal, a line of the log now and then elsewhere.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two lines of the log where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(30);

/// Time between two pictures of a bar that does not advance.
const TICK: Duration = Duration::from_millis(500);

/// Counts towards a total. The bar disappears when this is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    start: Instant,
    /// What was done at the start.
    done_before: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What is being done, in words.
    what: String,
    /// When a line was logged last; `None` where a bar is shown, or nothing.
    logged: Option<Instant>,
}

impl Progress {
    /// Begins `what`, such as `tokenizing 45.6 MB`, at 0 of `total`, which is 0 where it is unknown.
    pub fn new(what: impl Into<String>, total: u64) -> Self {
        Self::shown_if(true, what, total)
    }

    /// The same, which shows nothing unless `visible`.
    pub fn shown_if(visible: bool, what: impl Into<String>, total: u64) -> Self {
        let target = match visible {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        // Where standard error is not a terminal, the bar is hidden.
        let logs = visible && bar.is_hidden();
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        let progress = Self {
            bar,
            start: Instant::now(),
            done_before: 0,
            state: Mutex::new(State {
                what: what.into(),
                logged: logs.then(Instant::now),
            }),
        };
        progress.set_total(total);
        progress.show();
        progress
    }

    /// Begins at `done`, which took no time.
    pub fn starting_at(mut self, done: u64) -> Self {
        self.done_before = done;
        self.set(done);
        self
    }

    /// Changes the total; 0 where it is unknown.
    pub fn set_total(&self, total: u64) {
        let template = match total {
            0 => "{spinner} {elapsed:>4}  {msg}",
            _ => "{bar:30} {percent:>3} %  {msg}",
        };
        let style = ProgressStyle::with_template(template).expect("a constant template");
        self.bar.set_style(style);
        self.bar.set_length(total);
    }

    /// `done` of the total are done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
        self.show();
    }

    /// `done` of the total are done, and `what` is being done.
    pub fn update(&self, done: u64, what: impl Into<String>) {
        self.state().what = what.into();
        self.set(done);
    }

    /// `more` are done.
    pub fn advance(&self, more: u64) {
        self.set(self.bar.position() + more);
    }

    /// Says what is being done.
    pub fn tell(&self, what: impl Into<String>) {
        self.state().what = what.into();
        self.show();
    }

    /// Logs, with the bar out of the way.
    pub fn log(&self, log: impl FnOnce()) {
        self.bar.suspend(log);
        if let Some(logged) = &mut self.state().logged {
            *logged = Instant::now();
        }
    }

    /// Time that is left, as a remark such as `, 1:05 left`; empty where it cannot be estimated yet.
    pub fn left(&self) -> String {
        left(
            self.start.elapsed(),
            self.done_before,
            self.bar.position(),
            self.total(),
        )
    }

    fn total(&self) -> u64 {
        self.bar.length().unwrap_or_default()
    }

    fn show(&self) {
        let mut state = self.state();
        if !self.bar.is_hidden() {
            self.bar
                .set_message(format!("{}{}", state.what, self.left()));
        } else if let Some(logged) = &mut state.logged
            && logged.elapsed() >= INTERVAL
        {
            *logged = Instant::now();
            tracing::info!("{}", self.line(&state));
        }
    }

    /// What the log says.
    fn line(&self, state: &State) -> String {
        let percent = match self.total() {
            0 => String::new(),
            total => format!(": {} %", percent(self.bar.position(), total)),
        };
        format!("{}{percent}{}", state.what, self.left())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing that holds it panics.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn percent(done: u64, total: u64) -> u128 {
    100 * u128::from(done) / u128::from(total)
}

/// At the mean speed since the start.
fn left(elapsed: Duration, done_before: u64, done: u64, total: u64) -> String {
    if done <= done_before || done >= total {
        return String::new();
    }
    let seconds = elapsed.as_secs_f64() * (total - done) as f64 / (done - done_before) as f64;
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!(", {minutes}:{seconds:02} left"),
        _ => format!(", {hours}:{minutes:02}:{seconds:02} left"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_the_mean_speed() {
        let after =
            |seconds, before, done, total| left(Duration::from_secs(seconds), before, done, total);
        // 20 took 10 seconds, and 130 are left.
        assert_eq!(after(10, 50, 70, 200), ", 1:05 left");
        assert_eq!(after(100, 0, 1, 101), ", 2:46:40 left");
        assert_eq!(
            [
                after(10, 50, 50, 200),
                after(10, 0, 5, 0),
                after(10, 0, 5, 5)
            ],
            [""; 3]
        );
    }

    #[test]
    fn what_is_done_is_counted() {
        let progress = Progress::shown_if(false, "counting", 0).starting_at(3);
        assert_eq!(progress.line(&progress.state()), "counting");
        progress.set_total(8);
        progress.advance(1);
        progress.update(progress.bar.position() + 1, "counting on");
        assert_eq!(
            progress.line(&progress.state()),
            "counting on: 62 %, 0:00 left"
        );
        progress.set(8);
        assert_eq!(progress.line(&progress.state()), "counting on: 100 %");
    }
}
