//! One optimizer step.

use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use firebox_model::batch::Sequence;
use firebox_model::config::FeedForwardKind;
use firebox_model::language_model::LanguageModel;
use firebox_model::moe::balance::update_bias;
use firebox_model::moe::stats::LayerHealth;

use crate::config::RunConfig;
use crate::data::TrainingStream;
use crate::error::TrainError;
use crate::gradient::forward_backward;
use crate::optimizer::{AdamW, clip_scale};
use crate::schedule::learning_rate_fraction;
use crate::state::Progress;

/// The state that a step updates.
#[derive(Debug)]
pub struct TrainingState {
    /// The model, on an autodiff device.
    pub model: LanguageModel,
    /// The optimizer with its moments.
    pub optimizer: AdamW,
    /// The progress of the run.
    pub progress: Progress,
    device: Device,
}

/// The figures of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepResult {
    /// Cross-entropy of the batch in nats per token, without auxiliary terms.
    pub loss: f64,
    /// The loss plus the auxiliary terms, which the gradient is taken of.
    pub total_loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Number of tokens in the batch.
    pub tokens: u64,
    /// Duration of the step.
    pub seconds: f64,
    /// Router health per layer; empty for a dense model.
    pub layers: Vec<LayerHealth>,
}

impl TrainingState {
    /// The state of a run at its start or after a resume.
    pub fn new(
        model: LanguageModel,
        optimizer: AdamW,
        progress: Progress,
        device: &Device,
    ) -> Self {
        Self {
            model: model.train(),
            optimizer,
            progress,
            device: device.clone().autodiff(),
        }
    }

    /// Takes one step: accumulates the gradient over micro-batches, clips it, applies AdamW, and updates the routers'
    /// selection bias.
    ///
    /// # Errors
    ///
    /// When the tokens cannot be read, or when the loss or the gradient is not finite.
    pub fn step(
        mut self,
        config: &RunConfig,
        stream: &TrainingStream,
    ) -> Result<(Self, StepResult), TrainError> {
        let started = Instant::now();
        let step = self.progress.step;
        let count = config
            .schedule
            .batch_tokens
            .sequences_at(step, config.model.context);
        let range = self.progress.sequences..self.progress.sequences + count;
        let sequences = range.map(|index| stream.sequence(index));
        let sequences: Vec<Sequence> = sequences.collect::<Result<_, _>>()?;
        let tokens: u64 = sequences.iter().map(|sequence| sequence.valid as u64).sum();

        let batch = forward_backward(
            &self.model,
            &sequences,
            config.train.micro_batch,
            &self.device,
        );
        let norm = batch.gradient_norm;
        for (what, value) in [("loss", batch.total_loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(TrainError::Diverged {
                    step: step + 1,
                    what,
                    value,
                });
            }
        }
        let fraction = learning_rate_fraction(&config.schedule, step, config.train.steps);
        let learning_rate = config.optimizer.learning_rate * fraction;
        let scale = clip_scale(norm, config.optimizer.clip_norm);
        self.model = self.optimizer.step(
            self.model,
            batch.gradients,
            scale,
            learning_rate,
            &config.optimizer,
        );
        if config.model.router.bias_update_rate > 0.0
            && config.model.feed_forward == FeedForwardKind::Moe
        {
            let mut biases = self.model.router_bias();
            for (bias, counts) in biases.iter_mut().zip(batch.health.tokens_per_expert()) {
                update_bias(bias, counts, config.model.router.bias_update_rate);
            }
            self.model.set_router_bias(&biases);
        }

        let seconds = started.elapsed().as_secs_f64();
        self.progress.step += 1;
        self.progress.sequences += count;
        self.progress.tokens += tokens;
        self.progress.seconds += seconds;
        let result = StepResult {
            loss: batch.loss,
            total_loss: batch.total_loss,
            learning_rate,
            gradient_norm: norm,
            tokens,
            seconds,
            layers: batch.health.health(),
        };
        Ok((self, result))
    }
}
