//! Weights of experts that other ranks have, for the checkpoint that the first rank writes.

use burn::module::Param;
use burn::tensor::Tensor;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::Shard;
use firebox_model::parameters::{VisitParameter, visit};

use super::Team;
use super::team::host;

/// What the names of such weights begin with.
const WEIGHTS: &str = "weights";

impl Team {
    /// The values of one expert of a stack that another rank has a part of, which [answers](own_expert).
    pub fn ask_for_expert(&self, model: &LanguageModel, path: &str, expert: usize) -> Vec<f32> {
        let moe = model.config().moe.as_ref().expect("a mixture");
        let each = moe.experts.count / self.layout().expert;
        self.ask(expert / each, &format!("{WEIGHTS}.{expert}.{path}"))
    }
}

/// The values of one expert that this rank has, by the name that they are asked for with; `None` where it is the name of
/// something else.
///
/// # Panics
///
/// When the rank has no such expert.
pub fn own_expert(model: &LanguageModel, name: &str) -> Option<Vec<f32>> {
    let name = name.strip_prefix(WEIGHTS)?.strip_prefix('.')?;
    let (expert, path) = name.split_once('.')?;
    let expert: usize = expert.parse().ok()?;
    let shard = model.shard().expect("a part of a model");
    let mut find = Find {
        path,
        shard,
        expert,
        count: model
            .config()
            .moe
            .as_ref()
            .map_or(0, |moe| moe.experts.count),
        found: None,
    };
    visit(model, &mut find);
    Some(find.found.expect("a stack of experts"))
}

struct Find<'a> {
    path: &'a str,
    shard: &'a Shard,
    expert: usize,
    count: usize,
    found: Option<Vec<f32>>,
}

impl VisitParameter for Find<'_> {
    fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
        if path == self.path {
            let place = self.expert - self.shard.experts(self.count).start;
            self.found = Some(host(parameter.val().narrow(0, place, 1)));
        }
    }
}
