//! One optimizer step.

use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use firebox_model::language_model::LanguageModel;
use firebox_model::moe::balance::update_bias;
use firebox_model::moe::stats::LayerHealth;
use firebox_model::parameters::train_only;

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::gradient::gradient_of;
use crate::learned::Learned;
use crate::optimizer::{AdamW, clip_scale};
use crate::rows::{Row, Stream};
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
    /// The state of a run at its start or after a resume. What the optimizer does not train has no gradient, and takes no time
    /// for one.
    pub fn new(
        model: LanguageModel,
        optimizer: AdamW,
        progress: Progress,
        device: &Device,
    ) -> Self {
        let learned = optimizer.learned();
        let model = train_only(model.train(), |path| learned.includes(path));
        Self {
            model,
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
    pub fn step<S: Stream>(
        mut self,
        config: &RunConfig,
        stream: &S,
    ) -> Result<(Self, StepResult), TrainError> {
        let started = Instant::now();
        let step = self.progress.step;
        let count = config
            .schedule
            .batch_tokens
            .sequences_at(step, config.model.context_length);
        let range = self.progress.sequences..self.progress.sequences + count;
        let rows = range.map(|index| stream.row(index));
        let rows: Vec<S::Row> = rows.collect::<Result<_, _>>()?;
        let tokens: u64 = rows.iter().map(Row::targets).sum();

        let learned = self.optimizer.learned().clone();
        let batch = gradient_of(
            &learned,
            &self.model,
            &rows,
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
        let moe = config.model.moe.as_ref();
        if let Some(rate) = moe.map(|moe| moe.router.bias_update_rate)
            && rate > 0.0
            && learned == Learned::Everything
        {
            let mut biases = self.model.router_bias();
            for (bias, counts) in biases.iter_mut().zip(batch.health.tokens_per_expert()) {
                update_bias(bias, counts, rate);
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

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use firebox_model::parameters::{MapParameter, map};

    use super::*;
    use crate::data::{TrainingStream, prepare};
    use crate::testing::{SmallRun, bits, default_device};

    fn start(config: &RunConfig) -> (TrainingState, TrainingStream) {
        let device = default_device();
        let prepared = prepare(config, false).unwrap();
        let (context, seed) = (config.model.context_length, config.train.seed);
        let stream = prepared.training_stream(context, seed, config.sequences());
        let model = LanguageModel::random(&config.model, seed, &device);
        let training = TrainingState::new(model, AdamW::default(), Progress::default(), &device);
        (training, stream.unwrap())
    }

    #[test]
    fn a_step_moves_weights_bias_and_progress() {
        let config = SmallRun::new();
        let config = config.config(&["model.router.bias_update_rate=0.25"]);
        let (training, stream) = start(&config);
        let before = bits(&training.model);
        let (training, first) = training.step(&config, &stream).unwrap();
        // Three sequences of eight tokens; the first of two steps of the warm-up.
        assert_eq!((first.tokens, first.learning_rate), (24, 0.005));
        assert!((first.loss - 257f64.ln()).abs() < 0.1, "{first:?}");
        assert!(first.total_loss > first.loss && first.gradient_norm > 0.0);
        let moved = bits(&training.model);
        for (before, after) in before.iter().zip(&moved) {
            assert_ne!(before, after);
        }
        // The expert with fewer tokens is raised and the other one lowered, by 0.25 each.
        let load = &first.layers[0].load;
        let expected = match load[0].total_cmp(&load[1]) {
            std::cmp::Ordering::Less => [0.25, -0.25],
            std::cmp::Ordering::Equal => [0.0, 0.0],
            std::cmp::Ordering::Greater => [-0.25, 0.25],
        };
        assert_eq!(training.model.router_bias(), [expected]);
        let (training, second) = training.step(&config, &stream).unwrap();
        assert_eq!((second.tokens, second.learning_rate), (24, 0.01));
        let Progress {
            step,
            sequences,
            tokens,
            seconds,
            ..
        } = training.progress;
        assert_eq!((step, sequences, tokens), (2, 6, 48));
        assert_eq!(seconds, first.seconds + second.seconds);
        assert_eq!(training.optimizer.steps(), 2);
    }

    #[test]
    fn numbers_that_are_not_finite_end_the_run() {
        struct Infinite;
        impl MapParameter for Infinite {
            fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
                match path {
                    "head" => value.full_like(f32::INFINITY),
                    _ => value,
                }
            }
        }
        let run = SmallRun::new();
        let config = run.config(&[]);
        let (mut training, stream) = start(&config);
        training.model = map(training.model, &mut Infinite);
        let error = training.step(&config, &stream).unwrap_err();
        assert!(
            matches!(error, TrainError::Diverged { step: 1, what: "loss", value } if value.is_nan()),
            "{error:?}"
        );
    }
}
