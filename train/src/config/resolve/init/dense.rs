//! Starting from a dense checkpoint: the model stays dense or is upcycled to MoE.

use firebox_model::config::{DenseConfig, ExpertsConfig, RouterConfig};

use super::Origin;
use crate::config::error::Problem;
use crate::config::raw::{RawDense, RawExperts, RawRouter};
use crate::config::resolve::model::{ROUTER, router};
use crate::config::resolve::{Checked, without_effect};

impl Origin {
    /// The `[model.experts]` of a model that stays dense. As in any dense run, `count` has no effect and the width is
    /// `d_ff × top_k`, so that the file of the MoE model also describes its dense baseline.
    pub(super) fn dense_experts(
        &self,
        raw: RawExperts,
        dense_is_written: bool,
    ) -> Checked<ExpertsConfig> {
        let own = &self.config.model.experts;
        let differs = |written: Option<usize>, own: usize| written.is_some_and(|w| w != own);
        let moe_keys = [
            ("model.experts.count", raw.count, own.count),
            ("model.experts.top_k", raw.top_k, own.top_k),
        ];
        let written = moe_keys
            .into_iter()
            .find(|&(_, written, own)| differs(written, own));
        if let Some((key, ..)) = written.filter(|_| !dense_is_written) {
            let condition = format!("because {} is dense", self.name());
            return Err(without_effect(key, &condition)
                .hint("set model.feed_forward = \"moe\" to upcycle it"));
        }
        let width = self.config.model.active_d_ff();
        let top_k = raw.top_k.unwrap_or(own.top_k);
        let shared_d_ff = raw.shared_d_ff.unwrap_or(0);
        let selected = width.saturating_sub(shared_d_ff);
        let experts = ExpertsConfig {
            count: raw.count.unwrap_or(own.count),
            top_k,
            d_ff: raw.d_ff.unwrap_or(selected / top_k.max(1)),
            shared_d_ff,
        };
        let total = experts.d_ff.saturating_mul(experts.top_k);
        if total.saturating_add(shared_d_ff) == width {
            return Ok(experts);
        }
        let shared = match shared_d_ff {
            0 => String::new(),
            shared => format!(", plus experts.shared_d_ff = {shared},"),
        };
        let rule = format!(
            "times experts.top_k = {}{shared} must be {width}, the width of the feed-forward in {}",
            experts.top_k,
            self.name()
        );
        Err(Problem::new("model.experts.d_ff", rule).value(experts.d_ff))
    }

    /// Each expert is a copy of the dense feed-forward. The file sets the number of experts and the experts per token.
    pub(super) fn upcycled_experts(&self, raw: RawExperts) -> Checked<ExpertsConfig> {
        let needed = |key: &str, value: Option<usize>, hint: &str| {
            value.ok_or_else(|| {
                let rule = format!("is missing, but {} is dense", self.name());
                Problem::new(key, rule).hint(hint)
            })
        };
        let hint = "set it to the number of copies of its feed-forward, such as 8";
        let count = needed("model.experts.count", raw.count, hint)?;
        let hint = "set it to the number of experts per token, such as 2";
        let top_k = needed("model.experts.top_k", raw.top_k, hint)?;
        if raw.shared_d_ff.is_some_and(|d_ff| d_ff > 0) {
            let rule = "must be 0 when upcycling: the copies of the dense feed-forward already compute what it computed";
            return Err(Problem::new("model.experts.shared_d_ff", rule).hint("remove it"));
        }
        Ok(ExpertsConfig {
            count,
            top_k,
            d_ff: self.copied_width("model.experts.d_ff", raw.d_ff)?,
            shared_d_ff: 0,
        })
    }

    /// Layers that stay dense.
    pub(super) fn upcycled_dense_layers(
        &self,
        raw: Option<RawDense>,
    ) -> Checked<Option<DenseConfig>> {
        raw.map(|raw| {
            Ok(DenseConfig {
                layers: raw.layers,
                d_ff: self.copied_width("model.dense.d_ff", raw.d_ff)?,
            })
        })
        .transpose()
    }

    fn copied_width(&self, key: &str, written: Option<usize>) -> Checked<usize> {
        let width = self.config.model.active_d_ff();
        match written {
            Some(d_ff) if d_ff != width => {
                let rule = format!(
                    "must be {width}, the width of the feed-forward in {}",
                    self.name()
                );
                Err(Problem::new(key, rule).hint("remove it; the checkpoint determines it"))
            }
            _ => Ok(width),
        }
    }
}

pub(super) fn upcycled_router(raw: RawRouter) -> Checked<RouterConfig> {
    if raw.scaling.is_some_and(|scaling| scaling != 1.0) {
        let rule = "must be 1 when upcycling: identical experts reproduce the dense feed-forward only if their weights sum \
                    to 1";
        return Err(Problem::new("model.router.scaling", rule).hint("remove it, or set it to 1"));
    }
    if raw.normalize == Some(false) {
        let rule = "must be true when upcycling: identical experts reproduce the dense feed-forward only if their \
                    weights sum to 1";
        return Err(
            Problem::new("model.router.normalize", rule).hint("remove it, or set it to true")
        );
    }
    Ok(router(raw, ROUTER))
}
