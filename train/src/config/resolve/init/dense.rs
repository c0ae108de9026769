//! Starting from a dense checkpoint: the model stays dense or is upcycled to MoE.

use firebox_model::config::{ActivationName, DenseKeys, ExpertsKeys, RouterKeys};

use super::Origin;
use crate::config::error::Problem;
use crate::config::resolve::{Checked, without_effect};

impl Origin {
    /// Checks what the file of a model that stays dense says of widths. As in any dense run, `[model.experts]` may
    /// describe the mixture whose dense baseline it is.
    pub(super) fn check_dense_width(
        &self,
        dense: Option<DenseKeys>,
        experts: Option<ExpertsKeys>,
        dense_is_written: bool,
    ) -> Checked<()> {
        let dense = dense.unwrap_or_default();
        let d_ff = self.copied_width("model.dense.d_ff", dense.d_ff)?;
        if dense.layers.is_some() {
            let condition = format!("because all layers of {} are dense", self.name());
            return Err(without_effect("model.dense.layers", &condition).hint("remove it"));
        }
        let Some(experts) = experts else {
            return Ok(());
        };
        if !dense_is_written {
            let condition = format!("because {} is dense", self.name());
            return Err(without_effect("model.experts", &condition)
                .hint("set model.feed_forward = \"moe\" to upcycle it"));
        }
        let (Some(own), Some(top_k), None) = (experts.d_ff, experts.top_k, dense.d_ff) else {
            return Ok(());
        };
        let shared_d_ff = experts.shared_d_ff.unwrap_or(0);
        let active = own.saturating_mul(top_k).saturating_add(shared_d_ff);
        if active == d_ff {
            return Ok(());
        }
        let shared = match shared_d_ff {
            0 => String::new(),
            shared => format!(", plus experts.shared_d_ff = {shared},"),
        };
        let rule = format!(
            "times experts.top_k = {top_k}{shared} must be {d_ff}, the width of the feed-forward in {}",
            self.name()
        );
        Err(Problem::new("model.experts.d_ff", rule).hint("omit it, or set model.dense.d_ff"))
    }

    /// Each expert is a copy of the dense feed-forward. The file sets the number of experts and the experts per token.
    pub(super) fn upcycled_experts(&self, written: ExpertsKeys) -> Checked<ExpertsKeys> {
        let needed = |key: &str, value: Option<usize>, hint: &str| {
            value.ok_or_else(|| {
                let rule = format!("is missing, but {} is dense", self.name());
                Problem::new(key, rule).hint(hint)
            })
        };
        let hint = "set it to the number of copies of its feed-forward, such as 8";
        let count = needed("model.experts.count", written.count, hint)?;
        let hint = "set it to the number of experts per token, such as 2";
        let top_k = needed("model.experts.top_k", written.top_k, hint)?;
        if written.shared_d_ff.is_some_and(|d_ff| d_ff > 0) {
            let rule = "must be 0 when upcycling: the copies of the dense feed-forward already compute what it computed";
            return Err(Problem::new("model.experts.shared_d_ff", rule).hint("remove it"));
        }
        if written.activation == Some(ActivationName::ClampedSwiglu) {
            let rule = "must be \"swiglu\" when upcycling: the copies have to compute what the dense feed-forward computed";
            return Err(Problem::new("model.experts.activation", rule).hint("remove it"));
        }
        if written.biases == Some(true) {
            let rule = "must be false when upcycling: the dense feed-forward has no biases";
            return Err(Problem::new("model.experts.biases", rule).hint("remove it"));
        }
        Ok(ExpertsKeys {
            count: Some(count),
            top_k: Some(top_k),
            d_ff: Some(self.copied_width("model.experts.d_ff", written.d_ff)?),
            shared_d_ff: None,
            ..written
        })
    }

    /// Layers that stay dense.
    pub(super) fn upcycled_dense_layers(
        &self,
        written: Option<DenseKeys>,
    ) -> Checked<Option<DenseKeys>> {
        let Some(written) = written else {
            return Ok(None);
        };
        let d_ff = self.copied_width("model.dense.d_ff", written.d_ff)?;
        Ok(Some(DenseKeys {
            d_ff: Some(d_ff),
            ..written
        }))
    }

    /// The width of the checkpoint's feed-forwards, which a written value must equal.
    fn copied_width(&self, key: &str, written: Option<usize>) -> Checked<usize> {
        let mut widths = self.config.model.dense_layers().map(|(_, d_ff)| d_ff);
        let width = widths.next().expect("a dense checkpoint");
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

/// The routers of an upcycled model, which are new.
pub(super) fn upcycled_router(written: RouterKeys) -> Checked<RouterKeys> {
    if written.scaling.is_some_and(|scaling| scaling != 1.0) {
        let rule = "must be 1 when upcycling: identical experts reproduce the dense feed-forward only if their weights sum \
                    to 1";
        return Err(Problem::new("model.router.scaling", rule).hint("remove it, or set it to 1"));
    }
    if written.normalize == Some(false) {
        let rule = "must be true when upcycling: identical experts reproduce the dense feed-forward only if their \
                    weights sum to 1";
        return Err(
            Problem::new("model.router.normalize", rule).hint("remove it, or set it to true")
        );
    }
    Ok(written)
}
