//! The bytes of one rank.

use std::ops::Range;

use firebox_model::config::ModelConfig;

use super::estimate::Workload;
use super::loads::{RankLoads, Seen};

/// The bytes of a model over tensor ranks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory<'a> {
    pub config: &'a ModelConfig,
    pub loads: &'a RankLoads,
    pub tensor: usize,
    pub expert: usize,
    pub workload: Workload,
}

/// The bytes of one rank: those that are there in any case, and those of each text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bytes {
    /// Weights.
    pub weights: f64,
    /// Intermediate values while a prompt is read.
    pub prompt: f64,
    /// Keys and values of one text, those of its pictures included.
    pub cache: f64,
    /// Those of its pictures.
    pub pictures: f64,
    /// Logits of one text.
    pub logits: f64,
}

impl Bytes {
    /// Intermediate values of a step of `batch` texts, one of which reads its prompt.
    pub fn activations(&self, batch: f64) -> f64 {
        self.prompt + batch * self.logits
    }

    /// All bytes with `batch` texts.
    pub fn total(&self, batch: f64) -> f64 {
        self.weights + batch * self.cache + self.activations(batch)
    }

    /// The most texts for which `memory` bytes suffice.
    pub fn largest_batch(&self, memory: f64) -> f64 {
        let free = memory - self.weights - self.prompt;
        (free / (self.cache + self.logits)).floor().max(0.0)
    }
}

impl Memory<'_> {
    /// Those of a tensor rank of the stage with these layers.
    pub fn of_rank(&self, rank: usize, layers: &Range<usize>) -> Bytes {
        let Workload {
            prompt,
            output,
            widths,
            ..
        } = self.workload;
        let pictures = self.workload.picture_positions(self.config);
        let cached = |text, pictures| {
            let values = self.loads.cached(rank, layers, Seen { text, pictures });
            widths.cache as f64 * values
        };
        let logits = match layers.end == self.config.layers.len() {
            true => 4.0 * self.config.vocab_size.div_ceil(self.tensor) as f64,
            false => 0.0,
        };
        Bytes {
            weights: widths.weights(self.loads.of_stage(rank, layers).parameters()),
            prompt: (prompt as f64 * self.activations_of_token())
                .max(self.activations_of_pictures(layers)),
            cache: cached((prompt + output) as f64, pictures),
            pictures: cached(0.0, pictures),
            logits,
        }
    }

    /// Intermediate values of a tower that looks at the pictures of a text, which is done before the text is read: its stream
    /// and the sum in f32, and the widest of what is between two of these, the scores of attention and their softmax or a
    /// feed-forward; and what comes of it. 0 in layers that attend to no pictures.
    fn activations_of_pictures(&self, layers: &Range<usize>) -> f64 {
        let vision = self.config.vision.as_ref();
        let Some(vision) = vision.filter(|_| self.loads.crossings(layers) > 0) else {
            return 0.0;
        };
        let positions = vision.max_tiles * vision.filled_positions();
        let scores = 2 * vision.heads * positions * positions;
        let inner = scores.max(positions * (vision.d_ff + vision.width));
        let stream = 4 * positions * (2 * vision.width + vision.output_width());
        let states = 4 * vision.keys() * self.config.d_model;
        let of_picture = stream + states + self.workload.widths.number * inner;
        (self.workload.pictures * of_picture) as f64
    }

    /// Intermediate values of a token of a prompt, an upper estimate: the residual stream and its sum in f32, and the widest
    /// of what is between two all-reduces. All experts of a token may be in one group, which alone divides their width.
    fn activations_of_token(&self) -> f64 {
        let config = self.config;
        let dense = config.dense_layers().map(|(_, d_ff)| d_ff).max();
        let dense = dense.unwrap_or(0).div_ceil(self.tensor);
        let mixture = config.moe.as_ref().map_or(0, |moe| {
            let experts = moe.experts;
            let of_rank = experts.top_k.min(self.loads.most_experts());
            of_rank * experts.d_ff.div_ceil(self.tensor / self.expert)
                + experts.shared_d_ff.div_ceil(self.tensor)
        });
        let inner = 3.0 * dense.max(mixture) as f64;
        let attention = 2.0 * self.loads.widest_attention();
        // Scores of all positions of pictures, and their softmax.
        let heads = config.heads.div_ceil(self.tensor) as f64;
        let crossing = 2.0 * heads * self.workload.picture_positions(self.config);
        let stream = 3.0 * 4.0 * config.d_model as f64;
        stream + inner.max(attention).max(crossing) * self.workload.widths.number as f64
    }
}
