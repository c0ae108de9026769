//! What one rank holds of every parameter.

use std::ops::Range;

use super::layout::require;
use super::stages::stages;
use super::{Coordinates, LayoutError, RankLayout, Slice, share};
use crate::config::{LayerConfig, ModelConfig};
use crate::parameters::{Axis, ParameterInfo, Role};

/// One rank of a layout of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    layout: RankLayout,
    rank: usize,
    at: Coordinates,
    layers: Range<usize>,
    /// The number of its stage among those that attend to pictures, if it is one of them.
    seeing: Option<usize>,
    /// Groups that divide the experts of a layer, and the number of its own.
    experts: [usize; 2],
    heads: usize,
    kv_heads: usize,
    tied_embeddings: bool,
}

/// What a rank holds of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// Nothing: its stage has no such parameter.
    Elsewhere,
    /// These of its values.
    Part(Slice),
    /// Zeros of this shape: the bias is added before the all-reduce, so that only one tensor rank holds it. They are not
    /// stored.
    Zeros(Vec<usize>),
}

/// What a tensor rank's gradient of a parameter is to the gradient of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GradientPart {
    /// That of values that no other rank has.
    Own,
    /// All of it, as on every other rank.
    Same,
    /// A term of it: it is the sum over the ranks.
    Term,
}

/// How the tensor ranks of a stage divide a dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Each rank has all of it.
    Whole,
    /// Each rank has its query heads.
    Heads,
    /// Each rank has the key/value heads of its query heads.
    KvHeads,
    /// Each rank has a share.
    Ranks,
    /// Each group of ranks has a share.
    Groups,
    /// Each rank of a group has a share.
    WithinGroup,
}

impl Shard {
    /// A rank of a layout, with the stages that [`stages`] gives.
    ///
    /// # Errors
    ///
    /// When the model cannot be laid out so ([`RankLayout::check`]), or the layout has no such rank.
    pub fn new(config: &ModelConfig, layout: RankLayout, rank: usize) -> Result<Self, LayoutError> {
        layout.check(config)?;
        Self::with_stages(config, layout, &stages(config, layout.pipeline), rank)
    }

    /// A rank that trains, one of a copy of the model: its place among the tensor ranks and their number, and the same of the
    /// ranks that have different experts ([`ExpertGroup`](crate::moe::exchange::ExpertGroup)), each of which is as many tensor
    /// ranks.
    ///
    /// # Errors
    ///
    /// When the model cannot be divided among so many tensor ranks ([`RankLayout::check`]), or there are more ranks than
    /// experts.
    pub fn of_training(
        config: &ModelConfig,
        (place, tensor): (usize, usize),
        (group, groups): (usize, usize),
    ) -> Result<Self, LayoutError> {
        let count = config.moe.as_ref().map_or(1, |moe| moe.experts.count);
        require(
            (1..=count).contains(&groups),
            "expert",
            groups,
            match config.moe {
                Some(_) => format!("is more ranks than the {count} experts of a layer"),
                None => "divides the experts, and the model has none".to_owned(),
            },
            format!("use {count} or fewer; the other ranks can divide the batch"),
        )?;
        let layout = RankLayout {
            tensor,
            ..RankLayout::ONE
        };
        let of_all_experts = Self::new(config, layout, place)?;
        Ok(Self {
            experts: [groups, group],
            ..of_all_experts
        })
    }

    /// Every rank of a layout, in order.
    ///
    /// # Errors
    ///
    /// When the model cannot be laid out so ([`RankLayout::check`]).
    pub fn all(config: &ModelConfig, layout: RankLayout) -> Result<Vec<Self>, LayoutError> {
        layout.check(config)?;
        let stages = stages(config, layout.pipeline);
        let ranks = 0..layout.ranks();
        ranks
            .map(|rank| Self::with_stages(config, layout, &stages, rank))
            .collect()
    }

    /// A rank of a layout whose stages have these layers.
    ///
    /// # Errors
    ///
    /// When the model cannot be laid out so ([`RankLayout::check`]), or the layout has no such rank.
    ///
    /// # Panics
    ///
    /// When the stages are not runs of the model's layers, one after the other, one for each stage of the layout.
    pub fn with_stages(
        config: &ModelConfig,
        layout: RankLayout,
        stages: &[Range<usize>],
        rank: usize,
    ) -> Result<Self, LayoutError> {
        layout.check(config)?;
        assert!(
            are_stages(stages, layout.pipeline, config.layers.len()),
            "{stages:?} for {layout}"
        );
        let ranks = layout.ranks();
        require(
            rank < ranks,
            "rank",
            rank,
            format!("is beyond the ranks of {layout}"),
            format!("ranks are counted from 0 to {}", ranks - 1),
        )?;
        let at = layout.coordinates(rank);
        let sees = |stage: &Range<usize>| {
            config.layers[stage.clone()]
                .iter()
                .any(LayerConfig::is_cross)
        };
        let before = stages[..at.stage].iter().filter(|stage| sees(stage));
        let seeing = sees(&stages[at.stage]).then_some(before.count());
        Ok(Self {
            layout,
            rank,
            at,
            layers: stages[at.stage].clone(),
            seeing,
            experts: [layout.expert, at.group],
            heads: config.heads,
            kv_heads: config.kv_heads,
            tied_embeddings: config.tied_embeddings,
        })
    }

    /// The layout.
    pub fn layout(&self) -> RankLayout {
        self.layout
    }

    /// The rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Where the rank stands in the layout.
    pub fn at(&self) -> Coordinates {
        self.at
    }

    /// The layers of its stage.
    pub fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// Whether its stage is the first one, which embeds tokens.
    pub fn is_first_stage(&self) -> bool {
        self.at.stage == 0
    }

    /// Whether its stage is the last one, which has the final norm and the head.
    pub fn is_last_stage(&self) -> bool {
        self.at.stage + 1 == self.layout.pipeline
    }

    /// Whether its stage has layers that attend to pictures, for which it has the whole tower.
    pub fn sees(&self) -> bool {
        self.seeing.is_some()
    }

    /// Its share of something that all tensor ranks of a stage divide among themselves, such as the token ids.
    pub fn share(&self, size: usize) -> Range<usize> {
        share(size, self.layout.tensor, self.at.tensor)
    }

    /// Its experts, of so many in a layer.
    pub fn experts(&self, count: usize) -> Range<usize> {
        let [groups, own] = self.experts;
        share(count, groups, own)
    }

    /// Its place among the ranks that divide the experts, and their number.
    pub fn expert_place(&self) -> (usize, usize) {
        let [groups, own] = self.experts;
        (own, groups)
    }

    /// Whether it has something of every layer, embedding and head.
    pub fn has_all_layers(&self) -> bool {
        self.layout.pipeline == 1
    }

    /// Whether it has all of every matrix but the experts'.
    pub fn is_undivided(&self) -> bool {
        self.layout == RankLayout::ONE
    }

    /// Its query heads.
    pub fn query_heads(&self) -> Range<usize> {
        self.share(self.heads)
    }

    /// The key/value head of each of its groups of query heads. Its query heads make groups of equal size, the largest for
    /// which all heads of a group have the same key/value head; where they do not begin or end with one of the model's
    /// groups, a key/value head stands here more than once.
    pub fn kv_heads(&self) -> Vec<usize> {
        let per_kv_head = self.heads / self.kv_heads;
        let queries = self.query_heads();
        let one = queries.start / per_kv_head == (queries.end - 1) / per_kv_head;
        // Otherwise: the end of a group of the model, whole ones, and the start of one.
        let first = queries.start.next_multiple_of(per_kv_head) - queries.start;
        let last = queries.end % per_kv_head;
        let group = match one {
            true => queries.len(),
            false if first + last == queries.len() => gcd(first, last),
            false => gcd(gcd(first, last), per_kv_head),
        };
        let groups = queries.step_by(group);
        groups.map(|query| query / per_kv_head).collect()
    }

    /// For each of [`kv_heads`](Self::kv_heads), whether this is the one place, among all tensor ranks, where it counts:
    /// what is summed over all key/value heads, such as the squares of a norm over all of them, would count copies twice.
    pub fn counted_kv_heads(&self) -> Vec<bool> {
        let per_kv_head = self.heads / self.kv_heads;
        let queries = self.query_heads();
        let mut before = None;
        let heads = self.kv_heads().into_iter();
        let counted = heads.map(|head| {
            let copy = before.replace(head) == Some(head);
            !copy && queries.contains(&(head * per_kv_head))
        });
        counted.collect()
    }

    /// What the rank holds of a parameter.
    ///
    /// - Of a layer: if it is one of its stage's. The embedding is on the first stage, and on the last one too if the head is
    ///   tied to it; the final norm and the head are on the last one.
    /// - Of each dimension, by role and axis: its query heads and their key/value heads; its share of the token ids and of the
    ///   hidden widths; of experts, those of its group, and its share within the group of their hidden width.
    /// - A bias of the residual stream (an output bias of attention, `[d_model]`; the down biases of experts,
    ///   `[experts, d_model]`) is added to products that the ranks sum up, so that it must be added once: it is on the first
    ///   of the ranks that share the product, and zeros are on the others. The modules add what they have before the sum.
    /// - Norms, routers and gates are replicated on every tensor rank of the stage.
    /// - The vision tower is replicated on every rank of each stage that attends to pictures, and computes there what its
    ///   layers attend to: pixels are fewer values than the states that come of them, and nothing waits for another rank.
    pub fn holding(&self, parameter: &ParameterInfo) -> Holding {
        if parameter.is_tower() {
            return match self.sees() {
                true => Holding::Part(Slice::whole(parameter.shape.clone())),
                false => Holding::Elsewhere,
            };
        }
        let on_stage = match (parameter.layer(), parameter.role) {
            (Some(layer), _) => self.layers.contains(&layer),
            (None, Role::Embedding) => {
                self.is_first_stage() || self.tied_embeddings && self.is_last_stage()
            }
            (None, _) => self.is_last_stage(),
        };
        if !on_stage {
            return Holding::Elsewhere;
        }
        let role = parameter.role;
        let dimensions = parameter.axes.iter().zip(&parameter.shape);
        let ranges = dimensions.map(|(&axis, &size)| self.cut(self.rule(role, axis), size));
        let slice = Slice::new(parameter.shape.clone(), ranges.collect());
        if role == Role::Bias && parameter.axes.last() == Some(&Axis::Model) {
            let sharers = match parameter.axes[0] {
                Axis::Experts => self.at.within_group,
                _ => self.at.tensor,
            };
            if sharers > 0 {
                return Holding::Zeros(slice.shape());
            }
        }
        Holding::Part(slice)
    }

    /// The values of a parameter that the rank holds; `None` if there are none.
    pub fn slice(&self, parameter: &ParameterInfo) -> Option<Slice> {
        match self.holding(parameter) {
            Holding::Part(slice) => Some(slice),
            Holding::Elsewhere | Holding::Zeros(_) => None,
        }
    }

    /// How many of the values that it holds of a parameter are copies: every value of a model counts on one rank, the first
    /// one that has it, and a copy does not.
    pub fn copies(&self, parameter: &ParameterInfo) -> usize {
        let Some(slice) = self.slice(parameter) else {
            return 0;
        };
        let cuts = parameter.axes.iter();
        let mut cuts = cuts.map(|&axis| self.rule(parameter.role, axis));
        let second = match parameter.is_tower() {
            true => self.seeing != Some(0),
            false => parameter.role == Role::Embedding && !self.is_first_stage(),
        };
        let whole = cuts.clone().all(|cut| cut == Cut::Whole);
        if second || whole && self.at.tensor > 0 {
            return slice.elements();
        }
        if !cuts.any(|cut| cut == Cut::KvHeads) {
            return 0;
        }
        let counted = self.counted_kv_heads();
        let copies = counted.iter().filter(|counted| !**counted).count();
        slice.elements() / counted.len() * copies
    }

    /// What this rank's gradient of a parameter is to the gradient of the whole, after what the modules of a layer do
    /// ([`TensorGroup`](super::TensorGroup)): attention enters the ranks as a whole, with its latents and the norms of its
    /// heads; routers, gates and the norms of the residual stream are outside.
    pub fn gradient(&self, parameter: &ParameterInfo) -> GradientPart {
        let cuts = parameter.axes.iter();
        let mut cuts = cuts.map(|&axis| self.rule(parameter.role, axis));
        if self.layout.tensor == 1 {
            return GradientPart::Own;
        }
        let is_divided = cuts.any(|cut| match cut {
            Cut::Heads | Cut::Ranks | Cut::WithinGroup => true,
            Cut::KvHeads => self.divides_kv_heads(),
            Cut::Whole | Cut::Groups => false,
        });
        let is_inside = |axis: &Axis| matches!(axis, Axis::HeadDim | Axis::KvHeads | Axis::Latent);
        match is_divided {
            true => GradientPart::Own,
            false if parameter.axes.iter().any(is_inside) => GradientPart::Term,
            false => GradientPart::Same,
        }
    }

    /// Whether each key/value head is on one tensor rank alone.
    fn divides_kv_heads(&self) -> bool {
        let (per_kv_head, ranks) = (self.heads / self.kv_heads, self.layout.tensor);
        let mut starts = (0..ranks).map(|rank| share(self.heads, ranks, rank).start);
        starts.all(|query| query.is_multiple_of(per_kv_head))
    }

    /// The table: how a dimension is divided.
    fn rule(&self, role: Role, axis: Axis) -> Cut {
        match (axis, role) {
            // Each rank has the latents of all tokens.
            (Axis::Model | Axis::HeadDim | Axis::Latent, _) => Cut::Whole,
            // Of the gates of layers; the tower, which has all other of these, is whole.
            (
                Axis::Single
                | Axis::Tower
                | Axis::TowerHeads
                | Axis::TowerFeedForward
                | Axis::TowerOutput
                | Axis::Channels
                | Axis::Pixels
                | Axis::Positions
                | Axis::Arrangements
                | Axis::Arrangement,
                _,
            ) => Cut::Whole,
            (Axis::Heads | Axis::QueryHeads, _) => Cut::Heads,
            (Axis::KvHeads, _) => Cut::KvHeads,
            (Axis::Vocabulary, _) => Cut::Ranks,
            // Each rank chooses the experts of all tokens.
            (Axis::Experts, Role::Router | Role::RouterBias) => Cut::Whole,
            (Axis::Experts, _) => Cut::Groups,
            // Of the experts; other feed-forwards have no biases.
            (Axis::FeedForward, Role::Experts | Role::Bias) => Cut::WithinGroup,
            (Axis::FeedForward, _) => Cut::Ranks,
        }
    }

    /// The ranges of a dimension of this size that the rank has.
    fn cut(&self, cut: Cut, size: usize) -> Vec<Range<usize>> {
        let one = match cut {
            Cut::Whole => 0..size,
            Cut::Ranks => self.share(size),
            Cut::Groups => self.experts(size),
            Cut::WithinGroup => share(size, self.layout.group_size(), self.at.within_group),
            Cut::Heads => {
                let (heads, width) = (self.query_heads(), size / self.heads);
                heads.start * width..heads.end * width
            }
            Cut::KvHeads => {
                let (heads, width) = (self.kv_heads().into_iter(), size / self.kv_heads);
                return heads.map(|head| head * width..(head + 1) * width).collect();
            }
        };
        vec![one]
    }
}

/// Whether these are runs of the layers, one after the other, one for each stage.
pub fn are_stages(stages: &[Range<usize>], count: usize, layers: usize) -> bool {
    let mut end = 0;
    stages.len() == count
        && stages.iter().all(|stage| {
            let follows = stage.start == end && stage.end > end;
            end = stage.end;
            follows
        })
        && end == layers
}

fn gcd(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}
