//! The training loss: cross-entropy, plus the router's auxiliary losses.

use burn::tensor::Tensor;

use crate::config::{BalanceKind, ModelConfig};
use crate::moe::Routing;
use crate::moe::balance::{self, TokensPerExpert};
pub use firebox_kernels::cross_entropy_sum;

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
        BalanceKind::PerLayer => mean(balance::per_layer(routing, valid, batch)),
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
    let router = &config.router;
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
