//! The cost by the number of texts at once, beside that of another model.

use std::path::PathBuf;

use serde::Serialize;

use firebox_model::config::ModelConfig;
use firebox_model::parallel::{MOST_RANKS, RankLayout};

use super::PlanError;
use super::estimate::{Plan, Planner, Workload};
use super::hardware::Hardware;

/// A model to compare the cost with.
#[derive(Debug, Clone, PartialEq)]
pub struct Beside {
    /// Where it was found.
    pub path: PathBuf,
    /// The model.
    pub config: ModelConfig,
}

/// The cost at a number of texts at once.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByBatch {
    /// Texts at once.
    pub batch: usize,
    /// Share of the experts that a step visits; `None` for a dense model.
    pub expert_utilization: Option<f64>,
    /// Seconds from a token to the next one.
    pub token_seconds: f64,
    /// Generated tokens per second of all texts.
    pub tokens_per_second: f64,
    /// Dollars for a million generated tokens.
    pub dollars_per_million: f64,
    /// Whether it fits into memory.
    pub fits: bool,
    /// The other model with the same tensor ranks and the fewest stages that fit, where there is one and it fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<Plan>,
}

impl ByBatch {
    /// The cost over that of the other model, where that fits.
    pub fn cost_ratio(&self) -> Option<f64> {
        let beside = self.beside.as_ref()?;
        Some(self.dollars_per_million / beside.dollars_per_million)
    }
}

/// A layout of a model at any number of texts at once, beside another model.
#[derive(Debug)]
pub struct Comparison<'a> {
    planner: Planner<'a>,
    pipeline: usize,
    beside: Option<Planner<'a>>,
    workload: Workload,
}

impl<'a> Comparison<'a> {
    /// Prepares the comparison; the batch of `workload` is of no account.
    ///
    /// # Errors
    ///
    /// When the model has no such layout, or the other one cannot have the same tensor ranks.
    pub fn new(
        config: &'a ModelConfig,
        layout: RankLayout,
        hardware: &'a Hardware,
        workload: Workload,
        beside: Option<&'a Beside>,
    ) -> Result<Self, PlanError> {
        let undivided = RankLayout {
            pipeline: 1,
            expert: 1,
            ..layout
        };
        let beside = beside.map(|Beside { path, config }| {
            Planner::of_layout(config, undivided, hardware).map_err(|error| PlanError::Beside {
                model: path.clone(),
                tensor: layout.tensor,
                error,
            })
        });
        Ok(Self {
            planner: Planner::of_layout(config, layout, hardware)?,
            pipeline: layout.pipeline,
            beside: beside.transpose()?,
            workload,
        })
    }

    /// The cost at `batch` texts at once.
    pub fn at(&self, batch: usize) -> ByBatch {
        let workload = Workload {
            batch,
            ..self.workload
        };
        let plan = self.planner.plan(self.pipeline, workload);
        let beside = self.beside.as_ref();
        ByBatch {
            batch,
            expert_utilization: plan.expert_utilization,
            token_seconds: plan.token_seconds,
            tokens_per_second: plan.tokens_per_second,
            dollars_per_million: plan.dollars_per_million,
            fits: plan.fits,
            beside: beside
                .and_then(|other| other.plans(MOST_RANKS, workload).find(|plan| plan.fits)),
        }
    }

    /// The costs at powers of four up to 4,096, and at `asked`.
    pub fn rows(&self, asked: usize) -> Vec<ByBatch> {
        let mut batches: Vec<usize> = (0..7).map(|power| 4usize.pow(power)).collect();
        batches.push(asked);
        batches.sort_unstable();
        batches.dedup();
        batches.into_iter().map(|batch| self.at(batch)).collect()
    }

    /// The largest number of texts at which the cost is still three times that of the other model: by halving between two
    /// rows of which the first is above that and the second below.
    pub fn three_times_at(&self, rows: &[ByBatch]) -> Option<usize> {
        let above = |row: &ByBatch| row.cost_ratio().map(|ratio| ratio >= 3.0);
        let mut pairs = rows.windows(2);
        let pair =
            pairs.rfind(|pair| above(&pair[0]) == Some(true) && above(&pair[1]) == Some(false));
        let [first, last] = pair? else { return None };
        let (mut first, mut last) = (first.batch, last.batch);
        while last - first > 1 {
            let middle = first + (last - first) / 2;
            match above(&self.at(middle)) {
                Some(true) => first = middle,
                _ => last = middle,
            }
        }
        Some(first)
    }
}
