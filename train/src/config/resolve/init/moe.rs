//! Starting an MoE run from an MoE checkpoint.

use firebox_checkpoint::families::FIREBOX;
use firebox_model::config::{BalanceKind, ModelKeys, RouterConfig, RouterKeys};

use super::Origin;
use crate::config::resolve::Checked;

impl Origin {
    /// The checkpoint's router; the auxiliary losses may differ, because the weights do not depend on them.
    pub(super) fn router(&self, written: RouterKeys) -> Checked<RouterKeys> {
        let of_losses = RouterKeys {
            balance: written.balance,
            balance_coefficient: written.balance_coefficient,
            z_coefficient: written.z_coefficient,
            bias_update_rate: written.bias_update_rate,
            ..RouterKeys::default()
        };
        let of_weights = RouterKeys {
            balance: None,
            balance_coefficient: None,
            z_coefficient: None,
            bias_update_rate: None,
            ..written
        };
        let keys = ModelKeys::of(&self.config.model);
        let own_keys = keys.router.unwrap_or_default();
        self.agree("model.router", &of_weights, &own_keys)?;
        let moe = self.config.model.moe.as_ref().expect("an MoE checkpoint");
        let own = moe.router;
        // A balanced pooled loss is `top_k`, a balanced per-layer loss 1; the product with the coefficient is kept.
        let top_k = moe.experts.top_k as f64;
        let balance = of_losses.balance.unwrap_or(own.balance);
        let coefficient = match (own.balance, balance) {
            (BalanceKind::Pooled, BalanceKind::PerLayer) => own.balance_coefficient * top_k,
            (BalanceKind::PerLayer, BalanceKind::Pooled) => own.balance_coefficient / top_k,
            (_, BalanceKind::Quantile) => 0.0,
            (BalanceKind::Quantile, _) => RouterConfig::DEFAULT.balance_coefficient,
            _ => own.balance_coefficient,
        };
        let rate = match balance {
            BalanceKind::PerLayer | BalanceKind::Pooled => own.bias_update_rate,
            BalanceKind::Quantile => 0.0,
        };
        // A Hugging Face config.json has no such field.
        let z_coefficient = match self.config.family == FIREBOX {
            true => own.z_coefficient,
            false => RouterConfig::DEFAULT.z_coefficient,
        };
        Ok(RouterKeys {
            balance: Some(balance),
            balance_coefficient: of_losses.balance_coefficient.or(Some(coefficient)),
            z_coefficient: of_losses.z_coefficient.or(Some(z_coefficient)),
            bias_update_rate: of_losses.bias_update_rate.or(Some(rate)),
            ..own_keys
        })
    }
}
