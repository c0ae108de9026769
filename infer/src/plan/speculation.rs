//! How far a draft pays off.

use serde::Serialize;

use firebox_model::config::ModelConfig;
use firebox_model::parallel::{LayoutError, RankLayout};

use super::estimate::{Planner, Workload};
use super::hardware::Hardware;

/// The longest draft that is looked at.
const LONGEST: usize = 12;

/// What drafts are worth and what they cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Drafting {
    /// The probability that a token of a draft is accepted.
    pub acceptance: f64,
    /// The time of drafting one token, as a share of a step without a draft.
    pub cost: f64,
}

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

/// Every length of a draft up to 12.
///
/// # Errors
///
/// When the model cannot be laid out so.
pub fn speculate(
    config: &ModelConfig,
    layout: RankLayout,
    hardware: &Hardware,
    workload: Workload,
    drafting: Drafting,
) -> Result<Vec<Speculation>, LayoutError> {
    let planner = Planner::of_layout(config, layout, hardware)?;
    let stages = planner.stages(layout.pipeline, workload);
    let alone = stages.step_seconds(1.0);
    let lengths = (0..=LONGEST).map(|draft_tokens| {
        let checked = (draft_tokens + 1) as f64;
        let tokens_per_step: f64 = (0..=draft_tokens)
            .map(|place| drafting.acceptance.powi(place as i32))
            .sum();
        let drafted = draft_tokens as f64 * drafting.cost * alone;
        let seconds = stages.step_seconds(checked) + drafted;
        Speculation {
            draft_tokens,
            tokens_per_step,
            expert_utilization: stages.expert_utilization(checked),
            tokens_per_second: workload.batch as f64 * tokens_per_step / seconds,
            speedup: tokens_per_step * alone / seconds,
        }
    });
    Ok(lengths.collect())
}
