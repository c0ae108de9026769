//! What a person sees of a run: a bar on a terminal, lines elsewhere.

use firebox_console::progress::Progress;
use firebox_model::evaluate::Evaluation;
use firebox_model::moe::stats::LayerHealth;

/// The bar, and the lines above it.
#[derive(Debug)]
pub struct ProgressDisplay {
    /// Of tokens, for the batch may grow.
    progress: Progress,
    steps: u64,
}

impl ProgressDisplay {
    /// A run of `steps` and `tokens`, of which `done` tokens are done.
    pub fn new(steps: u64, tokens: u64, done: u64) -> Self {
        Self {
            progress: Progress::new("first step", tokens).starting_at(done),
            steps,
        }
    }

    /// A step is done; `tokens` of the run are, and `batch` were its own.
    pub fn step(&self, step: u64, loss: f64, tokens: u64, batch: u64) {
        let steps = self.steps;
        self.progress.update(
            tokens,
            format!("step {step}/{steps}  loss {loss:.3}  batch {batch} tokens"),
        );
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
            self.progress.left()
        ));
    }

    /// A validation is under way.
    pub fn validating(&self, tokens: u64, all: u64) {
        self.progress
            .tell(format!("validating {} %", 100 * tokens / all.max(1)));
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
        self.progress.log(|| tracing::warn!("{text}"));
    }

    fn line(&self, text: &str) {
        self.progress.log(|| tracing::info!("{text}"));
    }
}
