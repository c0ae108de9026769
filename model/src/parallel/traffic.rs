//! What ranks send to each other in a forward pass, from the configuration alone.
//!
//! The draw of a token besides is one exchange of a few candidates among the tensor ranks of the last stage, and the
//! token's way back to the first one; their sizes depend on the options of sampling and are not counted here.

use std::ops::Range;

use serde::Serialize;

use super::Shard;
use crate::config::{ModelConfig, QkNorm};

/// Messages of a kind, all of the same size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Messages {
    /// How many.
    pub count: u64,
    /// Bytes of all of them, as they are handed over: of a sum, those of one rank's values.
    pub bytes: u64,
}

impl Messages {
    fn new(count: usize, bytes_of_one: usize) -> Self {
        let (count, of_one) = (count as u64, bytes_of_one as u64);
        Self {
            count,
            bytes: count * of_one,
        }
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }

    /// Bytes of one message; 0 if there are none.
    pub fn bytes_of_one(&self) -> u64 {
        self.bytes.checked_div(self.count).unwrap_or(0)
    }
}

/// The tokens of a forward pass, as far as communication depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassTokens {
    /// How many.
    pub count: usize,
    /// Bytes of a value of the activations that are sent.
    pub width: usize,
    /// Whether some see pictures. Then the layers that attend to pictures compute all of them; without pictures they do
    /// nothing.
    pub see: bool,
}

/// Predicted communication of a forward pass. The pictures themselves, which every rank that attends to them gets once, are not
/// counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PassTraffic {
    /// Sums over the tensor ranks of rows of the vocabulary that each looks up: one on the first stage.
    pub embedding_sums: Messages,
    /// Sums of the outputs of attention and of the feed-forward: two for each layer that computes.
    pub layer_sums: Messages,
    /// Sums of the squares of all queries and keys, where they are normed over all heads: one a layer.
    pub norm_sums: Messages,
    /// The residual stream from a stage to the next one.
    pub hops: Messages,
}

impl PassTraffic {
    /// That of one rank.
    pub fn of_rank(config: &ModelConfig, shard: &Shard, tokens: PassTokens) -> Self {
        Self::of_stage(config, shard.layout().tensor, &shard.layers(), tokens)
    }

    /// That of one of the `tensor` ranks of the stage with these layers, as for [`of_rank`](Self::of_rank).
    pub fn of_stage(
        config: &ModelConfig,
        tensor: usize,
        layers: &Range<usize>,
        tokens: PassTokens,
    ) -> Self {
        let stream = tokens.count * config.d_model * tokens.width;
        let sums = |count: usize, bytes| match tensor {
            1 => Messages::default(),
            _ => Messages::new(count, bytes),
        };
        let of_stage = &config.layers[layers.clone()];
        let text = of_stage.iter().filter(|layer| !layer.is_cross()).count();
        let computed = if tokens.see { of_stage.len() } else { text };
        let normed = match config.qk_norm {
            QkNorm::Projection => text,
            QkNorm::None | QkNorm::Head => 0,
        };
        let (first, last) = (layers.start == 0, layers.end == config.layers.len());
        Self {
            embedding_sums: sums(usize::from(first), stream),
            layer_sums: sums(2 * computed, stream),
            // One sum of squares of the queries and one of the keys, in f32 always.
            norm_sums: sums(normed, 2 * size_of::<f32>() * tokens.count),
            hops: Messages::new(usize::from(!last), stream),
        }
    }

    /// That of a whole pass: of one rank of each of these stages, as for [`of_stage`](Self::of_stage).
    pub fn of_pass(
        config: &ModelConfig,
        tensor: usize,
        stages: &[Range<usize>],
        tokens: PassTokens,
    ) -> Self {
        let mut sum = Self::default();
        for layers in stages {
            let one = Self::of_stage(config, tensor, layers, tokens);
            sum.embedding_sums.add(one.embedding_sums);
            sum.layer_sums.add(one.layer_sums);
            sum.norm_sums.add(one.norm_sums);
            sum.hops.add(one.hops);
        }
        sum
    }

    /// The sums by kind: of embeddings, layers and norms.
    pub fn kinds_of_sums(&self) -> [Messages; 3] {
        [self.embedding_sums, self.layer_sums, self.norm_sums]
    }

    /// All sums; their sizes differ.
    pub fn sums(&self) -> Messages {
        let mut sums = Messages::default();
        self.kinds_of_sums()
            .into_iter()
            .for_each(|kind| sums.add(kind));
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    #[test]
    fn the_messages_of_a_pass_counted_by_hand() {
        let mut config = tiny();
        config.qk_norm = QkNorm::Projection;
        // Three tokens of 24 values in bf16, over two stages of one layer.
        let stages = [0..1, 1..2];
        let tokens = PassTokens {
            count: 3,
            width: 2,
            see: false,
        };
        let traffic = PassTraffic::of_pass(&config, 4, &stages, tokens);
        let expected = PassTraffic {
            embedding_sums: Messages::new(1, 144),
            layer_sums: Messages::new(4, 144),
            norm_sums: Messages::new(2, 24),
            hops: Messages::new(1, 144),
        };
        assert_eq!(traffic, expected);
        assert_eq!((traffic.sums().count, traffic.sums().bytes), (7, 768));
        assert_eq!(traffic.norm_sums.bytes_of_one(), 24);
        // Ranks that share nothing sum nothing.
        let traffic = PassTraffic::of_pass(&config, 1, &stages, tokens);
        assert_eq!(traffic.sums(), Messages::default());
        assert_eq!(traffic.sums().bytes_of_one(), 0);
        assert_eq!(traffic.hops, Messages::new(1, 144));
    }
}
