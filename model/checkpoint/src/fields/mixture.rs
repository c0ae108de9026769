//! The feed-forward of each layer, and the mixture of experts.

use serde_json::Value;

use super::{Fields, Read};
use crate::families::{Defaults, DenseLayers, Normalize, RouterKind};
use firebox_model::config::{
    BalanceKind, ExpertActivation, ExpertsConfig, FeedForwardKind, FeedForwardName, MoeConfig,
    RouterConfig, Scores,
};

/// Both spellings of the number of experts.
const EXPERT_COUNTS: [&str; 2] = ["num_experts", "num_local_experts"];

/// The default of the field with the width of a feed-forward.
fn width(absent: &Defaults, field: &str) -> usize {
    match field {
        "moe_intermediate_size" => absent.moe_intermediate_size,
        _ => absent.intermediate_size,
    }
}

impl Fields<'_> {
    pub(super) fn moe(&self) -> Read<MoeConfig> {
        let family = &self.family;
        let absent = &family.defaults;
        let d_ff = self.size_or(family.d_ff, width(absent, family.d_ff))?;
        let of_gpt_oss = family.router == RouterKind::GptOss;
        Ok(MoeConfig {
            experts: ExpertsConfig {
                count: self.experts()?,
                top_k: self.size_or("num_experts_per_tok", absent.num_experts_per_tok)?,
                d_ff,
                activation: match of_gpt_oss {
                    true => ExpertActivation::ClampedSwiglu {
                        alpha: self.number_or("swiglu_alpha", ExpertActivation::ALPHA)?,
                        limit: self.number_or("swiglu_limit", ExpertActivation::LIMIT)?,
                    },
                    false => ExpertActivation::Swiglu,
                },
                biases: of_gpt_oss,
                shared_d_ff: match family.router {
                    RouterKind::Qwen2Moe => self.shared_width()?,
                    _ => self
                        .size_or("n_shared_experts", absent.n_shared_experts)?
                        .saturating_mul(d_ff),
                },
                shared_gate: family.router == RouterKind::Qwen2Moe,
            },
            router: RouterConfig {
                logit_bias: of_gpt_oss,
                scores: match family.router {
                    RouterKind::Softmax | RouterKind::Qwen2Moe | RouterKind::GptOss => {
                        Scores::Softmax
                    }
                    RouterKind::DeepSeekV3 => Scores::Sigmoid,
                },
                scaling: self.number_or("routed_scaling_factor", absent.routed_scaling_factor)?,
                groups: self.size_or("n_group", absent.n_group)?,
                top_groups: self.size_or("topk_group", absent.topk_group)?,
                normalize: match family.normalize {
                    Normalize::Always => true,
                    // To `transformers` null is false, whatever an absent field is.
                    Normalize::AsConfigured => match self.value.get("norm_topk_prob") {
                        Some(Value::Null) => false,
                        _ => self.flag_or("norm_topk_prob", absent.norm_topk_prob)?,
                    },
                },
                balance: BalanceKind::Pooled,
                balance_coefficient: self
                    .number_or("router_aux_loss_coef", absent.router_aux_loss_coef)?,
                z_coefficient: 0.0,
                bias_update_rate: 0.0,
            },
        })
    }

    /// The width of the shared expert, in a family whose mixtures all have one.
    fn shared_width(&self) -> Read<usize> {
        let key = "shared_expert_intermediate_size";
        let absent = self.family.defaults.shared_expert_intermediate_size;
        match self.size_or(key, absent)? {
            0 => {
                let rule = format!(
                    "must be at least 1: every mixture of {} has a shared expert",
                    self.family.model_type
                );
                Err(self.error(key, &0.into(), &rule))
            }
            width => Ok(width),
        }
    }

    fn experts(&self) -> Read<usize> {
        let all = self.family.experts.iter().chain(&EXPERT_COUNTS);
        let mut spellings = all.filter(|key| self.get(key).is_some());
        let Some(first) = spellings.next() else {
            return Ok(self.family.defaults.num_experts);
        };
        let count = self.size(first)?;
        match spellings.find(|key| self.get(key) != self.get(first)) {
            Some(other) => {
                let rule = format!("must be {first} = {count}, which it is another name of");
                Err(self.error(other, self.get(other).unwrap_or(&Value::Null), &rule))
            }
            None => Ok(count),
        }
    }

    /// The feed-forward of each layer. Of a mixture, dense are the first layers, or all but those where i + 1 is a multiple
    /// of `decoder_sparse_step` and i is not in `mlp_only_layers`.
    pub(super) fn feed_forwards(&self, layers: usize) -> Read<Vec<FeedForwardKind>> {
        let family = &self.family;
        let dense = |field: &str| -> Read<FeedForwardKind> {
            let d_ff = self.size_or(field, width(&family.defaults, field))?;
            Ok(FeedForwardKind::Dense { d_ff })
        };
        if family.feed_forward == FeedForwardName::Dense {
            return Ok(vec![dense(family.d_ff)?; layers]);
        }
        let is_dense: Vec<bool> = match family.dense_layers {
            DenseLayers::None => vec![false; layers],
            DenseLayers::First => {
                let first = self.size_or(
                    "first_k_dense_replace",
                    family.defaults.first_k_dense_replace,
                )?;
                (0..layers).map(|layer| layer < first).collect()
            }
            DenseLayers::Any => {
                let step = self.size_or("decoder_sparse_step", 1)?.max(1);
                let listed = match self.get("mlp_only_layers") {
                    None => Vec::new(),
                    Some(value) => self.numbers("mlp_only_layers", value)?,
                };
                let is_dense = |layer: usize| {
                    !(layer + 1).is_multiple_of(step) || listed.contains(&(layer as u64))
                };
                (0..layers).map(is_dense).collect()
            }
        };
        if !is_dense.contains(&true) {
            return Ok(vec![FeedForwardKind::Moe; layers]);
        }
        let dense = dense("intermediate_size")?;
        let kind = |is_dense| {
            if is_dense {
                dense
            } else {
                FeedForwardKind::Moe
            }
        };
        Ok(is_dense.into_iter().map(kind).collect())
    }
}
