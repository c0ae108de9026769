//! The training objective: cross-entropy, plus the router's auxiliary losses.

use burn::tensor::Tensor;

use crate::config::{BalanceKind, ModelConfig};
use crate::moe::Routing;
use crate::moe::balance::{self, TokensPerExpert};
pub use firebox_kernels::cross_entropy_sum;

/// What training minimizes, of a forward pass or of a part of a batch: the parts' objectives and gradients add up to
/// those of the batch.
#[derive(Debug, Clone)]
pub struct Objective {
    /// Mean cross-entropy in nats, `[1]`.
    pub cross_entropy: Tensor<1>,
    /// The auxiliary losses, `[1]`; see [`auxiliary`].
    pub auxiliary: Option<Tensor<1>>,
}

impl Objective {
    /// The objective of this cross-entropy and this routing.
    ///
    /// # Shapes
    ///
    /// - `nats`: `[1]`, the sum over the targets that count; see [`LanguageModel::cross_entropy_sum`]
    /// - `targets`: the number of targets that count in the whole batch, of which this pass may be a part
    /// - `valid`: `[tokens]`, 1 for a token and 0 for padding, which the routers' losses leave out; `None` without
    ///   padding
    ///
    /// [`LanguageModel::cross_entropy_sum`]: crate::language_model::LanguageModel::cross_entropy_sum
    pub fn new(
        config: &ModelConfig,
        nats: Tensor<1>,
        targets: u64,
        routing: &[Routing],
        valid: Option<&Tensor<1>>,
        batch: &TokensPerExpert,
    ) -> Self {
        Self {
            cross_entropy: nats.div_scalar(targets.max(1) as f64),
            auxiliary: auxiliary(config, routing, valid, batch),
        }
    }

    /// The sum of both, `[1]`.
    pub fn total(&self) -> Tensor<1> {
        let cross_entropy = self.cross_entropy.clone();
        match &self.auxiliary {
            Some(auxiliary) => cross_entropy + auxiliary.clone(),
            None => cross_entropy,
        }
    }
}

/// The load-balancing loss of this kind over all MoE layers; `None` for a dense model.
///
/// # Shapes
///
/// - `valid`: `[tokens]`, 1 for a token and 0 for padding; `None` without padding
/// - output: `[1]`
pub fn load_balancing(
    kind: BalanceKind,
    routing: &[Routing],
    valid: Option<&Tensor<1>>,
    batch: &TokensPerExpert,
) -> Option<Tensor<1>> {
    match kind {
        BalanceKind::PerLayer | BalanceKind::Quantile => {
            mean(balance::per_layer(routing, valid, batch))
        }
        BalanceKind::Pooled => balance::pooled(routing, valid, batch),
    }
}

fn mean(terms: Vec<Tensor<1>>) -> Option<Tensor<1>> {
    let layers = terms.len() as f64;
    let sum = terms.into_iter().reduce(|sum, term| sum + term);
    sum.map(|sum| sum.div_scalar(layers))
}

/// The auxiliary part of the training loss:
/// `balance_coefficient · balance + z_coefficient · mean over layers of z`. `None` for a dense model, or if both
/// coefficients are 0.
///
/// # Shapes
///
/// - `valid`: `[tokens]`, 1 for a token and 0 for padding; `None` without padding
/// - output: `[1]`
pub fn auxiliary(
    config: &ModelConfig,
    routing: &[Routing],
    valid: Option<&Tensor<1>>,
    batch: &TokensPerExpert,
) -> Option<Tensor<1>> {
    let router = &config.moe.as_ref()?.router;
    let balance = (router.balance_coefficient > 0.0)
        .then(|| load_balancing(router.balance, routing, valid, batch));
    let z = (router.z_coefficient > 0.0).then(|| mean(balance::z_loss(routing, valid, batch)));
    let balance = balance
        .flatten()
        .map(|loss| loss.mul_scalar(router.balance_coefficient));
    let z = z
        .flatten()
        .map(|loss| loss.mul_scalar(router.z_coefficient));
    [balance, z]
        .into_iter()
        .flatten()
        .reduce(|sum, term| sum + term)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Int};

    use super::*;
    use crate::config::Scores;
    use crate::testing::{moe, tiny};
    use firebox_kernels::dispatch::DispatchPlan;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(
        indifferent_logits_cost_the_logarithm_of_the_vocabulary,
        auxiliary_terms_by_hand,
    );

    fn indifferent_logits_cost_the_logarithm_of_the_vocabulary(device: Device) {
        let targets = || Tensor::<1, Int>::from_ints([0, 3, 1], &device);
        let logits = || Tensor::full([3, 4], 2.5, &device);
        let ln_4 = 4f32.ln();
        let all = values(cross_entropy_sum(logits(), targets(), None));
        assert_close("all", &all, &[3.0 * ln_4], 1e-6).unwrap();
        let valid = Tensor::from_floats([1.0, 0.0, 1.0], &device);
        let two = values(cross_entropy_sum(logits(), targets(), Some(&valid)));
        assert_close("without padding", &two, &[2.0 * ln_4], 1e-6).unwrap();
        // ln(1 + e^−20), 20 and 20 more than that
        let sure = Tensor::from_floats([[20.0, 0.0], [20.0, 0.0]], &device);
        let targets = Tensor::<1, Int>::from_ints([0, 1], &device);
        let found = values(cross_entropy_sum(sure, targets, None));
        assert_close("one right, one wrong", &found, &[20.0], 1e-6).unwrap();
    }

    /// Two layers of two experts, one a token, over two tokens: the first layer's load is even, in the second one
    /// expert gets both. All probabilities are even, and so are the logits, which are zeros.
    fn routing(device: &Device) -> [Routing; 2] {
        [[0, 1], [0, 0]].map(|chosen| Routing {
            layer: 0,
            scores: Scores::Softmax,
            logits: Tensor::zeros([2, 2], device),
            probabilities: Tensor::from_floats([[0.75, 0.25], [0.5, 0.5]], device),
            plan: DispatchPlan::new(&chosen, 2, 1, device),
        })
    }

    fn auxiliary_terms_by_hand(device: Device) {
        let routing = routing(&device);
        let mut load = TokensPerExpert::default();
        load.add(&routing, None, 2);
        let found = |config: &ModelConfig| auxiliary(config, &routing, None, &load).map(values);
        // Mean probabilities 5/8 and 3/8. Layer 0: 2 · (1/2 · 5/8 + 1/2 · 3/8) = 1, layer 1: 2 · 5/8 = 5/4.
        let balance = (1.0 + 1.25) / 2.0;
        // Over both: loads 3/4 and 1/4, 2 · (3/4 · 5/8 + 1/4 · 3/8).
        let pooled = 1.125;
        let z = 2f32.ln().powi(2);
        let mut config = tiny();
        let cases = [
            (BalanceKind::PerLayer, 0.5, 0.25, 0.5 * balance + 0.25 * z),
            (BalanceKind::Pooled, 0.5, 0.25, 0.5 * pooled + 0.25 * z),
            (BalanceKind::PerLayer, 2.0, 0.0, 2.0 * balance),
            (BalanceKind::PerLayer, 0.0, 2.0, 2.0 * z),
        ];
        for (kind, balance, z, expected) in cases {
            let router = &mut moe(&mut config).router;
            router.balance = kind;
            (router.balance_coefficient, router.z_coefficient) = (balance, z);
            let found = found(&config).expect("a term");
            assert_close(&format!("{kind:?}"), &found, &[expected], 1e-6).unwrap();
        }
        moe(&mut config).router.z_coefficient = 0.0;
        assert_eq!(found(&config), None, "both coefficients are 0");
        for kind in [BalanceKind::PerLayer, BalanceKind::Pooled] {
            let dense = load_balancing(kind, &[], None, &TokensPerExpert::default());
            assert!(dense.is_none(), "a dense model");
        }
    }
}
