//! One optimizer step.

use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use firebox_kernels::awake;
use firebox_model::config::{BalanceKind, RouterConfig};
use firebox_model::language_model::LanguageModel;
use firebox_model::moe::balance::update_bias;
use firebox_model::moe::quantile::BatchScores;
use firebox_model::moe::stats::{HealthSums, LayerHealth};
use firebox_model::parameters::train_only;
use rayon::prelude::*;

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::gradient::gradient_of;
use crate::learned::Learned;
use crate::optimizer::{Optimizer, clip_scale};
use crate::ranks::{RankRecord, checksum};
use crate::rows::Stream;
use crate::schedule::learning_rate_fraction;
use crate::state::Progress;

/// The state that a step updates.
#[derive(Debug)]
pub struct TrainingState {
    /// The model, on an autodiff device.
    pub model: LanguageModel,
    /// The optimizer with its moments.
    pub optimizer: Optimizer,
    /// The progress of the run.
    pub progress: Progress,
    device: Device,
    /// Of the weights of one of several ranks, after some of the steps.
    checksum: Option<u32>,
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
    /// What each rank has done.
    pub ranks: Vec<RankRecord>,
}

impl TrainingState {
    /// The state of a run at its start or after a resume. What the optimizer does not train has no gradient, and takes no time
    /// for one.
    pub fn new(
        model: LanguageModel,
        optimizer: Optimizer,
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
            checksum: None,
        }
    }

    /// Compares the weights of every rank with those that the last step left there, if it left a checksum.
    ///
    /// # Errors
    ///
    /// When those of a rank have changed.
    pub fn check_weights(&self) -> Result<(), TrainError> {
        let Some(left) = self.checksum else {
            return Ok(());
        };
        let changed = self.optimizer.team().all(checksum(&self.model) != left);
        match changed.iter().position(|&changed| changed) {
            Some(rank) => Err(TrainError::WeightsChanged {
                step: self.progress.step,
                rank,
            }),
            None => Ok(()),
        }
    }

    /// Takes one step: accumulates the gradient over micro-batches, clips it, updates the weights, and updates the routers'
    /// selection bias.
    ///
    /// # Errors
    ///
    /// When the tokens cannot be read; when the loss or the gradient is not finite; when the weights of a rank have changed
    /// since the step before.
    pub fn step<S: Stream>(
        self,
        config: &RunConfig,
        stream: &S,
    ) -> Result<(Self, StepResult), TrainError> {
        let device = self.device.clone();
        awake(&device, || self.step_awake(config, stream))
    }

    fn step_awake<S: Stream>(
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
        // No more rows fit into memory than this type counts.
        let share = self.optimizer.team().share(count as usize);
        let seen = self.progress.sequences;
        let rows = share.into_par_iter();
        let rows = rows.map(|row| stream.row(seen + row as u64));
        // Of several errors, that of the first row.
        let rows: Vec<Result<S::Row, _>> = rows.collect();
        let rows: Vec<S::Row> = rows.into_iter().collect::<Result<_, _>>()?;

        let batch = gradient_of(
            &self.optimizer,
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
        self.check_weights()?;
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
        if let Some(moe) = &config.model.moe
            && *self.optimizer.learned() == Learned::Everything
        {
            let biases = moved(
                &moe.router,
                self.model.router_bias(),
                &batch.health,
                &batch.scores,
            );
            self.model.set_router_bias(&biases);
        }

        // Those of a single rank have nobody to be told.
        let is_checked =
            !self.optimizer.team().is_alone() && (step + 1).is_multiple_of(config.train.log_every);
        self.checksum = is_checked.then(|| checksum(&self.model));

        let seconds = started.elapsed().as_secs_f64();
        self.progress.step += 1;
        self.progress.sequences += count;
        self.progress.tokens += batch.tokens;
        self.progress.seconds += seconds;
        let result = StepResult {
            loss: batch.loss,
            total_loss: batch.total_loss,
            learning_rate,
            gradient_norm: norm,
            tokens: batch.tokens,
            seconds,
            layers: batch.health.health(),
            ranks: batch.ranks,
        };
        Ok((self, result))
    }
}

/// The routers' selection biases after a batch.
fn moved(
    router: &RouterConfig,
    mut biases: Vec<Vec<f32>>,
    health: &HealthSums,
    scores: &BatchScores,
) -> Vec<Vec<f32>> {
    if router.balance == BalanceKind::Quantile {
        return scores.balancing_biases(&biases);
    }
    if router.bias_update_rate > 0.0 {
        for (bias, counts) in biases.iter_mut().zip(health.tokens_per_expert()) {
            update_bias(bias, counts, router.bias_update_rate);
        }
    }
    biases
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Tensor, TensorData};
    use firebox_model::batch::Sequence;
    use firebox_model::parameters::{MapParameter, map};

    use super::*;
    use crate::data::{TrainingStream, prepare};
    use crate::gradient::forward_backward;
    use crate::ranks::{Team, TrainLayout, launch};
    use crate::rows::Row;
    use crate::testing::{SmallRun, bits, default_device};

    fn start(config: &RunConfig) -> (TrainingState, TrainingStream) {
        start_among(config, &Team::default())
    }

    fn start_among(config: &RunConfig, team: &Team) -> (TrainingState, TrainingStream) {
        let device = default_device();
        let prepared = prepare(config, false).unwrap();
        let (context, seed) = (config.model.context_length, config.train.seed);
        let stream = prepared.training_stream(context, seed, config.sequences());
        let model = LanguageModel::random(&config.model, seed, &device);
        let muon = config.optimizer.muon;
        let optimizer = Optimizer::new(&config.model, muon, Learned::Everything, team);
        let training = TrainingState::new(model, optimizer, Progress::default(), &device);
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
    fn quantile_balancing_sets_the_biases_that_its_batch_asks_for() {
        for scores in ["softmax", "sigmoid"] {
            let run = SmallRun::new();
            let scores = format!("model.router.scores={scores}");
            let config = run.config(&["model.router.balance=quantile", &scores]);
            let (training, stream) = start(&config);
            let rows = (0..3).map(|index| stream.row(index).unwrap());
            let rows: Vec<Sequence> = rows.collect();
            let device = default_device().autodiff();
            let batch = forward_backward(&training.model, &rows, 8, &device);
            // Two experts, one a token: the ones in front of the other by more than the difference of the biases.
            let ahead = {
                let batch = Sequence::batch(&rows, &training.model, &device);
                let routing = training.model.forward_batch(&batch).routing;
                let scores: Vec<f32> = routing[0].selection_scores().into_data().iter().collect();
                let ahead = scores.chunks(2).map(|pair| pair[0] - pair[1]);
                ahead.collect::<Vec<f32>>()
            };
            let (training, _) = training.step(&config, &stream).unwrap();
            let biases = training.model.router_bias();
            assert_eq!(biases, batch.scores.balancing_biases(&[]));
            let difference = biases[0][1] - biases[0][0];
            let first = ahead.iter().filter(|&&ahead| ahead > difference).count();
            assert_eq!((first, ahead.len()), (12, 24));
            assert!(biases[0][0] != 0.0 && (biases[0][0] + biases[0][1]).abs() < 1e-6);
        }
    }

    #[test]
    fn a_rank_whose_weights_change_between_steps_is_named() {
        struct Flip;
        impl MapParameter for Flip {
            fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
                if path != "head" {
                    return value;
                }
                let (shape, device) = (value.dims(), value.device());
                let mut values: Vec<f32> = value.into_data().iter().collect();
                values[3] = f32::from_bits(values[3].to_bits() ^ 1);
                Tensor::from_data(TensorData::new(values, shape), &device)
            }
        }
        let steps = |faulty: Option<usize>| {
            let run = SmallRun::new();
            let config = run.config(&["train.log_every=1"]);
            let layout = TrainLayout {
                data: 3,
                ..TrainLayout::default()
            };
            launch::run(
                layout,
                Some(3),
                || Ok(()),
                move |team| {
                    let (mut training, stream) = start_among(&config, team);
                    (training, _) = training.step(&config, &stream)?;
                    if faulty == Some(team.rank()) {
                        training.model = map(training.model, &mut Flip);
                    }
                    training.step(&config, &stream).map(|_| ())
                },
            )
        };
        assert!(steps(None).is_ok());
        let error = steps(Some(1)).unwrap_err();
        assert!(
            matches!(error, TrainError::WeightsChanged { step: 1, rank: 1 }),
            "{error}"
        );
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
