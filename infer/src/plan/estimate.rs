//! What a layout needs, and how fast it is.

use firebox_kernels::dtype::WeightFormat;
use firebox_model::config::{ModelConfig, VisionConfig};
use firebox_model::parallel::stages::LayerCosts;
use firebox_model::parallel::traffic::PassTraffic;
use firebox_model::parallel::{LayoutError, RankLayout};
use serde::Serialize;

use super::hardware::Hardware;
use super::loads::{Count, RankLoads};
use super::memory::{Bytes, Memory};
use super::stage::Stages;

/// The inference workload.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Workload {
    /// Texts that are generated at once.
    pub batch: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens that follow it.
    pub output: usize,
    /// Pictures that a text sees, all of them from its first token on; 0 with a model of text alone.
    pub pictures: usize,
    /// Bytes of a value.
    pub widths: Widths,
}

impl Workload {
    /// Positions of the pictures of a text, in a model's layers that attend to them.
    pub(super) fn picture_positions(&self, config: &ModelConfig) -> f64 {
        let keys = config.vision.as_ref().map_or(0, VisionConfig::keys);
        (self.pictures * keys) as f64
    }
}

/// Bytes of one value, by what it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Widths {
    /// A weight of a matrix that activations are multiplied with, its part of a scale included.
    pub weight: f64,
    /// Another weight, such as one of the embedding, and an intermediate value within a layer.
    pub number: usize,
    /// A key or a value in the cache.
    pub cache: usize,
    /// An activation that ranks send.
    pub message: usize,
}

impl Widths {
    /// Those of weights in this format; keys, values and messages are as wide as its numbers.
    pub fn of(format: WeightFormat) -> Self {
        let number = format.plain().bytes();
        Self {
            weight: format.bytes(),
            number,
            cache: number,
            message: number,
        }
    }

    /// Bytes of so many weights.
    pub(super) fn weights(self, count: Count) -> f64 {
        self.weight * count.matrices + self.number as f64 * count.numbers
    }
}

/// What a layout needs and how fast it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The layout.
    pub layout: RankLayout,
    /// Number of ranks.
    pub ranks: usize,
    /// Bytes of the weights of the fullest rank.
    pub weight_bytes: f64,
    /// Bytes of the caches of all texts on this rank, keys and values of their pictures included.
    pub cache_bytes: f64,
    /// Those of their pictures.
    pub picture_bytes: f64,
    /// Bytes of intermediate values of this rank while it reads a prompt; an upper estimate.
    pub activation_bytes: f64,
    /// Bytes of a rank's memory.
    pub memory_bytes: f64,
    /// Whether every rank's bytes fit into its memory.
    pub fits: bool,
    /// The largest number of texts at once that fits.
    pub largest_batch: usize,
    /// Mean over maximum of the stages' parameters.
    pub stage_balance: f64,
    /// Seconds from a prompt, alone, to its first token.
    pub first_token_seconds: f64,
    /// Seconds from a token of a text to its next one.
    pub token_seconds: f64,
    /// Generated tokens per second of all texts, while no prompt is read.
    pub tokens_per_second: f64,
    /// Share of each layer's experts that the tokens of a step visit, under balanced routing; of one of the micro-batches that
    /// follow each other through the stages. `None` for a dense model.
    pub expert_utilization: Option<f64>,
    /// Messages of one generated token of one text.
    pub traffic: PassTraffic,
    /// Dollars for a million generated tokens, their prompts included.
    pub dollars_per_million: f64,
}

/// A model over tensor ranks, prepared for plans with any number of stages and any workload.
#[derive(Debug)]
pub(super) struct Planner<'a> {
    config: &'a ModelConfig,
    hardware: &'a Hardware,
    loads: RankLoads,
    costs: LayerCosts,
    tensor: usize,
    expert: usize,
}

impl Plan {
    /// Plans a model.
    ///
    /// # Errors
    ///
    /// When the model cannot be laid out so.
    pub fn of(
        config: &ModelConfig,
        layout: RankLayout,
        hardware: &Hardware,
        workload: Workload,
    ) -> Result<Self, LayoutError> {
        let planner = Planner::of_layout(config, layout, hardware)?;
        Ok(planner.plan(layout.pipeline, workload))
    }

    /// Bytes of the fullest rank.
    pub fn total_bytes(&self) -> f64 {
        self.weight_bytes + self.cache_bytes + self.activation_bytes
    }
}

impl<'a> Planner<'a> {
    /// Prepares plans with `tensor` tensor ranks in `expert` groups.
    pub fn new(
        config: &'a ModelConfig,
        tensor: usize,
        expert: usize,
        hardware: &'a Hardware,
    ) -> Result<Self, LayoutError> {
        Ok(Self {
            config,
            hardware,
            loads: RankLoads::of(config, tensor, expert)?,
            costs: LayerCosts::of(config),
            tensor,
            expert,
        })
    }

    /// Prepares plans with the tensor ranks of a layout, which is checked.
    pub fn of_layout(
        config: &'a ModelConfig,
        layout: RankLayout,
        hardware: &'a Hardware,
    ) -> Result<Self, LayoutError> {
        layout.check(config)?;
        Self::new(config, layout.tensor, layout.expert, hardware)
    }

    /// The model over `pipeline` stages, at least one and no more than layers.
    pub fn stages(&self, pipeline: usize, workload: Workload) -> Stages<'_> {
        Stages {
            config: self.config,
            hardware: self.hardware,
            loads: &self.loads,
            workload,
            layout: RankLayout {
                pipeline,
                tensor: self.tensor,
                expert: self.expert,
            },
            layers: self.costs.divide(pipeline),
        }
    }

    /// The plan with `pipeline` stages, at least one and no more than layers.
    pub fn plan(&self, pipeline: usize, workload: Workload) -> Plan {
        let stages = self.stages(pipeline, workload);
        let layout = stages.layout;
        let batch = workload.batch as f64;
        let memory = self.hardware.memory(layout.ranks());
        let of_ranks = self.bytes(&stages);
        let texts = of_ranks.iter().map(|rank| rank.largest_batch(memory));
        let largest_batch = texts.fold(f64::INFINITY, f64::min) as usize;
        let fullest = of_ranks
            .iter()
            .max_by(|one, other| one.total(batch).total_cmp(&other.total(batch)))
            .expect("there is a rank");

        let costs = self.costs.of_stages(&stages.layers);
        let parameters = || costs.iter().map(|cost| cost.parameters);
        let mean = parameters().sum::<f64>() / pipeline as f64;
        let token_seconds = stages.step_seconds(1.0);
        let tokens_per_second = batch / token_seconds;
        // Prompts follow each other through the stages, too.
        let prompt_seconds = stages.prompt_seconds() / workload.output as f64;
        let per_second = self.hardware.dollars_per_second(layout.ranks());
        Plan {
            layout,
            ranks: layout.ranks(),
            weight_bytes: fullest.weights,
            cache_bytes: batch * fullest.cache,
            picture_bytes: batch * fullest.pictures,
            activation_bytes: fullest.activations(batch),
            memory_bytes: memory,
            fits: workload.batch <= largest_batch,
            largest_batch,
            stage_balance: mean / parameters().fold(0.0, f64::max),
            first_token_seconds: stages.first_token_seconds(),
            token_seconds,
            tokens_per_second,
            expert_utilization: stages.expert_utilization(1.0),
            traffic: stages.traffic(),
            dollars_per_million: (1.0 / tokens_per_second + prompt_seconds) * per_second * 1e6,
        }
    }

    /// The plans with every number of stages that gives no more than `ranks` ranks, from one stage on.
    pub fn plans(&self, ranks: usize, workload: Workload) -> impl Iterator<Item = Plan> {
        let most = self.config.layers.len().min(ranks / self.tensor);
        (1..=most).map(move |pipeline| self.plan(pipeline, workload))
    }

    /// The bytes of every rank.
    pub fn bytes(&self, stages: &Stages) -> Vec<Bytes> {
        let memory = Memory {
            config: self.config,
            loads: &self.loads,
            tensor: self.tensor,
            expert: self.expert,
            workload: stages.workload,
        };
        let stages = stages.layers.iter();
        let ranks = stages
            .flat_map(|layers| (0..self.tensor).map(move |rank| memory.of_rank(rank, layers)));
        ranks.collect()
    }
}
