//! The gradient of a batch, accumulated exactly over micro-batches, and over the ranks that have shares of the batch.
//!
//! The host reads from the device once per step: at the end of [`gradient_of`], for the loss, router health and
//! the gradient's norm together. The trainer needs all three before it can continue: it logs the first two, updates
//! the routers' bias from the expert load, and clips by the norm. No read interrupts the forward and backward passes of
//! a single rank. Several ranks read the expert load and the gradient, which are added up, and ranks that have different experts
//! or matrices the values of tokens.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::module::{Module, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use firebox_kernels::sum_of_squares;
use firebox_model::config::{BalanceKind, ModelConfig};
use firebox_model::language_model::LanguageModel;
use firebox_model::loss::Objective;
use firebox_model::moe::balance::TokensPerExpert;
use firebox_model::moe::quantile::BatchScores;
use firebox_model::moe::stats::HealthSums;
use firebox_model::parallel::Shard;
use firebox_model::parameters::{VisitParameter, visit};
use serde::{Deserialize, Serialize};

use crate::config::Muon;
use crate::learned::Learned;
use crate::optimizer::Optimizer;
use crate::ranks::{Ownership, RankRecord, Team, host};
use crate::rows::Row;

/// Loss, router health and gradient of a batch.
#[derive(Debug)]
pub struct BatchResult {
    /// Cross-entropy, in nats per token.
    pub loss: f64,
    /// The loss plus the auxiliary terms, which the gradient is taken of.
    pub total_loss: f64,
    /// Number of targets.
    pub tokens: u64,
    /// Sums of router health per layer.
    pub health: HealthSums,
    /// The scores that experts are selected by, with quantile balancing; else none.
    pub scores: BatchScores,
    /// The Euclidean norm of the gradient, over all parameters together.
    pub gradient_norm: f64,
    /// The gradient of `total_loss`, by the values that are this rank's own.
    pub gradients: GradientSum,
    /// What each rank has done.
    pub ranks: Vec<RankRecord>,
}

/// Loss and gradient of a batch, by all parameters; see [`gradient_of`].
pub fn forward_backward<R: Row>(
    model: &LanguageModel,
    rows: &[R],
    micro_batch: usize,
    device: &Device,
) -> BatchResult {
    let alone = Team::default();
    let optimizer = Optimizer::new(model.config(), Muon::None, Learned::Everything, &alone);
    gradient_of(&optimizer, model, rows, micro_batch, device)
}

/// What the ranks have to know of each other's shares of a batch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Share {
    rows: usize,
    targets: u64,
}

/// What a rank has read of its share of a batch.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    /// Valid tokens of each micro-batch.
    counted: Vec<u64>,
    /// Loss, total loss and terms of router health of each micro-batch, and at the end the sums of squares of its own
    /// values' gradients.
    values: Vec<f32>,
    /// Number of scores of each micro-batch.
    lengths: Vec<usize>,
    /// The scores that experts are selected by.
    scores: Vec<f32>,
    /// Number of sums of squares.
    squares: usize,
    /// What it has done.
    rank: RankRecord,
}

/// Computes the loss of a batch and its gradient by what an optimizer trains, `micro_batch` rows at a time. Neither depends
/// on `micro_batch`, except for rounding, because every mean is over the targets of the whole batch. If the optimizer is one
/// of several ranks, `rows` are this rank's share, which its tensor ranks have too, and the batch is that of all of them; where
/// ranks with other shares send each other tokens while they compute, one with fewer micro-batches computes padding.
///
/// The balance loss needs the expert load of the whole batch before the first gradient. For a single micro-batch, the
/// forward pass provides it; for several, an additional pass without gradients computes the routing first, which
/// costs about a third of a forward and backward pass.
///
/// `device` is the model's device, with autodiff.
///
/// # Panics
///
/// When there are no rows.
pub fn gradient_of<R: Row>(
    optimizer: &Optimizer,
    model: &LanguageModel,
    rows: &[R],
    micro_batch: usize,
    device: &Device,
) -> BatchResult {
    let (config, learned, team) = (model.config(), optimizer.learned(), optimizer.team());
    let (sent, summed) = (team.token_bytes(), team.sum_bytes());
    let shares = team.all_shares(Share {
        rows: rows.len(),
        targets: rows.iter().map(Row::targets).sum(),
    });
    // From here on all ranks compute together: one may have read its rows, or written a checkpoint, for longer than the others.
    let (started, communicated) = (Instant::now(), team.communicating());
    let targets: u64 = shares.iter().map(|share| share.targets).sum();
    let most = shares.iter().map(|share| share.rows.div_ceil(micro_batch));
    let most = most.max().unwrap_or(0);
    let padding = R::padding(&rows[0]);
    let mut chunks: Vec<&[R]> = rows.chunks(micro_batch).collect();
    if team.computes_together() {
        chunks.resize(most, std::slice::from_ref(&padding));
    }
    let is_cut = most > 1;
    let of_whole_batch = |load: TokensPerExpert| TokensPerExpert {
        tokens: targets,
        ..match needs_load(config) {
            true => team.add_up(load),
            false => load,
        }
    };
    let load = (is_cut && needs_load(config)).then(|| {
        let (plain, plain_device) = (model.valid(), device.clone().inner());
        let mut load = TokensPerExpert::default();
        for chunk in &chunks {
            let batch = R::batch(chunk, &plain, &plain_device);
            let routing = plain.route(&batch);
            load.add(&routing, batch.valid.as_ref(), batch.valid_tokens);
        }
        of_whole_batch(load)
    });

    let mut gradients = GradientSum::default();
    let gathers_scores = sets_biases(config) && *learned == Learned::Everything;
    let mut layers = Vec::new();
    let mut figures = Vec::new();
    let mut scores = Vec::new();
    let mut counted = Vec::new();
    for chunk in &chunks {
        let batch = R::batch(chunk, model, device);
        let valid = batch.valid.as_ref();
        let output = model.forward_batch(&batch);
        let load = load.clone().unwrap_or_else(|| {
            let mut load = TokensPerExpert::default();
            load.add(&output.routing, valid, batch.valid_tokens);
            of_whole_batch(load)
        });
        let nats = model.cross_entropy_sum(output.logits, batch.targets, valid);
        let routing = &output.routing;
        let objective = Objective::new(config, nats, targets, routing, valid, &load);
        let (loss, total) = (objective.cross_entropy.clone(), objective.total());
        figures.extend([loss.inner(), total.clone().inner()]);
        figures.extend(HealthSums::terms(routing, valid));
        if gathers_scores {
            scores.extend(BatchScores::terms(routing, valid));
        }
        layers = output.routing.iter().map(|routing| routing.layer).collect();
        counted.push(batch.valid_tokens);
        gradients.add(learned, model, total.backward());
    }
    let waited = (team.communicating() - communicated).as_secs_f64();
    let computing = started.elapsed().as_secs_f64() - waited;
    let gradients = gradients.add_up(team, optimizer.ownership(), &device.clone().inner());
    let rank = RankRecord {
        sequences: rows.len(),
        computing,
        communicating: waited,
        exchanging: team.exchanging_since_last().as_secs_f64(),
        bytes: team.bytes_since_last(),
        token_bytes: team.token_bytes() - sent,
        sum_bytes: team.sum_bytes() - summed,
    };

    // The only device-to-host read of a single rank's step.
    figures.extend(gradients.squares());
    let lengths: Vec<usize> = scores.iter().map(|scores| scores.dims()[0]).collect();
    figures.extend(scores);
    let mut values: Vec<f32> = Tensor::cat(figures, 0).into_data().iter().collect();
    let scores = values.split_off(values.len() - lengths.iter().sum::<usize>());
    let all = team.all(Figures {
        counted,
        values,
        lengths,
        scores,
        squares: gradients.by_path().len(),
        rank,
    });
    let mut result = BatchResult {
        loss: 0.0,
        total_loss: 0.0,
        tokens: targets,
        health: HealthSums::default(),
        scores: BatchScores::default(),
        gradient_norm: 0.0,
        gradients,
        ranks: all.iter().map(|figures| figures.rank).collect(),
    };
    let squares = all.iter().map(Figures::squares);
    let squares: f64 = squares.sum();
    // All tensor ranks of a share have read the same.
    for figures in all.iter().step_by(team.layout().tensor) {
        result.add(config, &layers, figures);
    }
    result.gradient_norm = squares.sqrt();
    result
}

impl Figures {
    /// Those of the micro-batches, and the sums of squares.
    fn split(&self) -> (&[f32], &[f32]) {
        self.values.split_at(self.values.len() - self.squares)
    }

    /// The sum of squares of the gradient of the rank's own values.
    fn squares(&self) -> f64 {
        let (_, squares) = self.split();
        squares.iter().copied().map(f64::from).sum()
    }
}

impl BatchResult {
    /// Adds what a rank has read of its share.
    fn add(&mut self, config: &ModelConfig, layers: &[usize], figures: &Figures) {
        let (values, _) = figures.split();
        let micro_batches = values.chunks(values.len() / figures.counted.len());
        for (values, &counted) in micro_batches.zip(&figures.counted) {
            self.loss += f64::from(values[0]);
            self.total_loss += f64::from(values[1]);
            self.health.add(layers, counted, &values[2..]);
        }
        if let Some(moe) = &config.moe {
            let mut scores = figures.scores.as_slice();
            for &length in &figures.lengths {
                let (own, rest) = scores.split_at(length);
                self.scores.add(&moe.experts, layers.len(), own);
                scores = rest;
            }
        }
    }
}

/// Whether the training loss depends on the expert load.
fn needs_load(config: &ModelConfig) -> bool {
    let moe = config.moe.as_ref();
    moe.is_some_and(|moe| moe.router.balance_coefficient > 0.0)
}

/// Whether the scores of a batch decide its experts' selection biases.
fn sets_biases(config: &ModelConfig) -> bool {
    let moe = config.moe.as_ref();
    moe.is_some_and(|moe| moe.router.balance == BalanceKind::Quantile)
}

/// The gradient of each parameter, flattened, by path; a sum over micro-batches.
#[derive(Debug, Default)]
pub struct GradientSum(BTreeMap<String, Tensor<1>>);

impl GradientSum {
    /// Adds the gradients of one backward pass, by what is learned.
    pub fn add(&mut self, learned: &Learned, model: &LanguageModel, gradients: Gradients) {
        struct Add<'a> {
            learned: &'a Learned,
            /// Values of the embedding before this rank's.
            before: usize,
            sum: &'a mut BTreeMap<String, Tensor<1>>,
            gradients: Gradients,
        }
        impl VisitParameter for Add<'_> {
            fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
                if let Some(new) = parameter.val().grad_remove(&mut self.gradients) {
                    let elements = new.shape().num_elements();
                    let new = new.reshape([elements]);
                    let before = if path == "embedding" { self.before } else { 0 };
                    let Some(new) = self.learned.gradient(path, new, before) else {
                        return;
                    };
                    let sum = match self.sum.remove(path) {
                        Some(sum) => sum + new,
                        None => new,
                    };
                    self.sum.insert(path.to_owned(), sum);
                }
            }
        }
        let config = model.config();
        let first = |shard: &Shard| shard.share(config.embedding_rows()).start;
        visit(
            model,
            &mut Add {
                learned,
                before: model.shard().map_or(0, first) * config.d_model,
                sum: &mut self.0,
                gradients,
            },
        );
    }

    /// Adds up the gradients of all ranks, and keeps those of this rank's own values. A gradient that a rank does not have is
    /// zero.
    fn add_up(mut self, team: &Team, ownership: &Ownership, device: &Device) -> Self {
        if ownership.is_empty() {
            return self;
        }
        let own = ownership.parameters().filter_map(|(path, owned)| {
            let mut values = owned.term(self.take(path).map(host));
            team.reduce_scatter(owned.holders, &mut values, owned.ends());
            let own = owned.own();
            if own.is_empty() {
                return None;
            }
            let length = own.len();
            let own = match length == values.len() {
                true => values,
                false => values[own].to_vec(),
            };
            let own = Tensor::from_data(TensorData::new(own, [length]), device);
            Some((path.to_owned(), own))
        });
        Self(own.collect())
    }

    /// The flattened gradients, by parameter path.
    pub fn by_path(&self) -> &BTreeMap<String, Tensor<1>> {
        &self.0
    }

    /// Removes and returns the gradient of one parameter; `None` if the loss does not depend on it.
    pub(crate) fn take(&mut self, path: &str) -> Option<Tensor<1>> {
        self.0.remove(path)
    }

    /// The sum of squares of each parameter's gradient, each of shape `[1]`.
    fn squares(&self) -> impl Iterator<Item = Tensor<1>> {
        let gradients = self.0.values().cloned();
        gradients.map(sum_of_squares)
    }
}

#[cfg(test)]
mod tests {
    use firebox_kernels::Precision;
    use firebox_model::batch::{Batch, Sequence};
    use firebox_model::parameters::{MapParameter, map};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    use super::*;
    use crate::testing::SmallRun;

    on_every_device!(
        the_gradient_of_a_head_of_zeros,
        the_gradient_in_bf16_is_near
    );

    /// With a head of zeros every token is as likely as any other, and nothing before the head has a gradient: that of
    /// the head is `hᵀ (1/V − target) / T`, with h what the head is given.
    fn the_gradient_of_a_head_of_zeros(device: Device) {
        struct NoHead;
        impl MapParameter for NoHead {
            fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
                if path == "head" {
                    value.zeros_like()
                } else {
                    value
                }
            }
        }
        let off = "model.router={ balance_coefficient = 0.0, z_coefficient = 0.0 }";
        let mut config = SmallRun::new().config(&[off]).model;
        config.vocab_size = 5;
        let device = device.autodiff();
        let model = map(
            LanguageModel::random(&config, 7, &device).train(),
            &mut NoHead,
        );
        let tokens = [[0, 1, 2, 3].as_slice(), &[4, 4]];
        let sequences = tokens.map(|tokens| Sequence::of_window(tokens, 3, None));
        let hidden = {
            let batch = Batch::new(&sequences, &device);
            let trace = model.trace(batch.tokens, &batch.placement);
            values(trace.hidden.into_iter().next_back().unwrap())
        };
        let mut expected = vec![0.0f32; 8 * 5];
        for (row, target) in [(0, 1), (1, 2), (2, 3), (3, 4)] {
            for (feature, value) in hidden[row * 8..][..8].iter().enumerate() {
                for token in 0..5 {
                    let difference = 0.2 - f32::from(u8::from(token == target));
                    expected[feature * 5 + token] += value * difference / 4.0;
                }
            }
        }
        let square: f32 = expected.iter().map(|value| value * value).sum();
        for micro_batch in [1, 2] {
            let result = forward_backward(&model, &sequences, micro_batch, &device);
            assert!((result.loss - 5f64.ln()).abs() < 1e-6, "{}", result.loss);
            assert_eq!(result.loss, result.total_loss);
            let norm = [result.gradient_norm as f32];
            assert_close("norm", &norm, &[square.sqrt()], 1e-5).unwrap();
            for (path, gradient) in result.gradients.by_path() {
                let found = values(gradient.clone());
                match path.as_str() {
                    "head" => assert_close("head", &found, &expected, 1e-5).unwrap(),
                    _ => assert!(found.iter().all(|&value| value == 0.0), "{path}"),
                }
            }
            let load: Vec<&[u64]> = result.health.tokens_per_expert().collect();
            assert_eq!(load.len(), 1);
            assert_eq!(load[0].iter().sum::<u64>(), 4, "padding is not counted");
        }
    }

    /// A factor is rounded by 2⁻⁸ of it at most, and a gradient has gone through about twenty products of rounded factors.
    fn the_gradient_in_bf16_is_near(device: Device) {
        if !Precision::Bf16.runs_on(&device) {
            return;
        }
        let mut config = SmallRun::new().config(&[]).model;
        config.vocab_size = 5;
        let device = device.autodiff();
        let sequences = [[0, 1, 2, 3], [4, 4, 1, 0]];
        let sequences = sequences.map(|tokens| Sequence::of_window(&tokens, 3, None));
        let [exact, rounded] = Precision::ALL.map(|precision| {
            let model = LanguageModel::random(&config, 7, &device).at_precision(precision);
            forward_backward(&model.train(), &sequences, 1, &device)
        });
        assert!((rounded.loss - exact.loss).abs() < 1e-3 * exact.loss);
        let pairs = rounded
            .gradients
            .by_path()
            .iter()
            .zip(exact.gradients.by_path());
        for ((path, rounded), (_, exact)) in pairs {
            let (rounded, exact) = (values(rounded.clone()), values(exact.clone()));
            assert_close(path, &rounded, &exact, 20.0 / 256.0).unwrap();
            assert!(
                path.contains("embedding") || rounded != exact,
                "{path} is not rounded"
            );
        }
    }
}
