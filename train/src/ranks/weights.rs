//! Weights that other ranks have, for the checkpoint that the first rank writes.

use burn::module::Param;
use burn::tensor::Tensor;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{Shard, Slice};
use firebox_model::parameters::{ParameterInfo, VisitParameter, visit};

use super::Team;
use super::ownership::is_of_experts;
use super::team::host;

/// What the names of such weights begin with.
const WEIGHTS: &str = "weights";

/// The weights of a model of which the first rank has a part, and others the rest.
#[derive(Debug)]
pub struct Weights<'a> {
    team: &'a Team,
    model: &'a LanguageModel,
    /// The ranks of the first copy.
    shards: Vec<Shard>,
}

impl<'a> Weights<'a> {
    /// Those of this rank's model and of the others.
    pub fn new(team: &'a Team, model: &'a LanguageModel) -> Self {
        let layout = team.layout();
        let shards =
            (0..layout.ranks_of_copy()).filter_map(|rank| layout.shard(model.config(), rank));
        Self {
            team,
            model,
            shards: shards.collect(),
        }
    }

    /// The values of a parameter, or of a stack those of one expert, of which other ranks have parts: they
    /// [answer](own_weights).
    pub fn values(&self, parameter: &ParameterInfo, expert: Option<usize>) -> Vec<f32> {
        let count = parameter.shape[0];
        let of = expert.map_or("all".to_owned(), |expert| expert.to_string());
        let name = format!("{WEIGHTS}.{of}.{}", parameter.path);
        let mut shape = parameter.shape.clone();
        if expert.is_some() {
            shape[0] = 1;
        }
        let mut values = vec![0.0; shape.iter().product()];
        for (rank, shard) in self.shards.iter().enumerate() {
            let has_others = |expert| !shard.experts(count).contains(&expert);
            let is_elsewhere = match expert {
                Some(expert) => has_others(expert),
                // The ranks that have other experts have the same of it.
                None => shard.expert_place().0 > 0 && !is_of_experts(parameter),
            };
            let Some(slice) = shard.slice(parameter).filter(|_| !is_elsewhere) else {
                continue;
            };
            let mut ranges = slice.ranges().to_vec();
            if expert.is_some() {
                ranges[0] = std::iter::once(0..1).collect();
            }
            let own = match rank {
                0 => own_weights(self.model, &name).expect("weights"),
                _ => self.team.ask(rank, &name),
            };
            Slice::new(shape.clone(), ranges).put(&own, &mut values);
        }
        values
    }
}

/// The values that this rank has of a parameter, or of an expert of a stack, by the name that they are asked for with; `None`
/// where it is the name of something else.
///
/// # Panics
///
/// When the rank has no such parameter or expert.
pub fn own_weights(model: &LanguageModel, name: &str) -> Option<Vec<f32>> {
    let name = name.strip_prefix(WEIGHTS)?.strip_prefix('.')?;
    let (expert, path) = name.split_once('.')?;
    let shard = model.shard().expect("a part of a model");
    let count = model.config().moe.as_ref();
    let first = count.map_or(0, |moe| shard.experts(moe.experts.count).start);
    let mut find = Find {
        path,
        place: expert.parse().ok().map(|expert: usize| expert - first),
        found: None,
    };
    visit(model, &mut find);
    Some(find.found.expect("a parameter of this rank"))
}

struct Find<'a> {
    path: &'a str,
    /// That of an expert among those of this rank.
    place: Option<usize>,
    found: Option<Vec<f32>>,
}

impl VisitParameter for Find<'_> {
    fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
        if path == self.path {
            let values = parameter.val();
            self.found = Some(host(match self.place {
                Some(place) => values.narrow(0, place, 1),
                None => values,
            }));
        }
    }
}
