//! The time of one stage.

use std::ops::Range;

use firebox_model::config::ModelConfig;
use firebox_model::parallel::RankLayout;

use super::expert_utilization;
use super::hardware::Hardware;
use super::loads::Loads;

/// A model over tensor ranks, on hardware.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    pub config: &'a ModelConfig,
    pub layout: RankLayout,
    pub loads: &'a Loads,
    pub hardware: &'a Hardware,
    /// Bytes of a weight, of a value of the cache, and of an activation that is sent.
    pub width: f64,
}

/// What a stage works on at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// Tokens.
    pub tokens: f64,
    /// Tokens among them whose next one is drawn.
    pub drawn: f64,
    /// Texts whose caches are read.
    pub texts: f64,
    /// Positions that a token attends to.
    pub context: f64,
}

impl Stages<'_> {
    /// Seconds that a stage with these layers takes: those of its slowest rank, and of the sums over its ranks.
    pub fn seconds(&self, layers: &Range<usize>, work: Work) -> f64 {
        let ranks = 0..self.layout.tensor;
        let slowest = ranks
            .map(|rank| self.rank_seconds(rank, layers, work))
            .fold(0.0, f64::max);
        let embedded = usize::from(layers.start == 0);
        let sums = (2 * layers.len() + embedded) as f64;
        let one = self
            .hardware
            .sum(self.layout.tensor, self.stream(work.tokens));
        slowest + sums * one
    }

    /// Bytes of the residual stream of so many tokens.
    pub fn stream(&self, tokens: f64) -> f64 {
        tokens * self.config.d_model as f64 * self.width
    }

    fn rank_seconds(&self, rank: usize, layers: &Range<usize>, work: Work) -> f64 {
        let load = self.loads.of_stage(rank, layers);
        let (touched, multiplied) = self.experts(load.expert_count, work.tokens);
        let Work {
            tokens,
            drawn,
            texts,
            context,
        } = work;
        // The head computes the tokens that are drawn alone.
        let head = match layers.end == self.config.layers.len() {
            true => self.head(rank),
            false => 0.0,
        };
        let weights = load.dense + load.experts * touched + tokens * self.config.d_model as f64;
        let caches = texts * self.loads.cached(rank, layers, context);
        let products =
            2.0 * (tokens * (load.dense - head) + drawn * head + multiplied * load.experts);
        // Scores and their product with the values.
        let scores = 4.0 * tokens * self.loads.attended(rank, layers, context);
        let bytes = self.width * (weights + caches);
        self.hardware.work(bytes, products + scores)
    }

    /// Parameters of the head of a rank.
    fn head(&self, rank: usize) -> f64 {
        let size = self.config.vocab_size;
        let share = firebox_model::parallel::share(size, self.layout.tensor, rank);
        (share.len() * self.config.d_model) as f64
    }

    /// The share of a rank's experts that tokens visit, and for how many tokens all of them would do the same work. With whole
    /// experts on some ranks, the busiest of these has one expert at least.
    fn experts(&self, of_rank: usize, tokens: f64) -> (f64, f64) {
        let Some(moe) = &self.config.moe else {
            return (0.0, 0.0);
        };
        if of_rank == 0 {
            return (0.0, 0.0);
        }
        let (count, top_k) = (moe.experts.count, moe.experts.top_k);
        let visited = expert_utilization(top_k, count, tokens);
        let even = tokens * top_k as f64 / count as f64;
        let least = 1.0 / of_rank as f64;
        (visited.max(least).min(1.0), even.max(least))
    }
}
