//! The time of a step: of one stage, and of all of them.

use std::ops::Range;

use firebox_model::accounting::PictureOperations;
use firebox_model::config::ModelConfig;
use firebox_model::moe::loads::even_share;
use firebox_model::parallel::RankLayout;
use firebox_model::parallel::traffic::{PassTokens, PassTraffic};

use super::estimate::Workload;
use super::hardware::{Hardware, Reach};
use super::loads::{Count, RankLoads, Seen};

/// A model over the ranks of a layout, on hardware.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    pub config: &'a ModelConfig,
    pub hardware: &'a Hardware,
    pub loads: &'a RankLoads,
    pub workload: Workload,
    pub layout: RankLayout,
    /// The layers of each stage.
    pub layers: Vec<Range<usize>>,
}

/// What a stage works on at once.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Tokens.
    tokens: f64,
    /// Tokens among them whose next one is drawn.
    drawn: f64,
    /// Texts whose caches are read.
    texts: f64,
    /// What a token attends to.
    seen: Seen,
    /// Pictures that are looked at for the first time.
    looked: f64,
}

/// Seconds of a pass.
#[derive(Debug, Clone, Copy)]
struct Pass {
    /// Through all stages.
    through: f64,
    /// Of the slowest stage.
    slowest: f64,
}

impl Stages<'_> {
    /// Micro-batches that follow each other through the stages.
    pub fn in_flight(&self) -> usize {
        self.layout.pipeline.min(self.workload.batch)
    }

    /// Share of each layer's experts that a micro-batch visits with `tokens` tokens of each text; `None` for a dense model.
    pub fn expert_utilization(&self, tokens: f64) -> Option<f64> {
        let moe = self.config.moe.as_ref()?;
        let tokens = self.workload.batch as f64 / self.in_flight() as f64 * tokens;
        Some(even_share(moe.experts.top_k, moe.experts.count, tokens))
    }

    /// Messages of one token.
    pub fn traffic(&self) -> PassTraffic {
        PassTraffic::of_pass(
            self.config,
            self.layout.tensor,
            &self.layers,
            self.one_token(),
        )
    }

    fn one_token(&self) -> PassTokens {
        PassTokens {
            count: 1,
            width: self.workload.widths.message,
            see: self.workload.pictures > 0,
        }
    }

    /// Seconds of one step of all texts with `tokens` tokens of each. Micro-batches follow each other: a text waits for all
    /// stages, and each stage for all micro-batches, whichever takes longer.
    pub fn step_seconds(&self, tokens: f64) -> f64 {
        let Workload {
            batch,
            prompt,
            output,
            ..
        } = self.workload;
        let in_flight = self.in_flight();
        let texts = batch as f64 / in_flight as f64;
        let work = Work {
            tokens: texts * tokens,
            drawn: texts * tokens,
            texts,
            seen: Seen {
                // Half of the output is there on average.
                text: prompt as f64 + output as f64 / 2.0,
                pictures: self.workload.picture_positions(self.config),
            },
            looked: 0.0,
        };
        let Pass { through, slowest } = self.pass(work, in_flight);
        through.max(in_flight as f64 * slowest)
    }

    /// Seconds from a prompt, alone, to its first token.
    pub fn first_token_seconds(&self) -> f64 {
        self.pass(self.reading(), 1).through
    }

    /// Seconds of a prompt where as many of them as there are stages follow each other.
    pub fn prompt_seconds(&self) -> f64 {
        self.pass(self.reading(), self.layout.pipeline).slowest
    }

    /// The work on a prompt.
    fn reading(&self) -> Work {
        let tokens = self.workload.prompt as f64;
        Work {
            tokens,
            drawn: 1.0,
            texts: 1.0,
            seen: Seen {
                // Half of the prompt stands before a token on average.
                text: tokens / 2.0,
                pictures: self.workload.picture_positions(self.config),
            },
            looked: self.workload.pictures as f64,
        }
    }

    /// Seconds of work while `in_flight` stages are at work.
    fn pass(&self, work: Work, in_flight: usize) -> Pass {
        let tensor = self.layout.tensor;
        let reach = self.hardware.reach(self.layout.ranks(), in_flight * tensor);
        let mut pass = Pass {
            through: 0.0,
            slowest: 0.0,
        };
        let mut looking = 0f64;
        for (stage, layers) in self.layers.iter().enumerate() {
            let first = self.layout.rank(stage, 0);
            let traffic = PassTraffic::of_stage(self.config, tensor, layers, self.one_token());
            let all_reduces = traffic.kinds_of_sums().map(|kind| {
                let bytes = work.tokens * kind.bytes_of_one() as f64;
                kind.count as f64 * self.hardware.all_reduce(first, tensor, bytes)
            });
            let slowest = |work| {
                let ranks = 0..tensor;
                let seconds = ranks.map(|rank| self.rank_seconds(rank, layers, work, reach));
                seconds.fold(0.0, f64::max)
            };
            let (computing, all) = (
                slowest(Work {
                    looked: 0.0,
                    ..work
                }),
                slowest(work),
            );
            let sent = all_reduces.iter().sum::<f64>();
            pass.slowest = pass.slowest.max(all + sent);
            pass.through += computing + sent;
            looking = looking.max(all - computing);
            if traffic.hops.count > 0 {
                let bytes = work.tokens * traffic.hops.bytes_of_one() as f64;
                pass.through += self.hardware.hop(first, tensor, bytes);
            }
        }
        // All stages look at the pictures at the same time, before the text reaches them.
        pass.through += looking;
        pass
    }

    fn rank_seconds(&self, rank: usize, layers: &Range<usize>, work: Work, reach: Reach) -> f64 {
        let load = self.loads.of_stage(rank, layers);
        let (touched, multiplied) = self.experts(load.expert_count, work.tokens);
        let Work {
            tokens,
            drawn,
            texts,
            seen,
            looked,
        } = work;
        // The head computes the tokens that are drawn alone.
        let head = match layers.end == self.config.layers.len() {
            true => self.head(rank),
            false => 0.0,
        };
        let looked_up = match layers.start == 0 {
            true => tokens * self.config.d_model as f64,
            false => 0.0,
        };
        // Without pictures, layers that attend to them do nothing.
        let cross = match seen.pictures > 0.0 {
            true => load.cross,
            false => Count::default(),
        };
        let mut read = Count {
            matrices: load.experts * touched,
            numbers: looked_up,
        };
        read.add(load.dense);
        read.add(cross);
        let mut looking = 0.0;
        if looked > 0.0 && load.tower.all() > 0.0 {
            read.add(load.tower);
            read.matrices += load.keys;
            looking = looked * self.looking(load.keys);
        }
        let cached = texts * self.loads.cached(rank, layers, seen);
        let products = 2.0
            * (tokens * (load.dense.all() - head + cross.all())
                + drawn * head
                + multiplied * load.experts);
        // Scores and their product with the values.
        let scores = 4.0 * tokens * self.loads.attended(rank, layers, seen);
        let widths = self.workload.widths;
        let bytes = widths.weights(read) + widths.cache as f64 * cached;
        let computed = match seen.pictures > 0.0 {
            true => layers.len(),
            false => layers.len() - self.loads.crossings(layers),
        };
        reach.seconds(computed, bytes, products + scores + looking)
    }

    /// Operations of a rank that looks at a picture: those of the tower, which each computes whole, and of its part of the keys
    /// and values.
    fn looking(&self, keys: f64) -> f64 {
        let operations = PictureOperations::of(self.config);
        let positions = self
            .config
            .vision
            .as_ref()
            .map_or(0, |vision| vision.keys());
        operations.map_or(0.0, |of| of.encoder) + 2.0 * positions as f64 * keys
    }

    /// Parameters of the head of a rank.
    fn head(&self, rank: usize) -> f64 {
        let size = self.config.vocab_size;
        let share = firebox_model::parallel::share(size, self.layout.tensor, rank);
        (share.len() * self.config.d_model) as f64
    }

    /// The share of a rank's `of_rank` experts that tokens visit, and for how many tokens all of them would do the same
    /// work. With whole experts on some ranks, the busiest of these has one expert at least.
    fn experts(&self, of_rank: usize, tokens: f64) -> (f64, f64) {
        let Some(moe) = &self.config.moe else {
            return (0.0, 0.0);
        };
        if of_rank == 0 {
            return (0.0, 0.0);
        }
        let (count, top_k) = (moe.experts.count, moe.experts.top_k);
        let visited = even_share(top_k, count, tokens);
        let even = tokens * top_k as f64 / count as f64;
        let least = 1.0 / of_rank as f64;
        (visited.max(least).min(1.0), even.max(least))
    }
}
