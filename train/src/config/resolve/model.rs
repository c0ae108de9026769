//! Resolves `[model]` of a run that starts from random weights; also helpers for other runs.

use firebox_model::config::{
    BalanceKind, DenseConfig, ExpertsConfig, FeedForwardKind, LARGEST_SIZE, ModelConfig, QkNorm,
    RouterConfig, Scores,
};

use super::rope::rope_scaling;
use super::{Checked, between, without_effect};
use crate::config::error::Problem;
use crate::config::raw::{RawDense, RawExperts, RawModel, RawRouter};

/// Defaults of `[model.router]`.
pub(super) const ROUTER: RouterConfig = RouterConfig {
    scores: Scores::Softmax,
    normalize: true,
    scaling: 1.0,
    groups: 1,
    top_groups: 1,
    balance: BalanceKind::PerLayer,
    balance_coefficient: 0.01,
    z_coefficient: 0.001,
    bias_update_rate: 0.0,
};

pub(super) fn model(raw: RawModel, vocab_size: usize) -> Checked<ModelConfig> {
    let needed = |key: &str, value: Option<usize>| {
        value.ok_or_else(|| Problem::missing(format!("model.{key}")))
    };
    let layers = needed("layers", raw.layers)?;
    let d_model = needed("d_model", raw.d_model)?;
    let heads = needed("heads", raw.heads)?;
    let context_length = needed("context_length", raw.context_length)?;
    let RawExperts {
        count,
        top_k,
        d_ff,
        shared_d_ff,
    } = raw
        .experts
        .ok_or_else(|| Problem::missing("model.experts"))?;
    let experts = ExpertsConfig {
        count: needed("experts.count", count)?,
        top_k: needed("experts.top_k", top_k)?,
        d_ff: needed("experts.d_ff", d_ff)?,
        shared_d_ff: shared_d_ff.unwrap_or(0),
    };
    between("model.heads", heads, 1, LARGEST_SIZE)?;
    let head_dim = match raw.head_dim {
        Some(head_dim) => head_dim,
        None if d_model.is_multiple_of(heads) => d_model / heads,
        None => {
            let rule =
                format!("must divide model.d_model = {d_model}, because model.head_dim is not set");
            return Err(Problem::new("model.heads", rule)
                .hint("set model.head_dim, or change one of the two"));
        }
    };
    let feed_forward = raw.feed_forward.unwrap_or(FeedForwardKind::Moe);
    refuse_dense_layers(feed_forward, raw.dense.as_ref())?;
    checked(ModelConfig {
        vocab_size,
        layers,
        d_model,
        heads,
        kv_heads: raw.kv_heads.unwrap_or(1),
        head_dim,
        context_length,
        rope_theta: raw.rope_theta.unwrap_or(10_000.0),
        rope_scaling: raw.rope_scaling.map(rope_scaling).transpose()?,
        norm_epsilon: raw.norm_epsilon.unwrap_or(1e-5),
        tied_embeddings: raw.tied_embeddings.unwrap_or(false),
        initializer_range: raw.initializer_range.unwrap_or(0.02),
        qk_norm: raw.qk_norm.unwrap_or(QkNorm::None),
        feed_forward,
        dense: raw.dense.map(|dense| DenseConfig {
            layers: dense.layers,
            // `checked` limits the sizes below; here they may still overflow.
            d_ff: dense.d_ff.unwrap_or_else(|| {
                let selected = experts.d_ff.saturating_mul(experts.top_k);
                selected.saturating_add(experts.shared_d_ff)
            }),
        }),
        experts,
        router: router(raw.router, ROUTER),
    })
}

/// Resolves `[model.router]` with the given defaults.
pub(super) fn router(raw: RawRouter, defaults: RouterConfig) -> RouterConfig {
    RouterConfig {
        scores: raw.scores.unwrap_or(defaults.scores),
        normalize: raw.normalize.unwrap_or(defaults.normalize),
        scaling: raw.scaling.unwrap_or(defaults.scaling),
        groups: raw.groups.unwrap_or(defaults.groups),
        top_groups: raw.top_groups.unwrap_or(defaults.top_groups),
        balance: raw.balance.unwrap_or(defaults.balance),
        balance_coefficient: raw
            .balance_coefficient
            .unwrap_or(defaults.balance_coefficient),
        z_coefficient: raw.z_coefficient.unwrap_or(defaults.z_coefficient),
        bias_update_rate: raw.bias_update_rate.unwrap_or(defaults.bias_update_rate),
    }
}

/// Refuses `[model.dense]` in a model whose layers are all dense.
pub(super) fn refuse_dense_layers(
    feed_forward: FeedForwardKind,
    dense: Option<&RawDense>,
) -> Checked<()> {
    match (feed_forward, dense) {
        (FeedForwardKind::Dense, Some(_)) => Err(without_effect(
            "model.dense",
            "with model.feed_forward = \"dense\"",
        )
        .hint("remove it, or set feed_forward = \"moe\"")),
        _ => Ok(()),
    }
}

pub(super) fn checked(model: ModelConfig) -> Checked<ModelConfig> {
    model.validate().map_err(|error| {
        Problem::new(format!("model.{}", error.key), error.rule)
            .value(error.value)
            .hint(error.hint)
    })?;
    Ok(model)
}
