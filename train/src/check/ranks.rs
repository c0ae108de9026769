//! What the ranks of a run hold and send, without starting any.

use firebox_model::config::{FeedForwardKind, ModelConfig, QkNorm};
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::share;
use serde::Serialize;

use super::{gradients_at_once, sequences};
use crate::config::RunConfig;
use crate::learned::Learned;
use crate::optimizer;
use crate::ranks::{LayoutError, TrainLayout};

/// Bytes of a value.
const VALUE: u128 = 4;

/// What every rank of a layout holds, and what the ranks send each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RankPlan {
    /// The layout.
    pub layout: TrainLayout,
    /// Bytes of the weights of a rank with the largest part of the model.
    pub weights: u128,
    /// Bytes of its gradients: of a micro-batch, and where a step has several, of the sum of those before.
    pub gradients: u128,
    /// Bytes of its share of the optimizer's state, on average: shares differ by at most what is updated as a whole.
    pub moments: u128,
    /// Sequences of a rank with the largest share of a batch, in the first step and in the last.
    pub sequences: [u64; 2],
    /// Bytes of gradients and weights that all ranks together hand to messages in a step: each its whole gradient, and the
    /// weights that it has updated. What a rank alone has of a model counts nothing.
    pub bytes_per_step: u128,
    /// Bytes that all ranks together send to experts and back for a token of a batch in one forward and backward pass, if
    /// every expert is as likely as any other; those to a rank's own experts count too. `None` where every rank has all
    /// experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_token: Option<f64>,
    /// Bytes that all tensor ranks of a share of a batch together hand to messages for a token of it, in one forward and
    /// backward pass. `None` where every rank has all of the matrices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum_bytes_per_token: Option<u128>,
}

impl RankPlan {
    /// Plans a run on a layout.
    ///
    /// # Errors
    ///
    /// When the run cannot be divided so.
    pub fn of(config: &RunConfig, layout: TrainLayout) -> Result<Self, LayoutError> {
        layout.check(config)?;
        let model = &config.model;
        let learned = Learned::of(model, config.train.frozen);
        let parameters = LanguageModel::parameter_list(model);
        let held = |rank| {
            let shard = layout.shard(model, rank);
            let [mut weights, mut gradient] = [0; 2];
            for parameter in &parameters {
                let held = match &shard {
                    Some(shard) => shard
                        .slice(parameter)
                        .map_or(0, |slice| slice.elements() as u128),
                    None => parameter.elements(),
                };
                weights += held;
                if learned.includes(&parameter.path) {
                    gradient += held;
                }
            }
            [weights, gradient]
        };
        // Not always the first rank has most: another may need more key/value heads.
        let of_ranks = (0..layout.ranks_of_copy()).map(held);
        let [weights, gradient] = of_ranks.max().expect("a rank at least");
        let muon = config.optimizer.muon;
        let ownership = optimizer::ownership(model, muon, &learned, layout, 0);
        let handed: u128 = ownership
            .parameters()
            .map(|(_, owned)| owned.handed())
            .sum();
        let kept = optimizer::kept_values(model, muon, &learned);
        let sequences =
            sequences(config).map(|rows| share(rows as usize, layout.shares(), 0).len() as u64);
        Ok(Self {
            layout,
            weights: VALUE * weights,
            gradients: VALUE * gradient * gradients_at_once(config, sequences[1]),
            moments: VALUE * kept / layout.ranks() as u128,
            sequences,
            bytes_per_step: VALUE * handed,
            bytes_per_token: (layout.expert > 1)
                .then(|| layout.tensor as f64 * bytes_per_token(model, layout.expert)),
            sum_bytes_per_token: (layout.tensor > 1)
                .then(|| VALUE * layout.tensor as u128 * values_per_token(model)),
        })
    }

    /// Bytes of all that a rank holds, without activations.
    pub fn total(&self) -> u128 {
        self.weights + self.gradients + self.moments
    }
}

/// What one of the tensor ranks of a share sends, and those that it sends to: see [`RankPlan::bytes_per_token`].
fn bytes_per_token(model: &ModelConfig, ranks: usize) -> f64 {
    let Some(moe) = &model.moe else { return 0.0 };
    let (count, top_k) = (moe.experts.count, moe.experts.top_k);
    let each = count / ranks;
    // How likely it is that none of a token's experts is one of a rank's: k of those that are not, out of all.
    let none: f64 = (0..top_k)
        .map(|chosen| (count - each).saturating_sub(chosen) as f64 / (count - chosen) as f64)
        .product();
    let visited = ranks as f64 * (1.0 - none);
    // There with the weights of its experts, and back; the same of the gradients; and the numbers of its experts.
    let values = 4 * model.d_model + 3 * top_k;
    model.moe_layers().count() as f64 * visited * (VALUE as usize * values) as f64
}

/// Values of a token that a tensor rank hands to sums over the others, and to what they tell each other of its logits; without
/// pictures.
fn values_per_token(model: &ModelConfig) -> u128 {
    // Into a part of a layer and out of it; of the embedding out, and of the head in.
    let mut values = 2 * model.d_model;
    // The largest logit, the sum of exponentials, and the target's logit.
    values += 3;
    for layer in model.layers.iter().filter(|layer| !layer.is_cross()) {
        values += 4 * model.d_model;
        if model.qk_norm == QkNorm::Projection {
            // The squares of queries and of keys, and their gradients.
            values += 4;
        }
        if let (FeedForwardKind::Moe, Some(moe)) = (layer.feed_forward, &model.moe) {
            // The weights of its experts, and of the shared ones.
            values += moe.experts.top_k + usize::from(moe.experts.shared_gate);
        }
    }
    values as u128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SmallRun;

    #[test]
    fn a_rank_of_the_small_run_by_hand() {
        let run = SmallRun::new();
        let config = run.config(&["schedule.batch_tokens=64"]);
        let of = |data, expert, tensor| {
            let layout = TrainLayout {
                data,
                expert,
                tensor,
            };
            RankPlan::of(&config, layout)
        };
        let plan = |data, expert| of(data, expert, 1);
        // Two experts of 3 · 8 · 8 values; the rest: embedding and head of 257 · 8, 3 · 8 · 8 of attention with one of two
        // heads for keys and values, 8 · 2 of the router, three norms of 8.
        let (experts, shared) = (2 * 192, 2 * 2056 + 192 + 16 + 24);
        let one = plan(1, 1).unwrap();
        assert_eq!(one.weights, 4 * (shared + experts));
        assert_eq!((one.gradients, one.moments), (one.weights, 2 * one.weights));
        let many = plan(2, 2).unwrap();
        assert_eq!(many.weights, 4 * (shared + experts / 2));
        assert_eq!(many.moments, one.moments / 4);
        assert_eq!(many.sequences, [2, 2]);
        let handed = 4 * (shared + experts / 2) + shared + experts;
        assert_eq!(many.bytes_per_step, 4 * handed);
        // In micro-batches, those of one beside the sum of the others.
        let cut = run.config(&["schedule.batch_tokens=64", "train.micro_batch=1"]);
        let cut = |data| {
            let layout = TrainLayout {
                data,
                ..TrainLayout::default()
            };
            RankPlan::of(&cut, layout).unwrap().gradients
        };
        assert_eq!([cut(2), cut(8)], [2 * one.weights, one.weights]);
        // One of two experts a token: a rank is visited, one layer, 4 · 8 + 3 values.
        assert_eq!(many.bytes_per_token, Some(140.0));
        assert!(matches!(plan(9, 1), Err(LayoutError::TooFewRows { .. })));

        // Two tensor ranks: one has 129 of the 257 token ids, one of two query heads, whose one key/value head both have, and
        // half of each expert.
        let divided = of(2, 1, 2).unwrap();
        let (matrices, whole) = (2 * 129 * 8 + 64 + 192, 64 + 16 + 24);
        assert_eq!(divided.weights, 4 * (matrices + whole));
        assert_eq!(divided.moments, one.moments / 4);
        assert_eq!(divided.sequences, [4, 4]);
        // Of the divided ones, each of two ranks a half and what it updates; of the others, each of four ranks all.
        let (matrices, whole) = (2 * 2056 + 128 + 384, 64 + 16 + 24);
        assert_eq!(divided.bytes_per_step, 4 * (3 * matrices + 5 * whole));
        // Two ranks: into and out of attention and experts, out of the embedding and into the head, one expert a token.
        assert_eq!(divided.sum_bytes_per_token, Some(2 * 4 * (6 * 8 + 3 + 1)));
        // Each tensor rank sends the tokens of its share.
        assert_eq!(of(1, 2, 2).unwrap().bytes_per_token, Some(280.0));
        assert!(matches!(
            of(1, 1, 3),
            Err(LayoutError::Matrices { most: 2, .. })
        ));
    }
}
