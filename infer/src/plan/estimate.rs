//! What a layout needs, and how fast it is.

use std::ops::Range;

use serde::Serialize;

use firebox_model::config::ModelConfig;
use firebox_model::parallel::stages::{Loads as StageLoads, stages};
use firebox_model::parallel::traffic::PassTraffic;
use firebox_model::parallel::{LayoutError, RankLayout};

use super::expert_utilization;
use super::hardware::Hardware;
use super::loads::Loads;
use super::stage::{Stages, Work};

/// What is asked of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Workload {
    /// Texts that are generated at once.
    pub batch: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens that follow it.
    pub output: usize,
    /// Bytes of a weight, and of a value in the cache.
    pub width: usize,
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
    /// Bytes of the caches of all texts on the fullest rank.
    pub cache_bytes: f64,
    /// Bytes of intermediate values of the fullest rank while it reads a prompt; an upper estimate.
    pub activation_bytes: f64,
    /// Whether these fit into the memory of an accelerator.
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

/// A tensor rank of the stage with these layers.
type Place<'a> = (usize, &'a Range<usize>);

/// A model over tensor ranks, prepared for plans with any number of stages.
#[derive(Debug)]
pub(super) struct Planner<'a> {
    config: &'a ModelConfig,
    hardware: &'a Hardware,
    workload: Workload,
    loads: Loads,
    stage_loads: StageLoads,
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
        layout.check(config)?;
        let planner = Planner::new(config, layout.tensor, layout.expert, hardware, workload)?;
        Ok(planner.plan(layout.pipeline))
    }
}

impl<'a> Planner<'a> {
    /// Prepares plans with so many tensor ranks, in so many groups of experts.
    pub fn new(
        config: &'a ModelConfig,
        tensor: usize,
        expert: usize,
        hardware: &'a Hardware,
        workload: Workload,
    ) -> Result<Self, LayoutError> {
        Ok(Self {
            config,
            hardware,
            workload,
            loads: Loads::of(config, tensor, expert)?,
            stage_loads: StageLoads::of(config),
            tensor,
            expert,
        })
    }

    fn layout(&self, pipeline: usize) -> RankLayout {
        RankLayout {
            pipeline,
            tensor: self.tensor,
            expert: self.expert,
        }
    }

    /// The plan with so many stages, at least one and no more than layers.
    pub fn plan(&self, pipeline: usize) -> Plan {
        let layout = self.layout(pipeline);
        let workload = self.workload;
        let width = workload.width as f64;
        let divided = stages(self.config, pipeline);
        let length = (workload.prompt + workload.output) as f64;
        let places = || {
            divided
                .iter()
                .flat_map(|layers| (0..self.tensor).map(move |rank| (rank, layers)))
        };
        let most = |of: &dyn Fn(Place<'_>) -> f64| places().map(of).fold(0.0, f64::max);
        let weights =
            |(rank, layers): Place<'_>| width * self.loads.of_stage(rank, layers).parameters();
        let of_text = |(rank, layers): Place<'_>| width * self.loads.cached(rank, layers, length);
        let activations = self.activations();
        let free = |place| self.hardware.memory_bytes - weights(place) - activations;
        let texts = places().map(|place| (free(place) / of_text(place)).floor().max(0.0));
        let largest_batch = texts.fold(f64::INFINITY, f64::min) as usize;

        let loads = self.stage_loads.of_stages(&divided);
        let parameters = || loads.iter().map(|load| load.parameters);
        let mean = parameters().sum::<f64>() / pipeline as f64;
        let token_seconds = self.token_seconds(layout, 1.0);
        let batch = workload.batch as f64;
        let tokens_per_second = batch / token_seconds;
        let mut plan = Plan {
            layout,
            ranks: layout.ranks(),
            weight_bytes: most(&weights),
            cache_bytes: batch * most(&of_text),
            activation_bytes: activations,
            fits: workload.batch <= largest_batch,
            largest_batch,
            stage_balance: mean / parameters().fold(0.0, f64::max),
            first_token_seconds: self.first_token_seconds(layout),
            token_seconds,
            tokens_per_second,
            expert_utilization: self.config.moe.as_ref().map(|moe| {
                let tokens = batch / self.in_flight(pipeline);
                expert_utilization(moe.experts.top_k, moe.experts.count, tokens)
            }),
            traffic: PassTraffic::of_pass(self.config, self.tensor, &divided, 1, workload.width),
            dollars_per_million: 0.0,
        };
        plan.dollars_per_million = self.dollars(&plan, 1.0 / tokens_per_second) * 1e6;
        plan
    }

    /// Micro-batches that follow each other through the stages.
    fn in_flight(&self, pipeline: usize) -> f64 {
        pipeline.min(self.workload.batch) as f64
    }

    fn stages(&self, layout: RankLayout) -> Stages<'_> {
        Stages {
            config: self.config,
            layout,
            loads: &self.loads,
            hardware: self.hardware,
            width: self.workload.width as f64,
        }
    }

    /// Seconds of one step of all texts with so many tokens of each. Micro-batches follow each other: a text waits for all
    /// stages, and each stage for all micro-batches, whichever takes longer.
    pub fn token_seconds(&self, layout: RankLayout, tokens_of_text: f64) -> f64 {
        let Workload {
            batch,
            prompt,
            output,
            ..
        } = self.workload;
        let in_flight = self.in_flight(layout.pipeline);
        let texts = batch as f64 / in_flight;
        let work = Work {
            tokens: texts * tokens_of_text,
            drawn: texts * tokens_of_text,
            texts,
            // Half of the output is there on average.
            context: prompt as f64 + output as f64 / 2.0,
        };
        let (through, slowest) = self.pass(layout, work);
        through.max(in_flight * slowest)
    }

    fn first_token_seconds(&self, layout: RankLayout) -> f64 {
        self.pass(layout, self.reading()).0
    }

    /// The work on a prompt.
    fn reading(&self) -> Work {
        let tokens = self.workload.prompt as f64;
        Work {
            tokens,
            drawn: 1.0,
            texts: 1.0,
            // Half of the prompt stands before a token on average.
            context: tokens / 2.0,
        }
    }

    /// Seconds of work to pass through all stages, and those of the slowest one.
    fn pass(&self, layout: RankLayout, work: Work) -> (f64, f64) {
        let of = self.stages(layout);
        let divided = stages(self.config, layout.pipeline);
        let times: Vec<f64> = divided
            .iter()
            .map(|layers| of.seconds(layers, work))
            .collect();
        let hops = (1..layout.pipeline).map(|stage| {
            let [from, to] = [stage - 1, stage].map(|stage| layout.rank(stage, 0));
            self.hardware.hop(from, to, of.stream(work.tokens))
        });
        let through = times.iter().sum::<f64>() + hops.sum::<f64>();
        (through, times.into_iter().fold(0.0, f64::max))
    }

    /// Dollars for a generated token that takes so many seconds of all ranks, with its part of the prompt: prompts follow each
    /// other through the stages.
    fn dollars(&self, plan: &Plan, seconds: f64) -> f64 {
        let (_, slowest) = self.pass(plan.layout, self.reading());
        let prompt = slowest / self.workload.output as f64;
        let per_second = self.hardware.price.dollars_per_hour / 3600.0 * plan.ranks as f64;
        (seconds + prompt) * per_second
    }

    /// Bytes of intermediate values of a rank that reads a prompt: the residual stream and its sum in f32, and the widest of
    /// what is between two sums.
    fn activations(&self) -> f64 {
        let config = self.config;
        let dense = config.dense_layers().map(|(_, d_ff)| d_ff).max();
        let mixture = config.moe.as_ref().map(|moe| moe.experts.active_d_ff());
        let inner = dense.max(mixture).unwrap_or(0).div_ceil(self.tensor);
        let heads = (config.heads + 2 * config.kv_heads).div_ceil(self.tensor) * config.head_dim;
        let widest = (3 * inner).max(2 * heads) as f64 * self.workload.width as f64;
        let stream = 3.0 * 4.0 * config.d_model as f64;
        let logits = 4.0 * config.vocab_size.div_ceil(self.tensor) as f64;
        self.workload.prompt as f64 * (stream + widest) + self.workload.batch as f64 * logits
    }
}
