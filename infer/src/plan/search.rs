//! Search for the cheapest layout.

use firebox_model::config::ModelConfig;
use firebox_model::parallel::{MOST_RANKS, RankLayout};

use super::PlanError;
use super::estimate::{Plan, Planner, Workload};
use super::hardware::Hardware;

/// Constraints of the search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// The largest number of ranks.
    pub ranks: usize,
    /// The longest time from a token to the next one, in seconds.
    pub latency: Option<f64>,
}

/// The layout that costs least per token among those that hold the model, the caches of all texts, and the bounds: any number
/// of stages, powers of two of tensor ranks within a node, each with parts of all experts or with whole ones.
///
/// # Errors
///
/// When none does.
pub fn cheapest(
    config: &ModelConfig,
    hardware: &Hardware,
    workload: Workload,
    bounds: Bounds,
) -> Result<Plan, PlanError> {
    let ranks = bounds.ranks.min(MOST_RANKS);
    let mut best: Option<Plan> = None;
    let tensors = std::iter::successors(Some(1), |tensor| Some(tensor * 2));
    for tensor in tensors.take_while(|&tensor| tensor <= hardware.node.min(ranks)) {
        let mut groups = vec![1, tensor];
        groups.dedup();
        for expert in groups {
            let layout = RankLayout {
                pipeline: 1,
                tensor,
                expert,
            };
            let Ok(planner) = Planner::of_layout(config, layout, hardware) else {
                continue;
            };
            for plan in planner.plans(ranks, workload) {
                let quick = bounds.latency.is_none_or(|most| plan.token_seconds <= most);
                let cheaper = best
                    .as_ref()
                    .is_none_or(|best| plan.dollars_per_million < best.dollars_per_million);
                if plan.fits && quick && cheaper {
                    best = Some(plan);
                }
            }
        }
    }
    best.ok_or(PlanError::NothingFits {
        ranks,
        latency: bounds.latency,
    })
}
