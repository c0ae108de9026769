//! Which layers each pipeline stage has.

use std::ops::{Add, Range};

use serde::Serialize;

use crate::config::{LayerConfig, ModelConfig};
use crate::language_model::LanguageModel;
use crate::parameters::{ParameterInfo, Role};

/// The cost of a part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Cost {
    /// Number of parameters, which decide over memory.
    pub parameters: f64,
    /// Floating-point operations for one token: two for each weight that multiplies it. Scores of attention are left out.
    pub operations: f64,
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            parameters: self.parameters + other.parameters,
            operations: self.operations + other.operations,
        }
    }
}

impl Cost {
    fn of(parameter: &ParameterInfo, config: &ModelConfig) -> Self {
        let parameters = parameter.elements() as f64;
        let active = match parameter.role {
            Role::Attention
            | Role::Router
            | Role::FeedForward
            | Role::SharedExperts
            | Role::CrossAttention
            | Role::Head => 1.0,
            Role::Experts => config.moe.as_ref().map_or(0.0, |moe| {
                moe.experts.top_k as f64 / moe.experts.count as f64
            }),
            // Lookups, factors and sums; and what costs time by the picture, not by the token.
            Role::Embedding
            | Role::Norm
            | Role::Bias
            | Role::Sinks
            | Role::RouterBias
            | Role::Gate
            | Role::Tower
            | Role::TowerEmbedding => 0.0,
        };
        Self {
            parameters,
            operations: 2.0 * active * parameters,
        }
    }
}

/// The costs of a model's layers, of its embedding and of its head.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerCosts {
    embedding: Cost,
    layers: Vec<Cost>,
    /// The last norm and the head. A head that is tied to the embedding is a second copy of it, unless both are on the
    /// same rank.
    head: Cost,
    tied: bool,
    /// What each stage has that attends to pictures.
    tower: Cost,
    /// Whether each layer attends to pictures.
    crossing: Vec<bool>,
}

impl LayerCosts {
    /// Computes the costs of a model.
    pub fn of(config: &ModelConfig) -> Self {
        let mut costs = Self {
            embedding: Cost::default(),
            layers: vec![Cost::default(); config.layers.len()],
            head: Cost::default(),
            tied: config.tied_embeddings,
            tower: Cost::default(),
            crossing: config.layers.iter().map(LayerConfig::is_cross).collect(),
        };
        for parameter in LanguageModel::parameter_list(config) {
            let place = match (parameter.layer(), parameter.role) {
                (Some(layer), _) => &mut costs.layers[layer],
                _ if parameter.is_tower() => &mut costs.tower,
                (None, Role::Embedding) => &mut costs.embedding,
                (None, _) => &mut costs.head,
            };
            *place = *place + Cost::of(&parameter, config);
        }
        if config.tied_embeddings {
            let parameters = costs.embedding.parameters;
            let copy = Cost {
                parameters,
                operations: 2.0 * parameters,
            };
            costs.head = costs.head + copy;
        }
        costs
    }

    /// The cost of each stage.
    pub fn of_stages(&self, stages: &[Range<usize>]) -> Vec<Cost> {
        let last = stages.len().saturating_sub(1);
        let stages = stages.iter().enumerate().map(|(number, layers)| {
            let mut cost = self.layers[layers.clone()]
                .iter()
                .fold(Cost::default(), |sum, &layer| sum + layer);
            if number == 0 {
                cost = cost + self.embedding;
            }
            if self.crossing[layers.clone()].contains(&true) {
                cost = cost + self.tower;
            }
            if number == last {
                cost = cost + self.head;
            }
            if last == 0 && self.tied {
                cost.parameters -= self.embedding.parameters;
            }
            cost
        });
        stages.collect()
    }

    /// As [`stages`], of a model whose costs are known.
    ///
    /// # Panics
    ///
    /// As [`stages`].
    pub fn divide(&self, count: usize) -> Vec<Range<usize>> {
        let layers = self.layers.len();
        assert!(
            (1..=layers).contains(&count),
            "{count} stages of {layers} layers"
        );
        Division::new(self, count).best()
    }

    fn total(&self) -> Cost {
        let layers = self
            .layers
            .iter()
            .fold(Cost::default(), |sum, &layer| sum + layer);
        layers + self.embedding + self.head + self.tower
    }
}

/// The layers of each of `count` pipeline stages, in order, such that the largest cost of a stage is smallest: a stage costs
/// the larger of its shares of all parameters and of all operations, embedding, head and, where it attends to pictures, the
/// tower included. Of all such divisions it
/// is the one whose stages are most alike (the least sum of squares), and of equal ones the one with the larger stages in
/// front.
///
/// # Panics
///
/// When there are no stages, or more of them than layers.
pub fn stages(config: &ModelConfig, count: usize) -> Vec<Range<usize>> {
    LayerCosts::of(config).divide(count)
}

/// The search for a division.
struct Division<'a> {
    /// Shares of everything up to a layer.
    before: Vec<Cost>,
    embedding: Cost,
    head: Cost,
    tower: Cost,
    crossing: &'a [bool],
    count: usize,
}

impl<'a> Division<'a> {
    fn new(costs: &'a LayerCosts, count: usize) -> Self {
        let total = costs.total();
        let share = |cost: Cost| Cost {
            parameters: cost.parameters / total.parameters,
            operations: cost.operations / total.operations,
        };
        let mut sum = Cost::default();
        let mut before = vec![sum];
        before.extend(costs.layers.iter().map(|&layer| {
            sum = sum + layer;
            share(sum)
        }));
        Self {
            before,
            embedding: share(costs.embedding),
            head: share(costs.head),
            tower: share(costs.tower),
            crossing: &costs.crossing,
            count,
        }
    }

    fn layers(&self) -> usize {
        self.before.len() - 1
    }

    /// The cost of a stage with these layers: the larger of its shares.
    fn share(&self, layers: Range<usize>) -> f64 {
        let (start, end) = (self.before[layers.start], self.before[layers.end]);
        let mut cost = Cost {
            parameters: end.parameters - start.parameters,
            operations: end.operations - start.operations,
        };
        if layers.start == 0 {
            cost = cost + self.embedding;
        }
        if layers.end == self.layers() {
            cost = cost + self.head;
        }
        if self.crossing[layers].contains(&true) {
            cost = cost + self.tower;
        }
        cost.parameters.max(cost.operations)
    }

    /// Whether no stage need have a larger share than this. Stages that take as many layers as they can leave the fewest to the
    /// last one, which alone has the head.
    fn suffices(&self, most: f64) -> bool {
        let mut start = 0;
        for stage in 0..self.count {
            let limit = self.layers() - (self.count - 1 - stage);
            let mut end = start + 1;
            if self.share(start..end) > most {
                return false;
            }
            while end < limit && self.share(start..end + 1) <= most {
                end += 1;
            }
            start = end;
        }
        start == self.layers()
    }

    /// The least share that suffices: by halving, down to neighbouring floats. Shares are not negative, so that their
    /// bits are in the order of their values.
    fn least(&self) -> f64 {
        let mut too_small = 0.0f64.to_bits();
        let mut enough = self.share(0..self.layers()).to_bits();
        while enough - too_small > 1 {
            let middle = too_small + (enough - too_small) / 2;
            match self.suffices(f64::from_bits(middle)) {
                true => enough = middle,
                false => too_small = middle,
            }
        }
        f64::from_bits(enough)
    }

    /// Of the divisions whose largest share is the least, the one with the least sum of squares.
    fn best(&self) -> Vec<Range<usize>> {
        let most = self.least();
        let layers = self.layers();
        // The least sum of squares of stages from a layer on, and the end of the first of them; from the last stage back.
        let mut rest = vec![f64::INFINITY; layers + 1];
        rest[layers] = 0.0;
        let mut ends = vec![vec![0; layers + 1]; self.count];
        for stage in (0..self.count).rev() {
            let mut squares = vec![f64::INFINITY; layers + 1];
            let starts = match stage {
                0 => 0..=0,
                _ => stage..=layers - (self.count - stage),
            };
            for start in starts {
                for (end, rest) in rest.iter().enumerate().skip(start + 1) {
                    let share = self.share(start..end);
                    if share > most {
                        break;
                    }
                    let sum = share * share + rest;
                    // Sums that differ by rounding alone count as equal.
                    if sum <= squares[start] * (1.0 + 1e-12) {
                        squares[start] = sum;
                        ends[stage][start] = end;
                    }
                }
            }
            rest = squares;
        }
        let mut start = 0;
        let stages = ends.iter().map(|ends| {
            let stage = start..ends[start];
            start = stage.end;
            stage
        });
        stages.collect()
    }
}
