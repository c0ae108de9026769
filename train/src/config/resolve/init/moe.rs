//! Starting an MoE run from an MoE checkpoint.

use firebox_checkpoint::families::FIREBOX;
use firebox_model::config::{BalanceKind, DenseConfig, ExpertsConfig, ModelConfig, RouterConfig};

use super::Origin;
use crate::config::error::Problem;
use crate::config::raw::{RawDense, RawExperts, RawRouter};
use crate::config::resolve::Checked;
use crate::config::resolve::model::{ROUTER, router};

impl Origin {
    /// The checkpoint's experts.
    pub(super) fn experts(&self, raw: RawExperts) -> Checked<ExpertsConfig> {
        let own = &self.config.model.experts;
        Ok(ExpertsConfig {
            count: self.agreed("model.experts.count", raw.count, own.count)?,
            top_k: self.agreed("model.experts.top_k", raw.top_k, own.top_k)?,
            d_ff: self.agreed("model.experts.d_ff", raw.d_ff, own.d_ff)?,
            shared_d_ff: self.agreed(
                "model.experts.shared_d_ff",
                raw.shared_d_ff,
                own.shared_d_ff,
            )?,
        })
    }

    /// The checkpoint's dense layers.
    pub(super) fn dense_layers(&self, raw: Option<RawDense>) -> Checked<Option<DenseConfig>> {
        match (raw, &self.config.model.dense) {
            (None, own) => Ok(own.clone()),
            (Some(_), None) => {
                let rule = format!(
                    "is not allowed, because all layers of {} are MoE",
                    self.name()
                );
                Err(Problem::new("model.dense", rule).hint("remove [model.dense]"))
            }
            (Some(raw), Some(own)) => Ok(Some(DenseConfig {
                layers: self.agreed("model.dense.layers", Some(raw.layers), own.layers.clone())?,
                d_ff: self.agreed("model.dense.d_ff", raw.d_ff, own.d_ff)?,
            })),
        }
    }

    /// The checkpoint's router; the auxiliary losses may differ, because the weights do not depend on them.
    pub(super) fn router(&self, raw: RawRouter) -> Checked<RouterConfig> {
        let ModelConfig {
            router: own,
            experts,
            ..
        } = &self.config.model;
        let agreed = RouterConfig {
            scores: self.agreed("model.router.scores", raw.scores, own.scores)?,
            normalize: self.agreed("model.router.normalize", raw.normalize, own.normalize)?,
            scaling: self.agreed("model.router.scaling", raw.scaling, own.scaling)?,
            groups: self.agreed("model.router.groups", raw.groups, own.groups)?,
            top_groups: self.agreed("model.router.top_groups", raw.top_groups, own.top_groups)?,
            ..own.clone()
        };
        // A balanced pooled loss is `top_k`, a balanced per-layer loss 1; the product with the coefficient is kept.
        let top_k = experts.top_k as f64;
        let balance = raw.balance.unwrap_or(own.balance);
        let balance_coefficient = match (own.balance, balance) {
            (BalanceKind::Pooled, BalanceKind::PerLayer) => own.balance_coefficient * top_k,
            (BalanceKind::PerLayer, BalanceKind::Pooled) => own.balance_coefficient / top_k,
            _ => own.balance_coefficient,
        };
        // A Hugging Face config.json has no such field.
        let z_coefficient = if self.config.family == FIREBOX {
            own.z_coefficient
        } else {
            ROUTER.z_coefficient
        };
        let defaults = RouterConfig {
            balance,
            balance_coefficient,
            z_coefficient,
            ..agreed
        };
        Ok(router(raw, defaults))
    }
}
