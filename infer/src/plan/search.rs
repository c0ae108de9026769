//! The layouts that can be, and the best of them.

use firebox_model::config::ModelConfig;
use firebox_model::parallel::RankLayout;

use super::PlanError;
use super::estimate::{Plan, Planner, Workload};
use super::hardware::Hardware;

/// What a layout has to keep.
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
    let mut best: Option<Plan> = None;
    let tensors = std::iter::successors(Some(1), |tensor| Some(tensor * 2));
    for tensor in tensors.take_while(|&tensor| tensor <= hardware.node.min(bounds.ranks)) {
        let mut groups = vec![1, tensor];
        groups.dedup();
        for expert in groups {
            let layout = RankLayout {
                pipeline: 1,
                tensor,
                expert,
            };
            if layout.check(config).is_err() {
                continue;
            }
            let planner = Planner::new(config, tensor, expert, hardware, workload)?;
            for pipeline in 1..=config.layers.len().min(bounds.ranks / tensor) {
                let plan = planner.plan(pipeline);
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
        ranks: bounds.ranks,
        latency: bounds.latency,
    })
}

/// The plan with the fewest stages of so many tensor ranks that holds the model and the caches of all texts.
///
/// # Errors
///
/// When none does.
pub fn fewest_stages(
    config: &ModelConfig,
    tensor: usize,
    hardware: &Hardware,
    workload: Workload,
) -> Result<Plan, PlanError> {
    let planner = Planner::new(config, tensor, 1, hardware, workload)?;
    let layers = config.layers.len();
    let mut plans = (1..=layers).map(|pipeline| planner.plan(pipeline));
    plans.find(|plan| plan.fits).ok_or(PlanError::NothingFits {
        ranks: layers * tensor,
        latency: None,
    })
}
