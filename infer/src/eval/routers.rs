//! Router health in a report.

use std::fmt;

use firebox_console::report::Table;
use firebox_model::config::ModelConfig;
use firebox_model::evaluate::Evaluation;
use firebox_model::moe::stats::{self, LayerHealth};
use serde::Serialize;

/// What the routers of a model did; all lists are empty for a dense model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routers {
    /// Load-balancing loss of each MoE layer, 1 when balanced.
    pub balance: Vec<f64>,
    /// Mean of `balance` over the layers; `None` for a dense model.
    pub balance_mean: Option<f64>,
    /// Fraction of the assignments that each expert receives, layer × expert.
    pub expert_load: Vec<Vec<f64>>,
    /// Mean entropy of a token's router probabilities per layer, in nats.
    pub router_entropy: Vec<f64>,
    /// Router z-loss per layer.
    pub router_z: Vec<f64>,
    #[serde(skip)]
    layers: Vec<LayerHealth>,
    /// Assignments of tokens to experts per MoE layer.
    #[serde(skip)]
    assignments: u64,
}

impl Routers {
    /// Those of a model in an evaluation.
    pub(super) fn of(evaluation: Evaluation, config: &ModelConfig) -> Self {
        let layers = evaluation.layers;
        let balance: Vec<f64> = layers.iter().map(|layer| layer.balance).collect();
        let top_k = config.moe.as_ref().map_or(0, |moe| moe.experts.top_k);
        Self {
            balance_mean: (!balance.is_empty())
                .then(|| balance.iter().sum::<f64>() / balance.len() as f64),
            balance,
            expert_load: layers.iter().map(|layer| layer.load.clone()).collect(),
            router_entropy: layers.iter().map(|layer| layer.entropy).collect(),
            router_z: layers.iter().map(|layer| layer.z).collect(),
            layers,
            assignments: evaluation.tokens * top_k as u64,
        }
    }

    /// A warning if experts collapse.
    pub fn warning(&self) -> Option<String> {
        stats::warning(&self.layers, self.assignments)
    }
}

/// A table after an empty line; nothing for a dense model.
impl fmt::Display for Routers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.layers.is_empty() {
            return Ok(());
        }
        let table = Table::new("").numbers([
            "layer",
            "max/mean load",
            "dead experts",
            "entropy",
            "balance",
            "z-loss",
        ]);
        let table = self.layers.iter().fold(table, |table, layer| {
            table.row([
                layer.layer.to_string().into(),
                format!("{:.3}", layer.max_over_mean).into(),
                format!("{} of {}", layer.dead_experts, layer.load.len()).into(),
                format!("{:.4}", layer.entropy).into(),
                format!("{:.4}", layer.balance).into(),
                format!("{:.4}", layer.z).into(),
            ])
        });
        write!(formatter, "\n{table}")
    }
}
