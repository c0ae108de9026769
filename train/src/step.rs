//! One optimizer step, whoever asks for it.

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
use crate::schedule::learning_rate_share;
use crate::state::Progress;

/// What a step changes.
#[derive(Debug)]
pub struct Training {
    /// The model, with gradients.
    pub model: LanguageModel,
    /// Its moments.
    pub optimizer: AdamW,
    /// How far the run has come.
    pub progress: Progress,
    device: Device,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Cross-entropy of the batch in nats per token, without auxiliary terms.
    pub loss: f64,
    /// What the gradient was taken of: the loss and the auxiliary terms.
    pub total_loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens of the batch.
    pub tokens: u64,
    /// How long it took.
    pub seconds: f64,
    /// Router health by layer; empty for a dense model.
    pub layers: Vec<LayerHealth>,
}

impl Training {
    /// What a run starts or goes on with, on its device.
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

    /// A batch in micro-batches, clipping, AdamW, the routers' bias.
    ///
    /// # Errors
    ///
    /// When the loss or the gradient is not finite.
    pub fn step(
        mut self,
        config: &RunConfig,
        stream: &TrainingStream,
    ) -> Result<(Self, Step), TrainError> {
        let started = Instant::now();
        let step = self.progress.step;
        let count = config
            .schedule
            .batch_tokens
            .sequences_at(step, config.model.context);
        let range = self.progress.sequences..self.progress.sequences + count;
        let sequences: Vec<Sequence> = range.map(|index| stream.sequence(index)).collect();
        let tokens: u64 = sequences.iter().map(|sequence| sequence.valid as u64).sum();

        let result = forward_backward(
            &self.model,
            &sequences,
            config.train.micro_batch,
            &self.device,
        );
        let norm = result.gradient_norm;
        for (what, value) in [("loss", result.total_loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(TrainError::Diverged {
                    step: step + 1,
                    what,
                    value,
                });
            }
        }
        let share = learning_rate_share(&config.schedule, step, config.train.steps);
        let learning_rate = config.optimizer.learning_rate * share;
        let scale = clip_scale(norm, config.optimizer.clip_norm);
        self.model = self.optimizer.step(
            self.model,
            result.gradients,
            scale,
            learning_rate,
            &config.optimizer,
        );
        if config.model.router.bias_update_rate > 0.0
            && config.model.feed_forward == FeedForwardKind::Moe
        {
            let mut biases = self.model.router_bias();
            for (bias, counts) in biases.iter_mut().zip(result.health.tokens_per_expert()) {
                update_bias(bias, counts, config.model.router.bias_update_rate);
            }
            self.model.set_router_bias(&biases);
        }

        let seconds = started.elapsed().as_secs_f64();
        self.progress.step += 1;
        self.progress.sequences += count;
        self.progress.tokens += tokens;
        self.progress.seconds += seconds;
        let taken = Step {
            loss: result.loss,
            total_loss: result.total_loss,
            learning_rate,
            gradient_norm: norm,
            tokens,
            seconds,
            layers: result.health.health(),
        };
        Ok((self, taken))
    }
}
