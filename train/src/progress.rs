//! What a person sees of a run: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal};
use std::time::Duration;

use firebox_model::evaluate::Evaluation;
use firebox_model::moe::stats::LayerHealth;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bar, and the lines above it.
#[derive(Debug)]
pub struct ProgressDisplay {
    bar: ProgressBar,
}

impl ProgressDisplay {
    /// A run of `steps`, of which `done` are done.
    ///
    /// # Panics
    ///
    /// Never: the template is constant.
    pub fn new(steps: u64, done: u64) -> Self {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} step {pos}/{len}  {msg}  {eta} left")
            .expect("a constant template");
        let bar = ProgressBar::with_draw_target(Some(steps), target)
            .with_style(style)
            .with_position(done);
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar }
    }

    /// A step is done.
    pub fn step(&self, step: u64, loss: f64, tokens: u64) {
        self.bar
            .set_message(format!("loss {loss:.3}  batch {tokens} tokens"));
        self.bar.set_position(step);
    }

    /// A logged step.
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
            "step {step:>6}  loss {loss:.4}  rate {learning_rate:.2e}  norm {norm:.2}  {tokens_per_second:.0} tokens/s{experts}{}",
            self.time_left()
        ));
    }

    /// A validation is under way.
    pub fn validating(&self, tokens: u64, all: u64) {
        self.bar
            .set_message(format!("validating {}%", 100 * tokens / all.max(1)));
    }

    /// A validation is done.
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

    /// Something that a person should look into.
    pub fn warn(&self, text: &str) {
        self.bar.suspend(|| tracing::warn!("{text}"));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| tracing::info!("{text}"));
    }

    /// On a terminal the bar says it.
    fn time_left(&self) -> String {
        let left = self.bar.eta().as_secs();
        if !self.bar.is_hidden() || left == 0 {
            return String::new();
        }
        format!("  {}:{:02} left", left / 60, left % 60)
    }
}
