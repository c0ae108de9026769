//! How far a draft pays off.

use serde::Serialize;

use firebox_model::config::ModelConfig;
use firebox_model::parallel::{LayoutError, RankLayout};

use super::estimate::{Planner, Workload};
use super::expert_utilization;
use super::hardware::Hardware;

/// The longest draft that is looked at.
const LONGEST: usize = 12;

/// Speculative decoding with drafts of one length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speculation {
    /// Tokens of a draft (γ).
    pub draft_tokens: usize,
    /// Tokens of a text that one step of the model gives on average: `(1 − a^(γ+1)) / (1 − a)` where each is accepted with
    /// probability a (arXiv 2211.17192, eq. 1).
    pub tokens_per_step: f64,
    /// Share of the experts that a step visits, which grows with its tokens; `None` for a dense model.
    pub expert_utilization: Option<f64>,
    /// Generated tokens per second of all texts.
    pub tokens_per_second: f64,
    /// The same over that without a draft.
    pub speedup: f64,
}

/// Every length of a draft up to 12, given the probability that a token of it is accepted and the time that drafting one
/// takes, as a share of a step without a draft.
///
/// # Errors
///
/// When the model cannot be laid out so.
pub fn speculate(
    config: &ModelConfig,
    layout: RankLayout,
    hardware: &Hardware,
    workload: Workload,
    acceptance: f64,
    draft_cost: f64,
) -> Result<Vec<Speculation>, LayoutError> {
    layout.check(config)?;
    let planner = Planner::new(config, layout.tensor, layout.expert, hardware, workload)?;
    let batch = workload.batch as f64;
    let alone = planner.token_seconds(layout, 1.0);
    let lengths = (0..=LONGEST).map(|draft_tokens| {
        let checked = (draft_tokens + 1) as f64;
        let tokens_per_step: f64 = (0..=draft_tokens)
            .map(|place| acceptance.powi(place as i32))
            .sum();
        let seconds =
            planner.token_seconds(layout, checked) + draft_tokens as f64 * draft_cost * alone;
        let in_flight = layout.pipeline.min(workload.batch) as f64;
        Speculation {
            draft_tokens,
            tokens_per_step,
            expert_utilization: config.moe.as_ref().map(|moe| {
                let tokens = batch / in_flight * checked;
                expert_utilization(moe.experts.top_k, moe.experts.count, tokens)
            }),
            tokens_per_second: batch * tokens_per_step / seconds,
            speedup: tokens_per_step * alone / seconds,
        }
    });
    Ok(lengths.collect())
}
