//! A rank's part of a model, and what such a rank computes otherwise than a whole model.

use burn::tensor::{Int, Tensor};

use super::LanguageModel;
use crate::feed_forward::FeedForward;
use crate::layer::Layer;
use crate::loss::cross_entropy_sum;
use crate::moe::exchange::ExpertGroup;
use crate::parallel::cross_entropy::divided_cross_entropy_sum;
use crate::parallel::{Shard, TensorGroup};
use crate::parameters::PartOf;

impl LanguageModel {
    /// The same part of a model, among the tensor ranks of its stage: what they compute together is added up over them.
    ///
    /// # Panics
    ///
    /// When it is a whole model, or a part that another rank of the group is to have.
    #[must_use]
    pub fn among(mut self, group: TensorGroup) -> Self {
        let shard = self.shard.as_ref().expect("a rank's part of a model");
        let place = (group.rank(), group.size());
        assert_eq!((shard.at().tensor, shard.layout().tensor), place);
        for layer in &mut self.blocks {
            layer.join(&group, shard, &self.config);
        }
        self.group = Some(group);
        self
    }

    /// A rank's part of this whole model.
    ///
    /// # Panics
    ///
    /// When this is not a whole model, or the rank a pipeline stage.
    #[must_use]
    pub fn part(self, shard: Shard) -> Self {
        assert!(
            self.shard.is_none() && shard.has_all_layers(),
            "a whole model, and a rank with all layers"
        );
        let Ok(mut part) = Self::new(&self.config, &mut PartOf::new(&self, shard));
        part.set_router_bias(&self.router_bias());
        part.at_precision(self.precision)
    }

    /// The same part of a model, among the ranks that have the other experts: tokens go where their experts are.
    ///
    /// # Panics
    ///
    /// When it is a whole model, or a part that another rank of the group is to have.
    #[must_use]
    pub fn among_experts(mut self, group: &ExpertGroup) -> Self {
        let shard = self.shard.as_ref().expect("a rank's part of a model");
        assert_eq!(shard.expert_place(), group.place());
        for layer in &mut self.blocks {
            if let Layer::Text(block) = layer
                && let FeedForward::Moe(moe) = &mut block.feed_forward
            {
                moe.exchange_among(group);
            }
        }
        self
    }

    /// Whose part of a model this is; `None` for a whole one.
    pub fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref()
    }

    /// The tensor ranks that it is [among](Self::among), if there are any.
    pub(crate) fn group(&self) -> Option<&TensorGroup> {
        self.group.as_ref()
    }

    /// The first token id of which this rank has the logits.
    pub(crate) fn first_token(&self) -> usize {
        let vocabulary = self.config.vocab_size;
        self.shard
            .as_ref()
            .map_or(0, |shard| shard.share(vocabulary).start)
    }

    /// The sum over the targets that count of `−ln p(target)` in nats, `[1]`, of logits of this model; the same on all tensor
    /// ranks, of which each has the logits of its token ids.
    ///
    /// # Shapes
    ///
    /// - `logits`: those of a [`ModelOutput`](super::ModelOutput)
    /// - `targets`: `[tokens]`
    /// - `counted`: `[tokens]`, 1 for a target that counts and 0 for one that does not; `None` if all count
    pub fn cross_entropy_sum(
        &self,
        logits: Tensor<3>,
        targets: Tensor<1, Int>,
        counted: Option<&Tensor<1>>,
    ) -> Tensor<1> {
        let logits = logits.flatten(0, 1);
        match self.group() {
            Some(group) if group.size() > 1 => {
                divided_cross_entropy_sum(logits, targets, counted, self.first_token(), group)
            }
            _ => cross_entropy_sum(logits, targets, counted),
        }
    }
}
