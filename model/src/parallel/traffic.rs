//! What ranks send to each other in a forward pass, from the configuration alone.
//!
//! The draw of a token besides is one exchange of a few candidates among the tensor ranks of the last stage, and the
//! token's way back to the first one; their sizes depend on the options of sampling and are not counted here.

use serde::Serialize;

use super::{RankLayout, Shard};
use crate::config::{ModelConfig, QkNorm};

/// Messages of a kind.
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
}

/// What a rank takes part in during a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// Sums over the tensor ranks of rows of the vocabulary that each looks up: one on the first stage.
    pub embedding_sums: Messages,
    /// Sums of the outputs of attention and of the feed-forward: two a layer.
    pub layer_sums: Messages,
    /// Sums of the squares of all queries and keys, where they are normed over all heads: one a layer.
    pub norm_sums: Messages,
    /// The residual stream from a stage to the next one.
    pub hops: Messages,
}

impl Traffic {
    /// That of a rank, in a pass of so many tokens whose activations have `width` bytes a value.
    pub fn of_rank(config: &ModelConfig, shard: &Shard, tokens: usize, width: usize) -> Self {
        let layout = shard.layout();
        let stream = tokens * config.d_model * width;
        let sums = |count: usize, bytes| match layout.tensor {
            1 => Messages::default(),
            _ => Messages::new(count, bytes),
        };
        let layers = shard.layers().len();
        let normed = match config.qk_norm {
            QkNorm::Projection => layers,
            QkNorm::None | QkNorm::Head => 0,
        };
        Self {
            embedding_sums: sums(usize::from(shard.is_first_stage()), stream),
            layer_sums: sums(2 * layers, stream),
            // One sum of squares of the queries and one of the keys, in f32 always.
            norm_sums: sums(normed, 2 * size_of::<f32>() * tokens),
            hops: Messages::new(usize::from(!shard.is_last_stage()), stream),
        }
    }

    /// That of a whole pass: of one rank of each stage.
    ///
    /// # Panics
    ///
    /// When the model cannot be laid out so.
    pub fn of_pass(config: &ModelConfig, layout: RankLayout, tokens: usize, width: usize) -> Self {
        let shards = Shard::all(config, layout).expect("a layout of the model");
        let first = shards.iter().filter(|shard| shard.at().tensor == 0);
        first.fold(Self::default(), |mut sum, shard| {
            let one = Self::of_rank(config, shard, tokens, width);
            sum.embedding_sums.add(one.embedding_sums);
            sum.layer_sums.add(one.layer_sums);
            sum.norm_sums.add(one.norm_sums);
            sum.hops.add(one.hops);
            sum
        })
    }

    /// All sums.
    pub fn sums(&self) -> Messages {
        let mut sums = self.embedding_sums;
        sums.add(self.layer_sums);
        sums.add(self.norm_sums);
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
        let layout = RankLayout {
            pipeline: 2,
            tensor: 4,
            expert: 1,
        };
        // Three tokens of 24 values in bf16.
        let traffic = Traffic::of_pass(&config, layout, 3, 2);
        let expected = Traffic {
            embedding_sums: Messages::new(1, 144),
            layer_sums: Messages::new(4, 144),
            norm_sums: Messages::new(2, 24),
            hops: Messages::new(1, 144),
        };
        assert_eq!(traffic, expected);
        assert_eq!((traffic.sums().count, traffic.sums().bytes), (7, 768));
        // Ranks that share nothing sum nothing.
        let alone = RankLayout {
            tensor: 1,
            ..layout
        };
        let traffic = Traffic::of_pass(&config, alone, 3, 2);
        assert_eq!(traffic.sums(), Messages::default());
        assert_eq!(traffic.hops, Messages::new(1, 144));
    }
}
