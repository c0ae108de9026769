//! The progress of a run on stderr: a bar on a terminal, log lines otherwise.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use firebox_model::evaluate::Evaluation;
use firebox_model::moe::stats::LayerHealth;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar with log lines above it.
#[derive(Debug)]
pub struct ProgressDisplay {
    bar: ProgressBar,
    steps: u64,
    /// Start of this process, and the number of tokens done at that time.
    start: (Instant, u64),
}

impl ProgressDisplay {
    /// The display of a run of `steps` steps and `tokens` tokens, `done` of them trained. The remaining time is
    /// estimated from tokens, not from steps, because the batch may grow.
    ///
    /// # Panics
    ///
    /// Never, because the template is a valid constant.
    pub fn new(steps: u64, tokens: u64, done: u64) -> Self {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {percent}%  {msg}")
            .expect("a constant template");
        let bar = ProgressBar::with_draw_target(Some(tokens), target)
            .with_style(style)
            .with_position(done);
        bar.enable_steady_tick(Duration::from_millis(500));
        Self {
            bar,
            steps,
            start: (Instant::now(), done),
        }
    }

    /// Reports a finished step: `tokens` are those of the run so far, `batch` those of the step.
    pub fn step(&self, step: u64, loss: f64, tokens: u64, batch: u64) {
        self.bar.set_position(tokens);
        let Self { steps, .. } = self;
        let left = self.time_left();
        self.bar.set_message(format!(
            "step {step}/{steps}  loss {loss:.3}  batch {batch} tokens{left}"
        ));
    }

    /// Logs a step.
    pub fn log(
        &self,
        step: u64,
        loss: f64,
        learning_rate: f64,
        norm: f64,
        tokens_per_second: f64,
        layers: &[LayerHealth],
    ) {
        let largest = layers
            .iter()
            .map(|layer| layer.max_over_mean)
            .fold(0.0, f64::max);
        let dead: usize = layers.iter().map(|layer| layer.dead_experts).sum();
        let experts = if layers.is_empty() {
            String::new()
        } else {
            format!("  experts max/mean {largest:.2}, dead {dead}")
        };
        self.line(&format!(
            "step {step:>6}  loss {loss:.4}  lr {learning_rate:.2e}  grad norm {norm:.2}  {tokens_per_second:.0} tokens/s{experts}{}",
            self.time_left()
        ));
    }

    /// Reports a running validation: `tokens` of `all` are evaluated.
    pub fn validating(&self, tokens: u64, all: u64) {
        self.bar
            .set_message(format!("validating {}%", 100 * tokens / all.max(1)));
    }

    /// Logs a finished validation.
    pub fn validation(&self, step: u64, evaluation: &Evaluation) {
        let Evaluation {
            nats_per_token,
            bits_per_byte,
            tokens,
            ..
        } = evaluation;
        self.line(&format!(
            "step {step:>6}  validation {nats_per_token:.4} nats/token, {bits_per_byte:.4} bits/byte on {tokens} tokens"
        ));
    }

    /// Logs a warning.
    pub fn warn(&self, text: &str) {
        self.bar.suspend(|| tracing::warn!("{text}"));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| tracing::info!("{text}"));
    }

    /// The remaining time at this process's mean speed so far, validations and checkpoints included.
    fn time_left(&self) -> String {
        let (start, done_before) = self.start;
        let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if done <= done_before || done >= all {
            return String::new();
        }
        let seconds =
            start.elapsed().as_secs_f64() * (all - done) as f64 / (done - done_before) as f64;
        let seconds = seconds.round() as u64;
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match hours {
            0 => format!("  {minutes}:{seconds:02} left"),
            _ => format!("  {hours}:{minutes:02}:{seconds:02} left"),
        }
    }
}
