//! What each tensor rank has of each layer, and of what is outside the layers.

use std::ops::Range;

use firebox_model::config::{LayerConfig, ModelConfig};
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{LayoutError, RankLayout, Shard};
use firebox_model::parameters::{Axis, Role};

/// Parameters, by how they are held in 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Count {
    /// Of matrices that activations are multiplied with, which 8 bits may hold.
    pub matrices: f64,
    /// The others, which are numbers in any case.
    pub numbers: f64,
}

impl Count {
    pub fn add(&mut self, other: Self) {
        self.matrices += other.matrices;
        self.numbers += other.numbers;
    }

    /// Of both kinds.
    pub fn all(self) -> f64 {
        self.matrices + self.numbers
    }
}

/// Parameters and widths of a rank, of a layer or of several.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct RankLoad {
    /// Parameters that every token is multiplied with, and small ones.
    pub dense: Count,
    /// Parameters of experts.
    pub experts: f64,
    /// Experts, of which each has an equal part of those; the largest number of a layer.
    pub expert_count: usize,
    /// Rows of a table that tokens look up.
    pub table: f64,
    /// Parameters of layers that attend to pictures, which every token is multiplied with that sees one.
    pub cross: Count,
    /// Those of these layers that the positions of pictures are multiplied with, to become keys and values.
    pub keys: f64,
    /// Parameters of the tower and its projection.
    pub tower: Count,
    /// Values of keys and values that are kept for a token, over the layers; in a layer that attends to pictures for a position
    /// of a picture.
    pub cached: f64,
    /// Values of query heads that meet each of those, over the layers.
    pub queries: f64,
}

impl RankLoad {
    fn add(&mut self, other: &Self) {
        self.dense.add(other.dense);
        self.experts += other.experts;
        self.expert_count = self.expert_count.max(other.expert_count);
        self.table += other.table;
        self.cross.add(other.cross);
        self.keys += other.keys;
        self.tower.add(other.tower);
        self.cached += other.cached;
        self.queries += other.queries;
    }

    /// Parameters of all kinds.
    pub fn parameters(&self) -> Count {
        let mut sum = Count {
            matrices: self.experts + self.keys,
            numbers: self.table,
        };
        [self.dense, self.cross, self.tower]
            .into_iter()
            .for_each(|count| sum.add(count));
        sum
    }
}

/// What a token attends to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    /// Positions of the text, where no window hides them.
    pub text: f64,
    /// Positions of pictures.
    pub pictures: f64,
}

/// The loads of a model's parts on the tensor ranks of a stage.
#[derive(Debug)]
pub(super) struct RankLoads {
    /// By rank and layer.
    layers: Vec<Vec<RankLoad>>,
    /// By rank.
    embedding: Vec<RankLoad>,
    /// By rank; the last norm and the head.
    head: Vec<RankLoad>,
    /// Of every rank with layers that attend to pictures: the tower, which each has whole.
    tower: RankLoad,
    /// Whether each layer attends to pictures.
    crossing: Vec<bool>,
    /// The window of each layer, where it has one.
    windows: Vec<Option<usize>>,
    tied: bool,
}

impl RankLoads {
    /// Those of a model over `tensor` tensor ranks in `expert` groups.
    ///
    /// # Errors
    ///
    /// When the model has no such layout.
    pub fn of(config: &ModelConfig, tensor: usize, expert: usize) -> Result<Self, LayoutError> {
        let layout = RankLayout {
            pipeline: 1,
            tensor,
            expert,
        };
        let shards = Shard::all(config, layout)?;
        let parameters = LanguageModel::parameter_list(config);
        let mut loads = Self {
            layers: vec![vec![RankLoad::default(); config.layers.len()]; tensor],
            embedding: vec![RankLoad::default(); tensor],
            head: vec![RankLoad::default(); tensor],
            tower: RankLoad::default(),
            crossing: config.layers.iter().map(LayerConfig::is_cross).collect(),
            windows: config
                .layers
                .iter()
                .map(|layer| layer.attention.window())
                .collect(),
            tied: config.tied_embeddings,
        };
        for (rank, shard) in shards.iter().enumerate() {
            for parameter in &parameters {
                let Some(slice) = shard.slice(parameter) else {
                    continue;
                };
                let (shape, held) = (slice.shape(), slice.elements() as f64);
                let count = match parameter.is_matrix {
                    true => Count {
                        matrices: held,
                        numbers: 0.0,
                    },
                    false => Count {
                        matrices: 0.0,
                        numbers: held,
                    },
                };
                if parameter.is_tower() {
                    // The same on each rank.
                    if rank == 0 {
                        loads.tower.tower.add(count);
                    }
                    continue;
                }
                let crosses = parameter.layer().is_some_and(|layer| loads.crossing[layer]);
                let load = match (parameter.layer(), parameter.role) {
                    (Some(layer), _) => &mut loads.layers[rank][layer],
                    (None, Role::Embedding) => &mut loads.embedding[rank],
                    (None, _) => &mut loads.head[rank],
                };
                match parameter.role {
                    Role::Experts => {
                        load.experts += held;
                        load.expert_count = shape[0];
                    }
                    Role::Embedding => load.table += held,
                    Role::CrossAttention if parameter.axes.contains(&Axis::KvHeads) => {
                        load.keys += held;
                    }
                    _ if crosses => load.cross.add(count),
                    _ => load.dense.add(count),
                }
            }
            let queries = shard.query_heads().len() as f64;
            let (width, cached) = match config.latent {
                None => {
                    let width = config.head_dim as f64;
                    (width, 2.0 * shard.kv_heads().len() as f64 * width)
                }
                // Every query head meets the latents, of which each rank keeps all.
                Some(latent) => {
                    let cached = latent.cached(config.rotary_dim) as f64;
                    (cached, cached)
                }
            };
            for load in &mut loads.layers[rank] {
                load.cached = cached;
                load.queries = queries * width;
            }
            if config.tied_embeddings {
                // The head multiplies with the same table.
                loads.head[rank].dense.numbers += loads.embedding[rank].table;
            }
        }
        Ok(loads)
    }

    /// What a rank of a stage with these layers has.
    pub fn of_stage(&self, rank: usize, layers: &Range<usize>) -> RankLoad {
        let of_rank = &self.layers[rank];
        let mut sum = RankLoad::default();
        of_rank[layers.clone()]
            .iter()
            .for_each(|load| sum.add(load));
        let (first, last) = (layers.start == 0, layers.end == of_rank.len());
        // A tied table is there once, where one rank has both ends.
        if first && !(last && self.tied) {
            sum.add(&self.embedding[rank]);
        }
        if last {
            sum.add(&self.head[rank]);
        }
        if self.crossings(layers) > 0 {
            sum.add(&self.tower);
        }
        sum
    }

    /// Number of these layers that attend to pictures.
    pub fn crossings(&self, layers: &Range<usize>) -> usize {
        let crossing = self.crossing[layers.clone()].iter();
        crossing.filter(|crossing| **crossing).count()
    }

    /// Values of keys and values that a rank keeps of so many positions, in these layers. A layer with a window keeps no more
    /// positions of a text than that.
    pub fn cached(&self, rank: usize, layers: &Range<usize>, positions: Seen) -> f64 {
        self.over_positions(rank, layers, positions, |load| load.cached)
    }

    /// Query width × attended positions (QKᵀ multiplications) of a rank for the last token of a text, over these layers.
    pub fn attended(&self, rank: usize, layers: &Range<usize>, positions: Seen) -> f64 {
        self.over_positions(rank, layers, positions, |load| load.queries)
    }

    /// The most values of queries, keys and values that a rank has of a token in one layer.
    pub fn widest_attention(&self) -> f64 {
        let layers = self.layers.iter().flatten();
        let widths = layers.map(|load| load.queries + load.cached);
        widths.fold(0.0, f64::max)
    }

    /// The most experts of a layer on a rank.
    pub fn most_experts(&self) -> usize {
        let layers = self.layers.iter().flatten();
        layers.map(|load| load.expert_count).max().unwrap_or(0)
    }

    fn over_positions(
        &self,
        rank: usize,
        layers: &Range<usize>,
        Seen { text, pictures }: Seen,
        of: fn(&RankLoad) -> f64,
    ) -> f64 {
        let of_layer = layers.clone().map(|layer| {
            let positions = match self.windows[layer] {
                _ if self.crossing[layer] => pictures,
                Some(window) => text.min(window as f64),
                None => text,
            };
            of(&self.layers[rank][layer]) * positions
        });
        of_layer.sum()
    }
}
