//! The progress of a run on stderr: a bar on a terminal, log lines otherwise.

use firebox_console::progress::Progress;
use firebox_model::evaluate::Evaluation;
use firebox_model::moe::stats::LayerHealth;

use crate::metrics::{SourceLoss, Validation};

/// A progress bar with log lines above it.
#[derive(Debug)]
pub struct ProgressDisplay {
    /// Counts tokens.
    progress: Progress,
    steps: u64,
}

impl ProgressDisplay {
    /// The display of a run of `steps` steps and `tokens` tokens, `done` of them trained. The remaining time is
    /// estimated from tokens, not from steps, because the batch may grow. It shows nothing unless `visible`.
    pub fn new(steps: u64, tokens: u64, done: u64, visible: bool) -> Self {
        Self {
            progress: Progress::shown_if(visible, "first step", tokens).starting_at(done),
            steps,
        }
    }

    /// Reports a finished step: `tokens` are those of the run so far, `batch` those of the step.
    pub fn step(&self, step: u64, loss: f64, tokens: u64, batch: u64) {
        let steps = self.steps;
        self.progress.update(
            tokens,
            format!("step {step}/{steps}  loss {loss:.3}  batch {batch} tokens"),
        );
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
            self.progress.left()
        ));
    }

    /// Reports a running validation: `tokens` of `all` are evaluated.
    pub fn validating(&self, tokens: u64, all: u64) {
        self.progress
            .tell(format!("validating {} %", 100 * tokens / all.max(1)));
    }

    /// Logs a finished validation.
    pub fn validation(&self, step: u64, validation: &Validation) {
        let Evaluation {
            nats_per_token,
            bits_per_byte,
            tokens,
            ..
        } = validation.whole;
        self.line(&format!(
            "step {step:>6}  validation {nats_per_token:.4} nats/token, {bits_per_byte:.4} bits/byte on {tokens} tokens{}",
            by_source(&validation.sources, !validation.captions.is_empty())
        ));
        for loss in &validation.captions {
            self.line(&format!("             {}", loss.sentence()));
        }
    }

    /// Logs a warning.
    pub fn warn(&self, text: &str) {
        self.progress.log(|| tracing::warn!("{text}"));
    }

    fn line(&self, text: &str) {
        self.progress.log(|| tracing::info!("{text}"));
    }
}

/// The losses of sources, in nats per token; of a single one if there are `others` besides.
fn by_source(sources: &[SourceLoss], others: bool) -> String {
    if sources.len() < 2 && !others || sources.is_empty() {
        return String::new();
    }
    let losses = sources.iter().map(|source| {
        let SourceLoss {
            name,
            nats_per_token,
            ..
        } = source;
        format!("{name} {nats_per_token:.4}")
    });
    format!(" ({})", losses.collect::<Vec<_>>().join(", "))
}
