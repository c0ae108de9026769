//! The gradient of a batch, accumulated exactly over micro-batches.
//!
//! The host reads from the device once per step: at the end of [`forward_backward`], for the loss, router health and
//! the gradient's norm together. The trainer needs all three before it can continue: it logs the first two, updates
//! the routers' bias from the expert load, and clips by the norm. No read interrupts the forward and backward passes.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Device, Gradients, Tensor};
use firebox_kernels::sum_of_squares;
use firebox_model::config::{BalanceKind, ModelConfig};
use firebox_model::language_model::LanguageModel;
use firebox_model::loss::{Objective, Targets};
use firebox_model::moe::balance::TokensPerExpert;
use firebox_model::moe::quantile::BatchScores;
use firebox_model::moe::stats::HealthSums;
use firebox_model::parameters::{VisitParameter, visit};

use crate::learned::Learned;
use crate::rows::Row;

/// Loss, router health and gradient of a batch.
#[derive(Debug)]
pub struct BatchResult {
    /// Cross-entropy, in nats per token.
    pub loss: f64,
    /// The loss plus the auxiliary terms, which the gradient is taken of.
    pub total_loss: f64,
    /// Sums of router health per layer.
    pub health: HealthSums,
    /// The scores that experts are selected by, with quantile balancing; else none.
    pub scores: BatchScores,
    /// The Euclidean norm of the gradient, over all parameters together.
    pub gradient_norm: f64,
    /// The gradient of `total_loss`.
    pub gradients: GradientSum,
}

/// Loss and gradient of a batch, by all parameters; see [`gradient_of`].
pub fn forward_backward<R: Row>(
    model: &LanguageModel,
    rows: &[R],
    micro_batch: usize,
    device: &Device,
) -> BatchResult {
    gradient_of(&Learned::Everything, model, rows, micro_batch, device)
}

/// Computes the loss of a batch and its gradient by what is learned, `micro_batch` rows at a time. Neither depends on
/// `micro_batch`, except for rounding, because every mean is over the targets of the whole batch.
///
/// The balance loss needs the expert load of the whole batch before the first gradient. For a single micro-batch, the
/// forward pass provides it; for several, an additional pass without gradients computes the routing first, which
/// costs about a third of a forward and backward pass.
///
/// `device` is the model's device, with autodiff.
pub fn gradient_of<R: Row>(
    learned: &Learned,
    model: &LanguageModel,
    rows: &[R],
    micro_batch: usize,
    device: &Device,
) -> BatchResult {
    let config = model.config();
    let targets: u64 = rows.iter().map(Row::targets).sum();
    let load = (rows.len() > micro_batch && needs_load(config)).then(|| {
        let (plain, plain_device) = (model.valid(), device.clone().inner());
        let mut load = TokensPerExpert::default();
        for chunk in rows.chunks(micro_batch) {
            let batch = R::batch(chunk, &plain, &plain_device);
            let routing = plain.route(&batch);
            load.add(&routing, batch.valid.as_ref(), batch.valid_tokens);
        }
        load
    });

    let mut gradients = GradientSum::default();
    let gathers_scores = sets_biases(config) && *learned == Learned::Everything;
    let mut layers = Vec::new();
    let mut figures = Vec::new();
    let mut scores = Vec::new();
    let mut counted = Vec::new();
    for chunk in rows.chunks(micro_batch) {
        let batch = R::batch(chunk, model, device);
        let valid = batch.valid.as_ref();
        let output = model.forward_batch(&batch);
        let load = load.clone().unwrap_or_else(|| {
            let mut load = TokensPerExpert::default();
            load.add(&output.routing, valid, targets);
            load
        });
        let of_batch = Targets {
            ids: batch.targets,
            mask: valid,
            count: targets,
        };
        let routing = &output.routing;
        let objective = Objective::new(config, output.logits, routing, of_batch, valid, &load);
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

    // The only device-to-host read of a step.
    figures.extend(gradients.squares());
    let lengths: Vec<usize> = scores.iter().map(|scores| scores.dims()[0]).collect();
    figures.extend(scores);
    let read: Vec<f32> = Tensor::cat(figures, 0).into_data().iter().collect();
    let (figures, mut scores) = read.split_at(read.len() - lengths.iter().sum::<usize>());
    let (figures, squares) = figures.split_at(figures.len() - gradients.by_path().len());
    let squares = squares.iter().copied().map(f64::from);
    let mut result = BatchResult {
        loss: 0.0,
        total_loss: 0.0,
        health: HealthSums::default(),
        scores: BatchScores::default(),
        gradient_norm: squares.sum::<f64>().sqrt(),
        gradients,
    };
    let figures = figures.chunks(figures.len() / counted.len());
    for (figures, counted) in figures.zip(counted) {
        result.loss += f64::from(figures[0]);
        result.total_loss += f64::from(figures[1]);
        result.health.add(&layers, counted, &figures[2..]);
    }
    if let Some(moe) = &config.moe {
        for length in lengths {
            let (own, rest) = scores.split_at(length);
            result.scores.add(&moe.experts, layers.len(), own);
            scores = rest;
        }
    }
    result
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
            sum: &'a mut BTreeMap<String, Tensor<1>>,
            gradients: Gradients,
        }
        impl VisitParameter for Add<'_> {
            fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
                if let Some(new) = parameter.val().grad_remove(&mut self.gradients) {
                    let elements = new.shape().num_elements();
                    let new = new.reshape([elements]);
                    let Some(new) = self.learned.gradient(path, new) else {
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
        visit(
            model,
            &mut Add {
                learned,
                sum: &mut self.0,
                gradients,
            },
        );
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
